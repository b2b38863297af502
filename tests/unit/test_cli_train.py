"""What ``nnplug train`` prints, on trainings in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nnplug.cli import main
from support.datasets import DatasetForTests
from support.small_trainings import without_processes, write_recipe


def run_train(dataset: DatasetForTests, recipe: Path, *more: str) -> int:
    with without_processes(dataset):
        return main(["train", "901", "3d_fullres", "0", "-tr", str(recipe), "-device", "cpu", *more])


def test_the_start_names_trainer_and_folder_and_the_end_what_counts(
    tiny_dataset: DatasetForTests, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path)
    assert run_train(tiny_dataset, recipe) == 0
    (fold,) = tiny_dataset.results_folder.glob("*/fold_0")
    written = json.loads((fold / "nnplug_result.json").read_text())
    shown = capfd.readouterr().out
    assert shown.startswith(f"Training {written['trainer']} in {fold}\n")
    report, _, after = shown.partition("\n{\n")[2].partition("\n}\n")
    keys = ("status", "model_path", "dataset", "configuration", "fold", "metrics")
    assert json.loads("{" + report + "}") == {key: written[key] for key in keys}
    assert after == f"All of it: {fold}/nnplug_result.json\nPredict with: {written['predict_command']}\n"

    assert run_train(tiny_dataset, recipe, "--c", "--json") == 0
    log, _, report = capfd.readouterr().out.rpartition("\n{\n")
    assert {**json.loads("{" + report), "seconds": 0} == {**written, "seconds": 0}
    assert "Continuing from checkpoint_final.pth at the final validation." in log


def test_the_end_says_why_stock_can_not_predict(
    tiny_dataset: DatasetForTests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_nets").mkdir()
    (tmp_path / "my_nets" / "beside_a_recipe.py").write_text(
        "import torch\n\n\ndef build(input_channels, num_classes, deep_supervision):\n"
        "    return torch.nn.Conv3d(input_channels, num_classes, 1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "my_nets")
    recipe = write_recipe(tmp_path, network_builder="'beside_a_recipe:build'")
    recipe.write_text(recipe.read_text().partition("[plans")[0])
    reason = (
        "network_builder: 'beside_a_recipe' belongs to no installed package; nnU-Net finds it only through PYTHONPATH"
    )

    assert main(["show", str(recipe), "--trust-code"]) == 0
    assert capfd.readouterr().out.endswith(f"\nStock nnU-Net can not predict with it: {reason}.\n")
    assert run_train(tiny_dataset, recipe, "--trust-code") == 0
    *_, obstacle, command = capfd.readouterr().out.splitlines()
    assert obstacle == f"Stock nnU-Net can not predict with this model: {reason}."
    assert command.startswith("Predict with: nnplug predict -i INPUT -o OUTPUT -d Dataset901_Tiny -c 3d_fullres -f 0")


def test_the_end_says_what_stock_needs_to_predict(
    tiny_dataset: DatasetForTests, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, extends="'kiunet_minimal'")
    assert run_train(tiny_dataset, recipe) == 0
    *_, needs, command = capfd.readouterr().out.splitlines()
    assert needs == "Stock nnU-Net can predict with this model where nnplug is installed."
    assert command.startswith("Predict with: nnUNetv2_predict ")
