"""Stock nnU-Net preprocesses and trains a configuration that nnplug has derived."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import DatasetForTests, run_nnplug, run_stock


@pytest.mark.full
def test_stock_commands_take_a_derived_configuration(tiny_dataset: DatasetForTests, tmp_path: Path) -> None:
    dataset = tiny_dataset.private_copy(tmp_path / "private")
    change = ["--set", "spacing=2,1.5,1.5", "--set", "batch_size=1"]
    derived = run_nnplug(
        "plans", "derive", "-d", 901, "-c", "3d_fullres", "--name", "3d_coarse", *change, env=dataset.env
    )
    assert "It needs preprocessed cases of its own, nnUNetPlans_3d_coarse, because of spacing." in derived.stdout

    run_stock("nnUNetv2_preprocess", "-d", 901, "-c", "3d_coarse", "-np", 1, env=dataset.env)
    folder = run_nnplug("env").stdout.strip().split("=", 1)[1].strip("'\"")
    name = "num_epochs=1+num_iterations_per_epoch=1+num_val_iterations_per_epoch=1"
    env = {**dataset.env, "nnUNet_extTrainer": folder}
    run_stock("nnUNetv2_train", 901, "3d_coarse", 0, "-tr", name, "-device", "cpu", env=env)

    assert (dataset.model_folder(name, "3d_coarse") / "fold_0" / "checkpoint_final.pth").exists()
