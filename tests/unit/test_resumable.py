"""The bookkeeping of a training, on real ones in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nnplug
import pytest
import torch
from nnplug.trainer import build_trainer_class
from support.datasets import DatasetForTests
from support.small_trainings import write_recipe


@pytest.fixture
def trainer(tiny_dataset: DatasetForTests, tmp_path: Path) -> Any:
    plans, dataset_json = (
        json.loads((tiny_dataset.preprocessed_folder / name).read_text())
        for name in ("nnUNetPlans.json", "dataset.json")
    )
    trainer_class = build_trainer_class(nnplug.resolve(str(write_recipe(tmp_path))))
    with tiny_dataset.activated():
        yield trainer_class({**plans, "continue_training": False}, "3d_fullres", 0, dataset_json, torch.device("cpu"))


def test_a_log_that_can_not_be_written_ends_no_training(trainer: Any) -> None:
    trainer.print_to_log_file("before")
    log = Path(trainer.output_folder, "training_log.txt")
    assert log.read_text().endswith(": before\n")
    log.rename(log.with_name("kept"))
    log.mkdir()  # opening it fails as on a full disk
    trainer.print_to_log_file("after")
    log.rmdir()
    trainer.print_to_log_file("again", add_timestamp=False)
    assert log.read_text() == "again\n"
