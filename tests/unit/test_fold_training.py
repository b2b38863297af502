"""One fold: what it is trained on stays the same, whatever is done with it later."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nnplug import NnplugError
from support.datasets import DatasetForTests
from support.small_trainings import train_here, write_recipe


@pytest.fixture
def private(tiny_dataset: DatasetForTests, tmp_path: Path) -> DatasetForTests:
    return tiny_dataset.private_copy(tmp_path / "private")


def fold_folder(dataset: DatasetForTests, fold: object = 0) -> Path:
    (model,) = dataset.results_folder.iterdir()
    return model / f"fold_{fold}"


def swap_two_folds(dataset: DatasetForTests) -> None:
    splits = dataset.splits
    splits[0], splits[1] = splits[1], splits[0]
    (dataset.preprocessed_folder / "splits_final.json").write_text(json.dumps(splits))


def test_a_finished_fold_is_not_validated_on_another_split(private: DatasetForTests, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    train_here(private, recipe)
    result = (fold_folder(private) / "nnplug_result.json").read_text()
    swap_two_folds(private)

    for mode in ("validation_only", "continue_training"):
        with pytest.raises(NnplugError, match=r"was trained on other data: .* left training; .* joined training"):
            train_here(private, recipe, **{mode: True})
    assert (fold_folder(private) / "nnplug_result.json").read_text() == result
