"""The bookkeeping of a training, on real ones in this process."""

from __future__ import annotations

import csv
import json
import os
import random
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which
from typing import Any
from unittest.mock import Mock

import nnplug
import numpy as np
import pytest
import torch
from nnplug import NnplugError
from nnplug.models.checkpoint import load, save
from nnplug.processes.interrupts import TrainingInterrupted
from nnplug.training.checkpointing import CheckpointingTrainer
from nnplug.training.data_seams import DataSeams
from nnplug.training.trainer import build_trainer_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from support.datasets import DatasetForTests
from support.plugin_packages import PluginSite
from support.small_trainings import small_config, train_here

MakeTrainer = Callable[..., Any]


@pytest.fixture
def make_trainer(tiny_dataset: DatasetForTests) -> Iterator[MakeTrainer]:
    folder = tiny_dataset.preprocessed_folder
    plans, dataset_json = (json.loads((folder / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json"))

    def make(**fields: Any) -> Any:
        trainer_class = build_trainer_class(nnplug.resolve(small_config(**fields)))
        arguments = ("3d_fullres", 0, dataset_json, torch.device("cpu"))
        return trainer_class({**plans, "continue_training": False}, *arguments)

    with tiny_dataset.activated():
        yield make


def test_a_log_that_can_not_be_written_ends_no_training(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    trainer.print_to_log_file("before")
    log = Path(trainer.output_folder, "training_log.txt")
    assert log.read_text().endswith(": before\n")
    log.rename(log.with_name("kept"))
    log.mkdir()  # opening it fails as on a full disk
    trainer.print_to_log_file("after")
    log.rmdir()
    trainer.print_to_log_file("again", add_timestamp=False)
    assert log.read_text() == "again\n"


def test_a_seeded_training_that_goes_on_does_not_repeat_its_beginning(make_trainer: MakeTrainer) -> None:
    def draw() -> tuple[float, ...]:
        return (torch.rand(1).item(), np.random.rand(), random.random())

    begun = make_trainer(seed=3)
    begun.initialize()
    drawn = [draw()]
    for step in (1, 2, 2):
        begun._epoch_losses = [0.5] * step
        resumed = make_trainer(seed=3)
        resumed.load_checkpoint(begun._checkpoint(in_epoch=True))
        drawn.append(draw())
    assert drawn[2] == drawn[3]
    assert all(len(set(numbers)) == 3 for numbers in zip(*drawn, strict=True))


LISTENER = """
import torch
HEARD = []

@nnplug.hookimpl
def train_start(run):
    assert run.labels == ("ball", "box")  # a listener that raises hears no more
    HEARD.append(("train_start", run.is_resumed))

@nnplug.hookimpl
def epoch_end(run, metrics):
    HEARD.append(("epoch_end", metrics.epoch))

@nnplug.hookimpl
def checkpoint_saved(run, path):
    checkpoint = torch.load(path, weights_only=True)
    HEARD.append((path.name, (checkpoint["current_epoch"], checkpoint["nnplug"]["step"])))

@nnplug.hookimpl
def train_end(run, result):
    HEARD.append(("train_end", result["status"]))
"""


class SignalledInTheSecondEpoch(nnUNetTrainer):
    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        if self.current_epoch == 1 and not os.environ.get("UNDISTURBED"):
            os.kill(os.getpid(), signal.SIGTERM)


def test_loggers_hear_of_epochs_and_of_complete_checkpoints(
    tiny_dataset: DatasetForTests, installed: PluginSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed.add("listener", code=LISTENER)
    config = small_config(base_trainer=SignalledInTheSecondEpoch, num_epochs=3, num_iterations_per_epoch=2)
    with pytest.raises(TrainingInterrupted):
        train_here(tiny_dataset, config)
    import listener  # type: ignore[import-not-found]

    heard = [event for event in listener.HEARD if event[0] != "checkpoint_best.pth"]
    assert heard == [
        ("train_start", False),
        ("epoch_end", 0),
        ("checkpoint_latest.pth", (1, 1)),
        ("train_end", "interrupted"),
    ]
    assert ("checkpoint_best.pth", (1, 0)) in listener.HEARD[:-1]

    listener.HEARD.clear()
    monkeypatch.setenv("UNDISTURBED", "1")
    train_here(tiny_dataset, config, continue_training=True)
    heard = [event for event in listener.HEARD if event[0] != "checkpoint_best.pth"]
    assert heard == [
        ("train_start", True),
        ("epoch_end", 1),
        ("epoch_end", 2),
        ("checkpoint_final.pth", (3, 0)),
        ("train_end", "completed"),
    ]


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
    assert [event for event in listener.HEARD if event[0] == "train_end"] == [
        ("train_end", "interrupted"),
        ("train_end", "completed"),
    ]


def test_a_restart_that_is_refused_late_leaves_the_training_where_it_is(
    tiny_dataset: DatasetForTests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_here(tiny_dataset, small_config())
    (fold,) = tiny_dataset.results_folder.glob("*/fold_0")
    before = sorted(path.name for path in fold.iterdir() if not path.name.startswith("training_log_"))
    weights = load(fold / "checkpoint_final.pth")
    weights["network_weights"].pop("encoder.stages.0.0.convs.0.conv.weight")
    save(weights, tmp_path / "others.pth")

    with pytest.raises(NnplugError, match=r"others.pth lack .* \(1 of"):
        train_here(tiny_dataset, small_config(), restart=True, pretrained_weights=tmp_path / "others.pth")
    monkeypatch.setenv("nnplug_csv_enabled", "perhaps")
    for mode in ("restart", "continue_training"):
        with pytest.raises(NnplugError, match="nnplug_csv_enabled is 'perhaps'"):
            train_here(tiny_dataset, small_config(), **{mode: True})
    monkeypatch.delenv("nnplug_csv_enabled")
    for error in (NnplugError, ValueError, KeyboardInterrupt):  # of a sampler, and of a user who has seen enough
        monkeypatch.setattr(DataSeams, "get_dataloaders", Mock(side_effect=error("no")))
        with pytest.raises(error):
            train_here(tiny_dataset, small_config(), restart=True)

    assert sorted(path.name for path in fold.iterdir() if not path.name.startswith("training_log_")) == before
    assert not list(fold.parent.glob("replaced_*"))


def test_the_latest_checkpoint_is_written_when_five_minutes_have_passed(
    tiny_dataset: DatasetForTests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch takes 160 s on this clock; ``save_every`` is nnU-Net's 50."""
    saved: list[tuple[str, int]] = []
    monkeypatch.setattr(Clock, "now", 1000.0)
    for module in ("resumable", "checkpointing"):
        monkeypatch.setattr(f"nnplug.training.{module}.time", lambda: Clock.now)
    write = CheckpointingTrainer._write
    monkeypatch.setattr(
        CheckpointingTrainer,
        "_write",
        lambda self, path, content: (saved.append((path.name, self.current_epoch)), write(self, path, content)),
    )
    train_here(tiny_dataset, small_config(base_trainer=Clock, num_epochs=5))
    assert [event for event in saved if event[0] != "checkpoint_best.pth"] == [
        ("checkpoint_latest.pth", 1),
        ("checkpoint_latest.pth", 3),
        ("checkpoint_final.pth", 4),
    ]


class Clock(nnUNetTrainer):
    now = 0.0

    def on_epoch_start(self) -> None:
        super().on_epoch_start()
        Clock.now += 160


class DiskFillsUp(nnUNetTrainer):
    """From the second epoch on no file can grow beyond 100 kB; a checkpoint has 220 kB."""

    def on_epoch_start(self) -> None:
        super().on_epoch_start()
        if self.current_epoch == 1 and not os.environ.get("UNDISTURBED"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_a_training_on_a_full_disk_ends_with_a_line_and_goes_on_later(
    tiny_dataset: DatasetForTests, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(base_trainer=DiskFillsUp, num_epochs=3, save_every=1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(NnplugError, match=r"Could not write .*\.pth: File too large .* Free some space"):
            train_here(tiny_dataset, config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (fold,) = tiny_dataset.results_folder.glob("*/fold_0")
    assert load(fold / "checkpoint_latest.pth")["current_epoch"] == 1

    monkeypatch.setenv("UNDISTURBED", "1")
    [result] = train_here(tiny_dataset, config, continue_training=True)
    assert result["status"] == "completed"
    log = load(fold / "checkpoint_final.pth")["logging"]
    assert {key: len(series) for key, series in log.items()} == dict.fromkeys(log, 3)


def test_what_a_training_prints_and_leaves(
    tiny_dataset: DatasetForTests, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("nnplug_csv_enabled", "1")
    train_here(tiny_dataset, small_config())
    printed = capsys.readouterr().out
    assert "epoch 1/1  loss" in printed
    assert "train_loss" not in printed
    (fold,) = tiny_dataset.results_folder.glob("*/fold_0")
    log = (fold / "training_log.txt").read_text()
    assert "train_loss" in log
    with (fold / "metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0"]
    if which("dot"):
        assert (fold / "network_architecture.pdf").read_bytes().startswith(b"%PDF")
    else:
        assert "No network_architecture.pdf: Graphviz's program dot is missing" in log

    monkeypatch.setenv("nnUNet_verbose", "1")
    train_here(tiny_dataset, small_config(), folds=1)
    assert "train_loss" in capsys.readouterr().out
