"""One fold: what it is trained on stays the same, whatever is done with it later."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from nnplug import NnplugError, training
from nnplug.checkpoint import load
from nnplug.fold_training import FoldJob, train_fold
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
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


def test_a_recipe_that_is_edited_meanwhile_changes_no_later_fold(
    tiny_dataset: DatasetForTests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path)
    jobs: list[FoldJob] = []

    def train_and_edit(job: FoldJob) -> dict[str, Any]:
        result = train_fold(job)
        write_recipe(tmp_path, initial_lr=0.5)
        jobs.append(job)
        return result

    monkeypatch.setattr(training, "train_fold", train_and_edit)
    first, second = train_here(tiny_dataset, recipe, folds=[0, 1])

    assert first["model_path"] == second["model_path"]
    assert len(list(tiny_dataset.results_folder.iterdir())) == 1
    assert pickle.loads(pickle.dumps(jobs[1])) == jobs[1]  # as it goes to the processes of DDP


def test_pretrained_weights_survive_a_kill_before_the_first_checkpoint(
    tiny_dataset: DatasetForTests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def kill(*_: Any) -> None:
        raise Killed

    train_here(tiny_dataset, write_recipe(tmp_path, "teacher", seed=1))
    (teacher,) = tiny_dataset.results_folder.glob("teacher-*/fold_0/checkpoint_final.pth")
    recipe = write_recipe(tmp_path, "pupil", initial_lr=1e-9)
    monkeypatch.setattr(nnUNetTrainer, "train_step", kill)
    with pytest.raises(Killed):
        train_here(tiny_dataset, recipe, pretrained_weights=teacher)
    monkeypatch.undo()

    with pytest.raises(NnplugError, match=r"has no checkpoint yet, and its training began with pretrained weights"):
        train_here(tiny_dataset, recipe, continue_training=True)
    train_here(tiny_dataset, recipe, continue_training=True, pretrained_weights=teacher)

    (pupil,) = tiny_dataset.results_folder.glob("pupil-*/fold_0")
    taught, teaching = (load(path)["network_weights"] for path in (pupil / "checkpoint_final.pth", teacher))
    same = {key: torch.allclose(weight, teaching[key], atol=1e-6) for key, weight in taught.items()}
    assert all(is_same for key, is_same in same.items() if ".seg_layers." not in key)
    assert not all(same.values())
    assert f"Starting from the weights of {teacher}." in (pupil / "training_log.txt").read_text()
