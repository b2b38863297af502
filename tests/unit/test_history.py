"""The history of runs: from checkpoints, from nnU-Net's text logs, as table, CSV, JSON and figure."""

from __future__ import annotations

import csv
import json
import math
import re
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nnplug import cli
from nnplug.errors import NnplugError
from nnplug.history import load_history, read_history
from nnplug.history.folds import label_folds
from nnplug.models.checkpoint import load

START = datetime(2024, 5, 3, 12, 0, 0).timestamp()
DATASET = {"labels": {"background": 0, "posterior": 2, "anterior": 1, "ignore": 3}}


def logging(num_epochs: int, *, start: float = START, shift: float = 0.0) -> dict[str, list[Any]]:
    """nnU-Net's log: epoch i has training loss 1 - 0.1 i, Dice 0.1 i and NaN in its first epoch."""
    epochs = range(num_epochs)
    return {
        "mean_fg_dice": [np.float64(0.1 * i + shift) for i in epochs],
        "ema_fg_dice": [np.float64(0.05 * i + shift) for i in epochs],
        "dice_per_class_or_region": [
            [np.float32(0.1 * i), np.float32(0.2 * i) if i else np.float32("nan")] for i in epochs
        ],
        "train_losses": [np.float32(1 - 0.1 * i) for i in epochs],
        "val_losses": [np.float32(1.5 - 0.1 * i) for i in epochs],
        "lrs": [0.01 * 0.9**i for i in epochs],
        "epoch_start_timestamps": [start + 100 * i for i in epochs],
        "epoch_end_timestamps": [start + 100 * i + 60 + i for i in epochs],
    }


def save(fold: Path, name: str, log: dict[str, list[Any]]) -> None:
    """A checkpoint as stock nnU-Net writes it."""
    fold.mkdir(parents=True, exist_ok=True)
    content = {
        "network_weights": {"w": torch.zeros(5)},
        "init_args": {},
        "trainer_name": "nnUNetTrainer",
        "logging": log,
    }
    torch.save(content, fold / f"checkpoint_{name}.pth")


def write_log(
    fold: Path, name: str, epochs: range, *, ends: bool = True, numpy_2: bool = True, loss: float = 0.5
) -> None:
    """nnU-Net's text log; with ``ends=False`` the last epoch was killed in the middle."""
    fold.mkdir(parents=True, exist_ok=True)
    lines = [
        "",
        "#####\nPlease cite the following paper: Epoch 7\n#####\n",
        "2024-05-03 11:59:58.0: do_dummy_2d_data_aug: False",
    ]
    for epoch in epochs:
        at = f"2024-05-03 12:{epoch:02d}:00.123456: "
        dice = [round(0.25 + 0.01 * epoch, 4), "nan"]
        shown = ", ".join(f"np.float32({value})" if numpy_2 else f"{value}" for value in dice)
        lines += [at + " ", at + f"Epoch {epoch} ", at + f"Current learning rate: {0.01 - 0.001 * epoch:.5f} "]
        if epoch == epochs[-1] and not ends:
            break
        lines += [
            at + f"train_loss {loss} ",
            at + "val_loss -1e-05 ",
            at + f"Pseudo dice [{shown}] ",
            at + f"Epoch time: {30.5 + epoch} s ",
            at + "Yayy! New best EMA pseudo Dice: 0.9 ",
        ]
    (fold / f"training_log_{name}.txt").write_text("\n".join(lines))


@pytest.fixture
def fold(tmp_path: Path) -> Path:
    folder = tmp_path / "nnUNetTrainer__nnUNetPlans__2d"
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps(DATASET))
    return folder / "fold_0"


# --- checkpoints


def test_rows_of_a_checkpoint(fold: Path) -> None:
    save(fold, "final", logging(3))
    rows = read_history(fold)
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert list(rows[2]) == [
        "epoch",
        "train_loss",
        "val_loss",
        "mean_dice",
        "ema_dice",
        "dice_anterior",
        "dice_posterior",
        "learning_rate",
        "epoch_seconds",
        "started",
    ]
    last = {key: value for key, value in rows[2].items() if key not in ("epoch", "started")}
    assert last == pytest.approx(
        {
            "train_loss": 0.8,
            "val_loss": 1.3,
            "mean_dice": 0.2,
            "ema_dice": 0.1,
            "dice_anterior": 0.2,
            "dice_posterior": 0.4,
            "learning_rate": 0.0081,
            "epoch_seconds": 62,
        },
        abs=1e-6,
    )
    assert math.isnan(rows[0]["dice_posterior"])
    assert datetime.fromisoformat(rows[2]["started"]).timestamp() == START + 200
    assert rows[2]["started"].startswith("2024-05-03T12:03:20")


def test_model_folder_with_one_fold_is_enough(fold: Path) -> None:
    save(fold, "best", logging(2))
    (fold.parent / "replaced_fold_0_20240101_000000").mkdir()
    assert str(read_history(fold.parent)) == str(read_history(fold))  # as text: NaN is unequal to itself
    assert load_history(fold.parent).sources == [fold / "checkpoint_best.pth"]


def test_checkpoint_that_ended_last_counts(fold: Path) -> None:
    save(fold, "final", logging(9, start=START - 10_000))  # of an earlier training in the same folder
    save(fold, "latest", logging(2))
    save(fold, "best", logging(4))
    history = load_history(fold)
    assert len(history.rows) == 4
    assert history.sources == [fold / "checkpoint_best.pth"]


def test_epoch_in_which_a_run_was_interrupted_is_left_out(fold: Path) -> None:
    log = logging(3)
    for key in ("lrs", "epoch_start_timestamps"):
        log[key].append(log[key][-1])
    save(fold, "latest", log)
    assert len(read_history(fold)) == 3


def test_weights_are_not_read(fold: Path) -> None:
    """The weights' bytes are damaged, which a full load would refuse."""
    save(fold, "final", logging(2))
    path = fold / "checkpoint_final.pth"
    data = bytearray(path.read_bytes())
    place = data.index(b"/data/0") + 7
    data[place + 60 : place + 64] = b"\xff" * 4
    path.write_bytes(data)
    with pytest.raises(NnplugError, match=r"the checksum of .* is wrong"):
        load(path)
    assert len(read_history(fold)) == 2


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"background": 0, "whole": [1, 2], "core": [2]}, ["dice_whole", "dice_core"]),
        ({"background": 0, "core": [2], "whole": [1, 2], "ignore": 3}, ["dice_core", "dice_whole"]),
        ({"background": 0, "only one": 1}, ["dice_1", "dice_2"]),
    ],
)
def test_dice_columns_follow_nnunets_order(fold: Path, labels: dict[str, Any], expected: list[str]) -> None:
    (fold.parent / "dataset.json").write_text(json.dumps({"labels": labels}))
    save(fold, "final", logging(1))
    assert [column for column in read_history(fold)[0] if column.startswith("dice_")] == expected


def test_columns_agree_with_nnunets_label_manager(fold: Path) -> None:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    labels = {"background": 0, "z": [3], "a": [1, 2], "ignore": 4}
    (fold.parent / "dataset.json").write_text(json.dumps({"labels": labels}))
    save(fold, "final", logging(1))
    manager = LabelManager(labels, regions_class_order=[1, 2])
    names = [
        next(name for name, value in labels.items() if value == [*region]) for region in manager.foreground_regions
    ]
    assert [column for column in read_history(fold)[0] if column.startswith("dice_")] == [
        f"dice_{name}" for name in names
    ]


def test_dataset_json_may_be_missing(fold: Path) -> None:
    (fold.parent / "dataset.json").unlink()
    save(fold, "final", logging(1))
    assert "dice_2" in read_history(fold)[0]


# --- text logs


@pytest.mark.parametrize("numpy_2", [True, False])
def test_run_without_a_checkpoint_is_read_from_its_log(fold: Path, numpy_2: bool) -> None:
    write_log(fold, "2024_5_3_12_0_0", range(3), numpy_2=numpy_2)
    rows = read_history(fold)
    assert [row["epoch"] for row in rows] == [0, 1, 2]
    assert math.isnan(rows[1].pop("dice_posterior"))
    started = rows[1].pop("started")
    assert datetime.fromisoformat(started) == datetime(2024, 5, 3, 12, 1, 0).astimezone()
    assert rows[1] == pytest.approx(
        {
            "epoch": 1,
            "train_loss": 0.5,
            "val_loss": -1e-05,
            "mean_dice": 0.26,
            "ema_dice": 0.9 * 0.25 + 0.1 * 0.26,
            "dice_anterior": 0.26,
            "learning_rate": 0.009,
            "epoch_seconds": 31.5,
        }
    )


def test_unfinished_epoch_of_a_log_is_left_out(fold: Path) -> None:
    write_log(fold, "2024_5_3_12_0_0", range(3), ends=False)
    assert [row["epoch"] for row in read_history(fold)] == [0, 1]


def test_continued_run_takes_the_later_log_from_where_it_went_on(fold: Path) -> None:
    write_log(fold, "2024_5_9_12_0_0", range(5), ends=False)
    write_log(fold, "2024_5_10_12_0_0", range(2, 4), loss=0.25)  # sorted by date, not by letters
    rows = read_history(fold)
    assert [(row["epoch"], row["train_loss"]) for row in rows] == [(0, 0.5), (1, 0.5), (2, 0.25), (3, 0.25)]


def test_log_adds_the_epochs_after_the_newest_checkpoint(fold: Path) -> None:
    save(fold, "latest", logging(2, shift=0.5))
    write_log(fold, "2024_5_3_12_0_0", range(4))
    history = load_history(fold)
    assert [row["epoch"] for row in history.rows] == [0, 1, 2, 3]
    assert history.rows[1]["train_loss"] == pytest.approx(0.9), "exact values come first"
    assert history.rows[2]["train_loss"] == 0.5
    assert history.rows[2]["ema_dice"] == pytest.approx(0.9 * 0.55 + 0.1 * 0.27)
    assert [path.name for path in history.sources] == ["checkpoint_latest.pth", "training_log_2024_5_3_12_0_0.txt"]


def test_unreadable_checkpoint_leaves_the_log_and_is_told(fold: Path) -> None:
    write_log(fold, "2024_5_3_12_0_0", range(2))
    (fold / "checkpoint_final.pth").write_bytes(b"PK\x03\x04 half")
    history = load_history(fold)
    assert len(history.rows) == 2
    assert history.messages == [f"{fold}/checkpoint_final.pth is damaged or not a checkpoint (its end is missing)."]


def test_log_that_nnunet_wrote_is_understood(fold: Path) -> None:
    """nnU-Net's own trainer methods write the lines; the values come back rounded as it rounds."""
    from nnunetv2.training.logging.nnunet_logger import MetaLogger
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    fold.mkdir()
    trainer = nnUNetTrainer.__new__(nnUNetTrainer)
    trainer.local_rank, trainer.is_ddp, trainer.disable_checkpointing = 0, False, True
    trainer.network = torch.nn.Conv2d(1, 1, 1)
    trainer.optimizer = torch.optim.SGD(trainer.network.parameters(), 0.0123456)
    trainer.lr_scheduler = SimpleNamespace(step=lambda _epoch: None)
    trainer.logger, trainer._best_ema, trainer.save_every, trainer.num_epochs = MetaLogger(fold, False), None, 50, 2
    trainer.log_file = str(fold / "training_log_2024_5_3_12_00_00.txt")
    trainer.output_folder = str(fold)
    trainer.logger.plot_progress_png = lambda _folder: None
    for trainer.current_epoch in range(2):
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        trainer.on_train_epoch_end([{"loss": np.float32(0.123456)[None]}])
        counts = {"tp_hard": np.float32([3, 0]), "fp_hard": np.float32([1, 0]), "fn_hard": np.float32([2, 0])}
        trainer.on_validation_epoch_end([{"loss": np.float32(-0.98765)[None], **counts}])
        trainer.on_epoch_end()
    rows = read_history(fold)
    assert [row["epoch"] for row in rows] == [0, 1]
    assert rows[1]["train_loss"] == 0.1235
    assert rows[1]["val_loss"] in (-0.9876, -0.9877)  # as rounded from float32
    assert rows[1]["learning_rate"] == 0.01235
    assert rows[1]["dice_anterior"] == rows[1]["mean_dice"] == 0.6667
    assert math.isnan(rows[1]["dice_posterior"])
    assert 0 <= rows[1]["epoch_seconds"] < 10


# --- what is no run


def test_several_folds_are_asked_for(fold: Path) -> None:
    save(fold, "final", logging(1))
    save(fold.with_name("fold_1"), "final", logging(1))
    with pytest.raises(NnplugError) as caught:
        read_history(fold.parent)
    assert str(caught.value) == f"{fold.parent} holds fold_0, fold_1. Name one: {fold}"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _fold: None, r"There is no folder .*fold_0\. Give the folder of a fold: "),
        (
            lambda fold: fold.mkdir(),
            r"fold_0 is not a training: it holds no checkpoint_\*\.pth and no training_log_\*\.txt",
        ),
        (lambda fold: write_log(fold, "2024_1_1_1_1_1", range(1), ends=False), "fold_0 has no finished epoch yet"),
        (
            lambda fold: save(fold, "best", {}),
            r"no finished epoch yet\. .*checkpoint_best\.pth has no log of nnU-Net's",
        ),
    ],
)
def test_what_is_no_run_is_told(fold: Path, make: Any, message: str) -> None:
    make(fold)
    with pytest.raises(NnplugError, match=message):
        read_history(fold)


# --- the command


def test_command_prints_a_table(fold: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(fold, "final", logging(3))
    assert cli.main(["history", str(fold)]) == 0
    out = capsys.readouterr().out
    header, *lines = out.splitlines()
    names = (
        "epoch|train loss|val loss|mean dice|ema dice|dice_anterior|dice_posterior|learning rate|epoch seconds|started"
    )
    assert re.split(r"  +", header.strip()) == names.split("|")
    assert lines[2].split()[:7] == ["2", "0.8000", "1.3000", "0.2000", "0.1000", "0.2000", "0.4000"]
    assert "Best moving average of the Dice: 0.1000 in epoch 2.\nFrom checkpoint_final.pth.\n" in out


@pytest.fixture
def two_folds(fold: Path) -> Path:
    """A model with two folds and one that has just begun."""
    save(fold, "final", logging(3))
    save(fold.with_name("fold_1"), "final", logging(2))
    write_log(fold.with_name("fold_2"), "2024_1_1_1_1_1", range(1), ends=False)
    return fold.parent


def test_folds_of_a_model_in_one_table(two_folds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["history", str(two_folds)]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert [line.split()[:2] for line in lines[:6]] == [
        ["fold", "epoch"],
        *(["0", str(epoch)] for epoch in range(3)),
        *(["1", str(epoch)] for epoch in range(2)),
    ]
    assert lines[6:] == [
        "fold 0: Best moving average of the Dice: 0.1000 in epoch 2.",
        "fold 0: From checkpoint_final.pth.",
        "fold 1: Best moving average of the Dice: 0.0500 in epoch 1.",
        "fold 1: From checkpoint_final.pth.",
    ]
    assert shown.err == f"nnplug: {two_folds}/fold_2 has no finished epoch yet.\n"
    assert cli.main(["history", str(two_folds), "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [(run["fold"], len(run["epochs"])) for run in runs] == [("0", 3), ("1", 2)]


def test_folds_of_two_models_in_one_file(two_folds: Path, tmp_path: Path) -> None:
    other = two_folds.with_name("other__nnUNetPlans__2d")
    other.mkdir()
    save(other / "fold_0", "final", logging(1))  # without dataset.json its classes have numbers
    files = [tmp_path / "h.csv", tmp_path / "h.svg"]
    assert cli.main(["history", str(two_folds), str(other), "--csv", str(files[0]), "--plot", str(files[1])]) == 0
    with open(files[0], newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["fold"], row["epoch"]) for row in rows[::2]] == [
        (two_folds.name, "0", "0"),
        (two_folds.name, "0", "2"),
        (two_folds.name, "1", "1"),
    ]
    assert (rows[-1]["model"], rows[-1]["dice_1"] != "", rows[-1]["dice_anterior"]) == (other.name, True, "")
    drawn = files[1].read_text()
    for text in (f"{two_folds.name}, fold 0", f"{two_folds.name}, fold 1", f"{other.name}, fold 0", "validation loss"):
        assert re.search(rf">{re.escape(text)}</text>", drawn), text


def test_a_model_of_two_data_sets(tmp_path: Path) -> None:
    folders = [tmp_path / data / "m__p__2d" / "fold_0" for data in ("Dataset004_A", "Dataset005_B")]
    assert label_folds(folders) == [
        {"model": "Dataset004_A/m__p__2d", "fold": "0"},
        {"model": "Dataset005_B/m__p__2d", "fold": "0"},
    ]
    assert label_folds(folders[:1]) == [{"fold": "0"}]


def test_table_leaves_out_many_classes_and_says_so(fold: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = logging(2)
    log["dice_per_class_or_region"] = [[np.float32(0.5)] * 30] * 2
    save(fold, "final", log)
    cli.main(["history", str(fold)])
    out = capsys.readouterr().out
    assert "dice_7" not in out
    assert "The Dice of 30 classes is in --csv and --json." in out


def test_command_writes_csv(fold: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(fold, "final", logging(3))
    assert cli.main(["history", str(fold), "--csv", str(tmp_path / "h.csv")]) == 0
    assert capsys.readouterr().out == ""
    with open(tmp_path / "h.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert float(rows[2]["mean_dice"]) == pytest.approx(0.2)
    assert rows[0]["dice_posterior"] == ""


def test_command_prints_json_that_every_reader_takes(fold: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(fold, "final", logging(2))
    assert cli.main(["history", str(fold), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert printed["sources"] == [str(fold / "checkpoint_final.pth")]
    assert printed["epochs"][0]["dice_posterior"] is None
    assert printed["epochs"][1]["epoch_seconds"] == 61.0


@pytest.mark.parametrize(
    ("suffix", "begin"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml"), ("PNG", b"\x89PNG")]
)
def test_command_draws(fold: Path, tmp_path: Path, suffix: str, begin: bytes) -> None:
    save(fold, "final", logging(5))
    assert cli.main(["history", str(fold), "--plot", str(tmp_path / f"h.{suffix}")]) == 0
    assert (tmp_path / f"h.{suffix}").read_bytes().startswith(begin)


def test_figure_shows_every_curve(fold: Path, tmp_path: Path) -> None:
    save(fold, "final", logging(5))
    cli.main(["history", str(fold), "--plot", str(tmp_path / "h.svg")])
    drawn = (tmp_path / "h.svg").read_text()
    texts = ("loss", "training", "validation", "Dice (pseudo)", "mean", "moving average", "anterior", "posterior")
    for text in (*texts, "learning rate", "seconds per epoch"):
        assert re.search(rf">{re.escape(text)}</text>", drawn), text


def test_one_epoch_can_be_drawn(fold: Path, tmp_path: Path) -> None:
    save(fold, "final", logging(1))
    assert cli.main(["history", str(fold), "--plot", str(tmp_path / "h.pdf")]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plot", "h.jpg"], "nnplug: error: h.jpg: a plot is a .png, .pdf or .svg file.\n"),
        (["--csv", "gone/h.csv"], "nnplug: error: Could not write gone/h.csv: No such file or directory"),
    ],
)
def test_bad_files_are_told(
    fold: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    save(fold, "final", logging(1))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["history", str(fold), *arguments]) == 2
    assert capsys.readouterr().err.startswith(message)


def test_command_tells_what_it_could_not_read(fold: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(fold, "best", logging(1))
    (fold / "checkpoint_latest.pth").write_bytes(b"")
    assert cli.main(["history", str(fold)]) == 0
    assert "checkpoint_latest.pth is damaged or not a checkpoint (it is empty)." in capsys.readouterr().err
