"""One fold: what it is trained on stays the same, whatever is done with it later."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnplug import Component, NnplugError
from nnplug.models.checkpoint import load, save
from nnplug.training import training
from nnplug.training.fold_folder import fold_lock
from nnplug.training.fold_training import FoldJob, train_fold
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from support.datasets import DatasetForTests
from support.small_trainings import small_config, train_here, write_recipe


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


def test_validation_alone_and_of_the_best_checkpoint(tiny_dataset: DatasetForTests, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path)
    [trained] = train_here(tiny_dataset, recipe)
    final = fold_folder(tiny_dataset) / "checkpoint_final.pth"
    written = final.stat().st_mtime_ns
    best = load(final.with_name("checkpoint_best.pth"))
    best["logging"]["val_losses"] = [0.25]
    save(best, final.with_name("checkpoint_best.pth"))

    [again] = train_here(tiny_dataset, recipe, validation_only=True)
    assert {**again, "seconds": 0} == {**trained, "seconds": 0}
    assert again["checkpoint"] == "checkpoint_final.pth"
    [of_best] = train_here(tiny_dataset, recipe, validation_only=True, val_best=True)
    assert of_best["checkpoint"] == "checkpoint_best.pth"
    assert of_best["metrics"]["validation_loss"] == 0.25
    assert of_best["predict_command"] == f"{trained['predict_command']} -chk checkpoint_best.pth"
    assert json.loads(final.with_name("nnplug_result.json").read_text()) == of_best
    assert final.stat().st_mtime_ns == written, "nothing was trained"


def relabel(dataset: DatasetForTests, configuration: str, value: int) -> None:
    """Write a value that the data set does not have into the segmentations of its preprocessed cases."""
    folder = dataset.preprocessed_folder / f"nnUNetPlans_{configuration}"
    cases = nnUNetDatasetBlosc2(str(folder))
    for name in cases.identifiers:
        image, labels, _, properties = cases.load_case(name)
        changed = np.where(labels[:] == 1, value, labels[:])
        image = image[:]
        for path in folder.glob(f"{name}*.b2nd"):
            path.unlink()
        nnUNetDatasetBlosc2.save_case(image, changed, properties, str(folder / name))


def test_a_value_that_is_no_label_is_named(private: DatasetForTests, tmp_path: Path) -> None:
    relabel(private, "3d_fullres", 7)
    with pytest.raises(NnplugError) as error:
        train_here(private, write_recipe(tmp_path))
    expected = "The segmentation holds the value 7, and the labels in dataset.json are 0 to 2. Mend the label image"
    assert str(error.value).startswith(expected)


def test_labels_without_foreground_are_refused(private: DatasetForTests, tmp_path: Path) -> None:
    file = private.preprocessed_folder / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "labels": {"background": 0}}))
    with pytest.raises(
        NnplugError, match=r"has no label but the background \('labels' in dataset\.json\): nothing can"
    ):
        train_here(private, write_recipe(tmp_path))
    assert not list(private.results_folder.iterdir()) if private.results_folder.exists() else True


def test_without_checkpoints_there_is_nothing_to_predict_with(tiny_dataset: DatasetForTests, tmp_path: Path) -> None:
    [result] = train_here(tiny_dataset, write_recipe(tmp_path), disable_checkpointing=True)
    assert result["status"] == "completed"
    assert 0 <= result["metrics"]["dice"] <= 1
    assert (result["checkpoint"], result["predict_command"]) == (None, None)
    assert not list(fold_folder(tiny_dataset).glob("*.pth"))
    assert "No checkpoint written" in (fold_folder(tiny_dataset) / "training_log.txt").read_text()


def write_previous_stage(dataset: DatasetForTests, folder: Path) -> Path:
    """The true segmentations as what a first stage has predicted, and a second stage in the plans."""
    plans_file = dataset.preprocessed_folder / "nnUNetPlans.json"
    plans = json.loads(plans_file.read_text())
    plans["configurations"]["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    plans_file.write_text(json.dumps(plans))
    cases = nnUNetDatasetBlosc2(str(dataset.preprocessed_folder / "nnUNetPlans_3d_fullres"))
    folder.mkdir()
    for case in cases.identifiers:
        _, segmentation, _, _ = cases.load_case(case)
        nnUNetDatasetBlosc2.save_seg(np.maximum(segmentation[:][0], 0), str(folder / case))
    return folder


def test_a_cascade_needs_every_prediction_and_keeps_to_the_ones_it_began_with(
    private: DatasetForTests, tmp_path: Path
) -> None:
    predictions = write_previous_stage(private, tmp_path / "predictions")
    options: dict[str, Any] = {"configuration": "3d_cascade_fullres", "prev_stage_predictions": predictions}
    recipe = write_recipe(tmp_path)
    (predictions / "tiny_03.b2nd").rename(tmp_path / "tiny_03.b2nd")
    with pytest.raises(NnplugError, match=r"needs a prediction of every case, and .* has none of tiny_03\. Train"):
        train_here(private, recipe, **options)
    (tmp_path / "tiny_03.b2nd").rename(predictions / "tiny_03.b2nd")

    [result] = train_here(private, recipe, **options)
    assert result["status"] == "completed"
    others = Path(shutil.copytree(predictions, tmp_path / "others"))
    with pytest.raises(NnplugError, match=f"predictions were {predictions}, now {others}. Restore the"):
        train_here(private, recipe, **{**options, "prev_stage_predictions": others}, continue_training=True)


def test_a_training_that_another_process_ended_in_the_meantime_is_not_overwritten(
    tiny_dataset: DatasetForTests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one ends between the look at the folder and the lock."""

    @contextmanager
    def lock_after_the_other(folder: Path) -> Iterator[None]:
        with fold_lock(folder):
            folder.mkdir()
            (folder / "checkpoint_final.pth").touch()
            yield

    monkeypatch.setattr("nnplug.training.fold_folder.fold_lock", lock_after_the_other)
    with pytest.raises(NnplugError, match=r"holds a training already \(checkpoint_final.pth\)"):
        train_here(tiny_dataset, write_recipe(tmp_path))


def test_a_refused_validation_leaves_no_folder(tiny_dataset: DatasetForTests, tmp_path: Path) -> None:
    with pytest.raises(NnplugError, match=r"has no checkpoint_final.pth: --val needs a finished training"):
        train_here(tiny_dataset, write_recipe(tmp_path), validation_only=True)
    assert not tiny_dataset.results_folder.exists()


@pytest.mark.parametrize(
    ("fields", "configuration", "message"),
    [
        ({"mirror_axes": (2,)}, "2d", r"names axis 2; configuration '2d' is 2D"),
        ({"patch_size": (17, 24, 24)}, "3d_fullres", r"can not take a patch of 17x24x24"),
        ({"sampler": Component(nnUNetDataLoader, nonsense=3)}, "3d_fullres", r"sampler .* has no setting 'nonsense'"),
    ],
    ids=["settings", "network", "data"],
)
def test_a_refused_start_leaves_nothing(
    tiny_dataset: DatasetForTests, fields: dict[str, Any], configuration: str, message: str
) -> None:
    config = small_config(**fields)
    with pytest.raises(NnplugError, match=message):
        train_here(tiny_dataset, config, configuration=configuration)
    assert list(tiny_dataset.results.iterdir()) == []


def test_a_refusal_leaves_alone_what_was_there(tiny_dataset: DatasetForTests) -> None:
    config = small_config(sampler=Component(nnUNetDataLoader, nonsense=3))
    fold = tiny_dataset.model_folder("loop") / "fold_0"
    fold.mkdir(parents=True)
    (fold / "notes.txt").write_text("mine")
    with pytest.raises(NnplugError, match="sampler"):
        train_here(tiny_dataset, config)
    assert (fold / "notes.txt").read_text() == "mine"
