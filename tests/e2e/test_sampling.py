"""``better_ignore_sampling`` and ``case_weights`` in real trainings."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import nnplug
import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from nnplug import TrainerConfig
from nnplug.training.trainer import build_trainer_class
from support import run_nnplug
from support.datasets import DatasetForTests
from support.sparse_data import IGNORE

ROOT = Path(__file__).resolve().parents[2]
BOTH = "better_ignore_sampling+case_weights"


@pytest.fixture
def sparse(sparse_concrete: DatasetForTests, tmp_path: Path) -> DatasetForTests:
    """Real images with an ignore label, and a weight for every case: 0, 1, 2, 3."""
    dataset = sparse_concrete.private_copy(tmp_path / "private")
    write_weights(dataset, {f"concrete_{index}": index for index in range(4)})
    return dataset


def write_weights(dataset: DatasetForTests, weights: dict[str, float]) -> None:
    (dataset.preprocessed_folder / "case_weights.json").write_text(json.dumps(weights))


def train(
    dataset: DatasetForTests, folder: Path, extends: str, *args: object, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Three steps of a small network."""
    plans = json.loads((dataset.preprocessed_folder / "nnUNetPlans.json").read_text())
    num_stages = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["n_stages"]
    recipe = folder / "sampled.toml"
    recipe.write_text(
        f'extends = "{extends}"\nnum_epochs = 1\nnum_iterations_per_epoch = 3\nnum_val_iterations_per_epoch = 1\n'
        f"plans.architecture.arch_kwargs.features_per_stage = {[4] * num_stages}\n"
    )
    command = ("train", dataset.id, "3d_fullres", 0, "-tr", recipe, "-device", "cpu", *args)
    return run_nnplug(*command, env=dataset.env, check=check)


def test_a_training_goes_on_with_the_same_weights_only(sparse: DatasetForTests, tmp_path: Path) -> None:
    result = json.loads(train(sparse, tmp_path, f"{BOTH}+da5", "--json").stdout)
    assert result["status"] == "completed"
    assert np.isfinite(result["metrics"]["validation_loss"])
    fold = Path(result["model_path"]) / "fold_0"
    kept = json.loads((fold / "case_weights.json").read_text())
    assert kept == {"concrete_0": 0, "concrete_1": 1, "concrete_2": 2, "concrete_3": 3}
    assert "changes nothing" not in (fold / "training_log.txt").read_text()

    (fold / "checkpoint_final.pth").rename(fold / "checkpoint_latest.pth")
    write_weights(sparse, {**kept, "concrete_0": 5})
    refused = train(sparse, tmp_path, f"{BOTH}+da5", "--c", check=False)
    assert refused.returncode == 2
    assert refused.stderr.endswith(
        "was trained with other case weights: concrete_0 had 0.0 and has 5.0 now. "
        "Restore case_weights.json, or start anew with --restart.\n"
    )
    write_weights(sparse, dict.fromkeys(kept, 0))
    refused = train(sparse, tmp_path, f"{BOTH}+da5", "--restart", check=False)
    assert refused.returncode == 2
    assert refused.stderr.endswith("every training case of this fold has the weight 0. Give one of them more.\n")
    assert "set aside" not in refused.stdout
    assert (fold / "checkpoint_latest.pth").exists()
    assert json.loads((fold / "case_weights.json").read_text()) == kept
    assert not list(fold.parent.glob("replaced_*"))


@pytest.mark.parametrize(("configuration", "patch_size"), [("3d_fullres", (8, 9, 10)), ("2d", (9, 12))])
def test_every_patch_is_of_a_weighted_case_and_has_annotated_voxels(
    sparse: DatasetForTests, configuration: str, patch_size: tuple[int, ...]
) -> None:
    folder = sparse.preprocessed_folder
    cases = json.loads((folder / "splits_final.json").read_text())[0]["train"]
    write_weights(sparse, {case: float(case == cases[1]) for case in cases})
    plans, dataset_json = (json.loads((folder / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json"))
    config = TrainerConfig(
        name="t", extends=BOTH, batch_size=20, oversample_foreground_percent=0, patch_size=patch_size
    )
    with sparse.activated():
        trainer = build_trainer_class(nnplug.resolve(config))(
            {**plans, "continue_training": False}, configuration, 0, dataset_json, torch.device("cpu")
        )
        trainer._set_batch_size_and_oversample()
        trainer.enable_deep_supervision = False
        train_batches, _ = trainer.get_dataloaders()
        [spatial] = [
            one for one in train_batches.data_loader.transforms.transforms if isinstance(one, SpatialTransform)
        ]
        spatial.p_rotation = spatial.p_scaling = 0  # either may turn the annotated voxel out of the patch
        batch = next(train_batches)
    assert set(batch["keys"]) == {cases[1]}
    annotated = (batch["target"] != IGNORE).flatten(1).any(1)
    assert annotated.shape == (20,)
    assert annotated.all()


def test_a_network_a_loss_and_a_sampler_of_three_plugins_train_together(sparse: DatasetForTests) -> None:
    composition = "kiunet_minimal+blob_dice_loss+better_ignore_sampling+num_epochs=100"
    assert f" -tr {composition}\n" in (ROOT / "docs" / "trainers.md").read_text(encoding="utf-8")
    folder = sparse.preprocessed_folder
    plans, dataset_json = (json.loads((folder / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json"))
    widths = nnplug.resolve("kiunet_minimal+network_builder.features_per_stage=4").config.network_builder
    small = TrainerConfig(
        name="small", extends=composition, batch_size=2, patch_size=(16, 16, 16), network_builder=widths
    )
    with sparse.activated():
        trainer = build_trainer_class(nnplug.resolve(small))(
            {**plans, "continue_training": False}, "3d_fullres", 0, dataset_json, torch.device("cpu")
        )
        trainer.on_train_start()
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        batch = next(trainer.dataloader_train)
        assert [len(target[0]) for target in batch["target"]] == [2] * len(batch["target"]), "labels and components"
        assert np.isfinite(trainer.train_step(batch)["loss"])
    assert trainer.num_epochs == 100
    parts = trainer.network, trainer.loss.loss, trainer.dataloader_train.data_loader
    assert [type(part).__name__ for part in parts] == ["KiUNet", "BlobDiceLoss", "SamplingLoader"]


def test_what_is_said_about_other_data_and_wrong_weights(tiny_dataset: DatasetForTests, tmp_path: Path) -> None:
    result = json.loads(train(tiny_dataset, tmp_path, "better_ignore_sampling", "--json").stdout)
    assert result["status"] == "completed"
    log = (Path(result["model_path"]) / "fold_0" / "training_log.txt").read_text()
    assert log.count("better_ignore_sampling changes nothing: this data set has no ignore label.") == 1

    dataset = tiny_dataset.private_copy(tmp_path / "private")
    write_weights(dataset, {f"tiny_0{index}": -1 for index in range(5)})
    refused = train(dataset, tmp_path, "case_weights", check=False)
    path = dataset.preprocessed_folder / "case_weights.json"
    assert refused.returncode == 2
    assert refused.stderr == f"nnplug: error: {path}: tiny_00: expected a weight >= 0, got -1.\n"
