"""Folds of one model that start at the same moment write the same files: each reader finds them whole."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nnplug
import pytest
import torch
from nnplug import NnplugError
from nnplug.training.trainer import build_trainer_class
from support.commands import clean_environment
from support.datasets import DatasetForTests
from support.small_trainings import small_config, write_recipe


@pytest.fixture
def without_splits(tiny_dataset: DatasetForTests, tmp_path: Path) -> DatasetForTests:
    dataset = tiny_dataset.private_copy(tmp_path / "private")
    (dataset.preprocessed_folder / "splits_final.json").unlink()
    return dataset


def make_trainer(dataset: DatasetForTests, fold: int) -> Any:
    plans, dataset_json = (
        json.loads((dataset.preprocessed_folder / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json")
    )
    plans["continue_training"] = False
    trainer_class = build_trainer_class(nnplug.resolve(small_config()))
    return trainer_class(plans, "3d_fullres", fold, dataset_json, torch.device("cpu"))


def _dump_slowly(content: Any, file: Any, *, dump: Any = json.dump, **options: Any) -> None:
    """A slow disk: between opening a file and writing to it others see it empty."""
    time.sleep(0.05)
    dump(content, file, **options)


def _start(dataset: DatasetForTests, fold: int, barrier: Any, outcomes: Any) -> None:
    json.dump = _dump_slowly  # type: ignore[assignment]
    barrier.wait(60)
    try:
        trainer = make_trainer(dataset, fold)
        trainer._claim()
        outcomes.put((fold, trainer.do_split()[1]))
    except Exception as error:
        outcomes.put((fold, repr(error)))


def test_the_start_of_five_folds_at_once(without_splits: DatasetForTests, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for attempt in range(2):
        dataset = without_splits.with_results(tmp_path / f"results_{attempt}")
        (dataset.preprocessed_folder / "splits_final.json").unlink(missing_ok=True)
        barrier, outcomes = context.Barrier(5), context.Queue()
        with dataset.activated():
            folds = [context.Process(target=_start, args=(dataset, fold, barrier, outcomes)) for fold in range(5)]
            for process in folds:
                process.start()
            found = dict(outcomes.get(timeout=60) for _ in folds)
            for process in folds:
                process.join()

        assert found == {fold: dataset.splits[fold]["val"] for fold in range(5)}
        (model,) = dataset.results_folder.iterdir()
        for name in ("nnplug.json", "plans.json", "dataset.json", *(f"fold_{fold}/nnplug_fold.json" for fold in found)):
            assert json.loads((model / name).read_text())
        fingerprint = "dataset_fingerprint.json"
        assert (model / fingerprint).read_bytes() == (dataset.preprocessed_folder / fingerprint).read_bytes()
        assert not list(model.rglob("*.nnplug-tmp"))


def test_splits_are_those_of_nnunet(without_splits: DatasetForTests, tiny_dataset: DatasetForTests) -> None:
    with without_splits.activated():
        trainer = make_trainer(without_splits, 3)
        assert trainer.do_split() == tuple(tiny_dataset.splits[3][part] for part in ("train", "val"))
    assert without_splits.splits == tiny_dataset.splits
    (without_splits.preprocessed_folder / "splits_final.json").unlink()
    assert trainer.do_split()[1] == tiny_dataset.splits[3]["val"]
    assert not (without_splits.preprocessed_folder / "splits_final.json").exists()


def test_too_few_cases_for_nnunets_folds(without_splits: DatasetForTests) -> None:
    for path in (without_splits.preprocessed_folder / "nnUNetPlans_3d_fullres").glob("tiny_00*"):
        path.unlink()
    with (
        without_splits.activated(),
        pytest.raises(NnplugError, match=r"has 4 cases, too few for 5 folds\. Make fewer with nnplug splits make -k"),
    ):
        make_trainer(without_splits, 0).do_split()


@pytest.mark.full
def test_real_trainings_of_folds_at_once(without_splits: DatasetForTests, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nnplug", "train", "901", "3d_fullres"]
    recipe = write_recipe(tmp_path)
    running = [
        subprocess.Popen(
            [*command, str(fold), "-tr", str(recipe), "-device", "cpu"],
            env=clean_environment({**without_splits.env, "OMP_NUM_THREADS": "1"}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for fold in range(5)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in running]
    assert [process.returncode for process in running] == [0] * 5, outputs
    (model,) = without_splits.results_folder.iterdir()
    assert len(list(model.glob("fold_*/checkpoint_final.pth"))) == 5
    assert len(os.listdir(model / "fold_0" / "validation")) == 2  # one case and summary.json
