"""The CSV and TensorBoard loggers, read back from disk."""

from __future__ import annotations

import csv
import math
import subprocess
import sys
from pathlib import Path

import nnplug_loggers
import pytest
from nnplug import EpochMetrics, NnplugError, TrainingRun

CSV, TENSORBOARD = "nnplug_csv_enabled", "nnplug_tensorboard_enabled"


@pytest.fixture(autouse=True)
def _nothing_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CSV, raising=False)
    monkeypatch.delenv(TENSORBOARD, raising=False)


def run_in(folder: Path, *, is_resumed: bool = False) -> TrainingRun:
    return TrainingRun(
        trainer="kiunet+num_epochs=5",
        dataset="Dataset004_Hippocampus",
        configuration="3d_fullres",
        plans="nnUNetPlans",
        fold="0",
        output_folder=folder,
        num_epochs=5,
        device="cpu",
        is_resumed=is_resumed,
        config={"name": "kiunet", "num_epochs": 5},
        labels=("anterior", "posterior"),
    )


def metrics_of(epoch: int, *, loss: float | None = None, dice: tuple[float, ...] = (0.5, 0.7)) -> EpochMetrics:
    return EpochMetrics(
        epoch=epoch,
        learning_rate=0.01 / (epoch + 1),
        train_loss=1 / (epoch + 1) if loss is None else loss,
        val_loss=2 / (epoch + 1),
        mean_dice=sum(dice) / len(dice),
        ema_dice=0.55,
        dice_per_class=dice,
        epoch_seconds=41.25,
        data_seconds=1.5,
    )


def log_epochs(run: TrainingRun, *epochs: EpochMetrics, ends: bool = True) -> None:
    nnplug_loggers.train_start(run)
    for metrics in epochs:
        nnplug_loggers.epoch_end(run, metrics)
    if ends:
        nnplug_loggers.train_end(run, {"status": "completed"})


def csv_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def text_of(folder: Path, tag: str) -> str:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return events.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0].decode()


def test_nothing_is_written_unless_enabled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log_epochs(run_in(tmp_path), metrics_of(0))
    monkeypatch.setenv(CSV, "0")
    monkeypatch.setenv(TENSORBOARD, "false")
    log_epochs(run_in(tmp_path), metrics_of(0))
    assert list(tmp_path.iterdir()) == []


def test_csv_has_one_row_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CSV, "1")
    log_epochs(run_in(tmp_path), metrics_of(0), metrics_of(1, dice=(math.nan, 0.25)))
    first, second = csv_rows(tmp_path)
    assert first == {
        "epoch": "0",
        "learning_rate": "0.01",
        "train_loss": "1.0",
        "val_loss": "2.0",
        "mean_dice": "0.6",
        "ema_dice": "0.55",
        "epoch_seconds": "41.25",
        "data_seconds": "1.5",
        "dice_anterior": "0.5",
        "dice_posterior": "0.7",
    }
    assert (second["epoch"], second["dice_anterior"], second["dice_posterior"]) == ("1", "nan", "0.25")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_csv_row_is_on_disk_before_the_training_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CSV, "true")
    run = run_in(tmp_path)
    nnplug_loggers.train_start(run)
    for epoch in range(2):
        nnplug_loggers.epoch_end(run, metrics_of(epoch))
        assert len(csv_rows(tmp_path)) == epoch + 1
    nnplug_loggers.train_end(run, {})


def test_csv_of_a_resumed_training_has_no_epoch_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CSV, "1")
    log_epochs(run_in(tmp_path), *(metrics_of(epoch, loss=10) for epoch in range(4)), ends=False)
    log_epochs(run_in(tmp_path, is_resumed=True), *(metrics_of(epoch, loss=20) for epoch in range(2, 5)))
    rows = [(int(row["epoch"]), float(row["train_loss"])) for row in csv_rows(tmp_path)]
    assert rows == [(0, 10), (1, 10), (2, 20), (3, 20), (4, 20)]


def test_csv_of_a_restarted_training_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CSV, "1")
    log_epochs(run_in(tmp_path), metrics_of(0, loss=10), metrics_of(1, loss=10))
    log_epochs(run_in(tmp_path), metrics_of(0, loss=20))
    assert [(row["epoch"], row["train_loss"]) for row in csv_rows(tmp_path)] == [("0", "20.0")]


@pytest.mark.parametrize("num_lost", [2, 12])
def test_csv_row_that_a_crash_cut_short_is_dropped(
    num_lost: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CSV, "1")
    log_epochs(run_in(tmp_path), metrics_of(0), metrics_of(1), ends=False)
    file = tmp_path / "metrics.csv"
    file.write_text(file.read_text()[:-num_lost])
    log_epochs(run_in(tmp_path, is_resumed=True), metrics_of(2))
    assert [(row["epoch"], row["dice_posterior"]) for row in csv_rows(tmp_path)] == [("0", "0.7"), ("2", "0.7")]


def test_tensorboard_has_every_value_at_its_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TENSORBOARD, "1")
    log_epochs(run_in(tmp_path), metrics_of(0), metrics_of(1))
    assert scalars(tmp_path, "loss/train") == [(0, 1.0), (1, 0.5)]
    assert scalars(tmp_path, "loss/val") == [(0, 2.0), (1, 1.0)]
    assert scalars(tmp_path, "learning_rate") == [(0, pytest.approx(0.01)), (1, pytest.approx(0.005))]
    assert scalars(tmp_path, "dice/mean") == [(0, pytest.approx(0.6)), (1, pytest.approx(0.6))]
    assert scalars(tmp_path, "dice/ema") == [(0, pytest.approx(0.55)), (1, pytest.approx(0.55))]
    assert scalars(tmp_path, "dice_per_class/posterior") == [(0, pytest.approx(0.7)), (1, pytest.approx(0.7))]
    assert scalars(tmp_path, "seconds/epoch") == [(0, 41.25), (1, 41.25)]
    assert scalars(tmp_path, "seconds/data") == [(0, 1.5), (1, 1.5)]
    assert '"num_epochs": 5' in text_of(tmp_path, "config")
    assert '"status": "completed"' in text_of(tmp_path, "result")


def test_tensorboard_of_a_resumed_training_has_no_epoch_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TENSORBOARD, "1")
    log_epochs(run_in(tmp_path), *(metrics_of(epoch, loss=10) for epoch in range(4)), ends=False)
    log_epochs(run_in(tmp_path, is_resumed=True), *(metrics_of(epoch, loss=20) for epoch in range(2, 5)))
    assert scalars(tmp_path, "loss/train") == [(0, 10), (1, 10), (2, 20), (3, 20), (4, 20)]


def test_tensorboard_values_are_on_disk_before_the_training_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TENSORBOARD, "1")
    run = run_in(tmp_path)
    nnplug_loggers.train_start(run)
    for epoch in range(3):
        nnplug_loggers.epoch_end(run, metrics_of(epoch, loss=epoch))
        assert scalars(tmp_path, "seconds/data")[-1][0] == epoch
    nnplug_loggers.train_end(run, {})


def test_nothing_is_logged_after_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CSV, "1")
    log_epochs(run_in(tmp_path), metrics_of(0))
    nnplug_loggers.epoch_end(run_in(tmp_path), metrics_of(1))
    assert len(csv_rows(tmp_path)) == 1


@pytest.mark.parametrize("variable", [CSV, TENSORBOARD])
def test_unknown_value_of_a_variable(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "yes")
    with pytest.raises(NnplugError) as error:
        nnplug_loggers.train_start(run_in(tmp_path))
    assert str(error.value) == f"The environment variable {variable} is 'yes'. Set it to 1 to log, or to 0 not to."


def test_missing_tensorboard_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TENSORBOARD, "1")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(NnplugError) as error:
        nnplug_loggers.train_start(run_in(tmp_path))
    assert str(error.value) == (
        "nnplug_tensorboard_enabled is 1, but TensorBoard is not installed. "
        "Install it with: pip install 'nnplug[tensorboard]'"
    )


def test_two_trainings_in_one_process_stay_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CSV, "1")
    folders = [tmp_path / "fold_0", tmp_path / "fold_1"]
    for folder in folders:
        folder.mkdir()
        nnplug_loggers.train_start(run_in(folder))
    for number, folder in enumerate(folders):
        nnplug_loggers.epoch_end(run_in(folder), metrics_of(0, loss=number))
    assert [csv_rows(folder)[0]["train_loss"] for folder in folders] == ["0.0", "1.0"]


def test_core_calls_the_loggers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnplug.discovery.registry import get_registry
    from nnplug.training.lifecycle import call_lifecycle

    monkeypatch.setenv(CSV, "1")
    record = next(record for record in get_registry().plugins if "nnplug_loggers" in record.entry_point)
    assert record.is_loaded, record
    run = run_in(tmp_path)
    call_lifecycle("train_start", run=run)
    call_lifecycle("epoch_end", run=run, metrics=metrics_of(0))
    call_lifecycle("checkpoint_saved", run=run, path=tmp_path / "checkpoint_best.pth")
    call_lifecycle("train_end", run=run, result={"status": "completed"})
    assert len(csv_rows(tmp_path)) == 1


def test_importing_the_plugin_imports_nothing_heavy() -> None:
    code = "import sys, nnplug_loggers; print([m for m in ('torch', 'tensorboard', 'numpy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
