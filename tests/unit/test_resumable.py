"""The bookkeeping of a training, on real ones in this process."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import nnplug
import pytest
import torch
from nnplug.interrupts import TrainingInterrupted
from nnplug.trainer import build_trainer_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from support.datasets import DatasetForTests
from support.plugin_packages import PluginSite
from support.small_trainings import small_config, train_here


@pytest.fixture
def trainer(tiny_dataset: DatasetForTests) -> Any:
    plans, dataset_json = (
        json.loads((tiny_dataset.preprocessed_folder / name).read_text())
        for name in ("nnUNetPlans.json", "dataset.json")
    )
    trainer_class = build_trainer_class(nnplug.resolve(small_config()))
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


LISTENER = """
HEARD = []

@nnplug.hookimpl
def train_end(run, result):
    HEARD.append((result["status"], result.get("epoch")))
"""


class SignalledAtTheEnd(nnUNetTrainer):
    """Gets SLURM's signal when the last step is done."""

    def on_train_end(self) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        super().on_train_end()


def test_a_signal_after_the_last_step_comes_before_the_validation(
    tiny_dataset: DatasetForTests, installed: PluginSite
) -> None:
    installed.add("listener", code=LISTENER)
    config = small_config(base_trainer=SignalledAtTheEnd)
    with pytest.raises(TrainingInterrupted) as caught:
        train_here(tiny_dataset, config)

    import listener  # type: ignore[import-not-found]

    assert "Interrupted by SIGUSR1 at the end of the training; saved checkpoint_final.pth in " in str(caught.value)
    (fold,) = tiny_dataset.results_folder.glob("*/fold_0")
    assert (fold / "checkpoint_final.pth").exists()
    assert not (fold / "checkpoint_latest.pth").exists()
    assert not (fold / "validation").exists()
    [result] = train_here(tiny_dataset, config, continue_training=True)
    assert result["status"] == "completed"
    assert listener.HEARD == [("interrupted", 1), ("completed", None)]
