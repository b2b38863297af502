"""The results of several folds as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nnplug.models.results import combine, fold_result, with_results_dir


def result(
    folder: Path, fold: int, dice: float, checkpoint: str | None = "checkpoint_final.pth", **options: Any
) -> dict[str, Any]:
    place = folder / "adam__nnUNetPlans__2d" / f"fold_{fold}"
    (place / "validation").mkdir(parents=True)
    metrics = {"Dice": dice, "IoU": float("nan")}
    (place / "validation" / "summary.json").write_text(json.dumps({"foreground_mean": metrics, "mean": {"1": metrics}}))
    return fold_result(
        place,
        dataset="Dataset004_Hippocampus",
        trainer="adam",
        checkpoint=checkpoint,
        validation_loss=-dice,
        seconds=10.04,
        **{"obstacle": None, **options},
    )


def test_one_fold_stays_as_it_is(tmp_path: Path) -> None:
    one = result(tmp_path, 3, 0.5)
    assert combine([one]) == one
    assert one["fold"] == 3
    assert one["metrics"] == {"dice": 0.5, "iou": None, "validation_loss": -0.5}


def test_several_folds_are_averaged_and_predicted_with_together(tmp_path: Path) -> None:
    folds = [result(tmp_path, fold, dice) for fold, dice in ((0, 0.5), (2, 0.75))]
    both = combine(folds)
    assert both["fold"] == [0, 2]
    assert both["metrics"] == {"dice": 0.625, "iou": None, "validation_loss": -0.625}
    assert both["seconds"] == 20.0
    assert both["folds"] == folds
    assert both["predict_command"] == (
        "nnUNetv2_predict -i INPUT -o OUTPUT -d Dataset004_Hippocampus -c 2d -f 0 2 -p nnUNetPlans -tr 'adam'"
    )


def test_a_value_that_one_fold_lacks_is_the_mean_of_the_others(tmp_path: Path) -> None:
    folds = [result(tmp_path, fold, dice) for fold, dice in ((0, 0.5), (1, float("nan")), (2, 0.7))]
    assert combine(folds)["metrics"]["dice"] == pytest.approx(0.6)


def test_the_command_predicts_with_the_checkpoint_that_was_validated(tmp_path: Path) -> None:
    both = combine([result(tmp_path, fold, 0.5, "checkpoint_best.pth") for fold in (0, 1)])
    assert both["predict_command"].endswith(" -f 0 1 -p nnUNetPlans -tr 'adam' -chk checkpoint_best.pth")


def test_code_that_was_trusted_has_to_be_trusted_again(tmp_path: Path) -> None:
    folds = [result(tmp_path, fold, 0.5, obstacle="it is mine", trust_code=True) for fold in (0, 1)]
    for one in (folds[0], combine(folds), with_results_dir(combine(folds), tmp_path)):
        assert " -tr 'adam' --trust-code" in one["predict_command"]
    assert "--trust-code" not in result(tmp_path / "stock", 0, 0.5, trust_code=True)["predict_command"]


def test_there_is_no_command_without_a_checkpoint(tmp_path: Path) -> None:
    assert combine([result(tmp_path, fold, 0.5, None) for fold in (0, 1)])["predict_command"] is None


def test_the_command_names_the_folder_that_no_variable_names(tmp_path: Path) -> None:
    one = result(tmp_path, 3, 0.5)
    assert with_results_dir(one, None) == one
    assert with_results_dir(one, "my results")["predict_command"] == (
        "nnplug predict -i INPUT -o OUTPUT -d Dataset004_Hippocampus -c 2d -f 3 -p nnUNetPlans -tr 'adam' "
        "--results-dir 'my results'"
    )
