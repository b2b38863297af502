"""The history of a run, nnplug's or stock nnU-Net's: one row an epoch, from its checkpoints and its text logs.

A checkpoint holds exact values. The text logs hold rounded ones; they serve for the epochs that no checkpoint has (the
run goes on, or was killed) and for runs without a readable checkpoint.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from nnplug.datasets import foreground_names
from nnplug.errors import NnplugError
from nnplug.files.atomic_file import replace_file
from nnplug.files.json_files import read_json
from nnplug.history.log import LoggedEpoch, read_logs

_CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth", "checkpoint_previous.pth")
_KEYS = {
    "train_losses",
    "val_losses",
    "mean_fg_dice",
    "ema_fg_dice",
    "dice_per_class_or_region",
    "lrs",
    "epoch_start_timestamps",
    "epoch_end_timestamps",
}
_EMA_OLD_SHARE = 0.9  # nnU-Net's moving average of the Dice

Row = dict[str, Any]


@dataclass(frozen=True)
class History:
    """Rows and where they come from.

    Args:
        rows: one a finished epoch: ``epoch`` (from 0, as nnU-Net counts), ``train_loss``, ``val_loss``, ``mean_dice``,
            ``ema_dice``, ``dice_<label>`` of each class or region (0..1, NaN where the label did not occur),
            ``learning_rate``, ``epoch_seconds``, ``started`` (ISO 8601, local time).
        sources: the files, in the order they were used.
        messages: what could not be read.
    """

    rows: list[Row]
    sources: list[Path]
    messages: list[str]


def read_history(run: Path) -> list[Row]:
    """The rows of a run; see ``History``.

    Args:
        run: a fold folder, or a model folder with one fold.

    Raises:
        NnplugError: no such run, several folds, or nothing to read yet.
    """
    return load_history(run).rows


def load_history(run: Path) -> History:
    """As ``read_history``, with the files that the rows come from."""
    fold_folder = find_fold(Path(run))
    messages: list[str] = []
    checkpoint, logging = _newest_logging(fold_folder, messages)
    logs, epochs = read_logs(fold_folder)
    epochs = [epoch for epoch in epochs if epoch.epoch >= _num_epochs(logging)]
    num_classes = len(_classes(logging, epochs))
    names = _dice_columns(fold_folder.parent, num_classes)
    rows = _rows_of_checkpoint(logging, names)
    sources = [checkpoint] if checkpoint is not None and rows else []
    if epochs:
        rows += _rows_of_log(epochs, names, rows[-1]["ema_dice"] if rows else None)
        sources += logs
    if not rows:
        raise NnplugError(f"{fold_folder} has no finished epoch yet. {' '.join(messages)}".rstrip())
    return History(rows, sources, messages)


def find_fold(run: Path) -> Path:
    """The fold folder that ``run`` names.

    Raises:
        NnplugError: it does not exist, is no run, or holds several folds.
    """
    folds = find_folds(run)
    if len(folds) > 1:
        raise NnplugError(f"{run} holds {', '.join(fold.name for fold in folds)}. Name one: {folds[0]}")
    return folds[0]


def find_folds(run: Path) -> list[Path]:
    """``run`` itself if it is a fold folder, or the folds in it. Raises NnplugError as ``find_fold``."""
    if not run.is_dir():
        raise NnplugError(
            f"There is no folder {run}. Give the folder of a fold: .../TRAINER__PLANS__CONFIGURATION/fold_0"
        )
    if _is_fold(run):
        return [run]
    folds = sorted(folder for folder in run.glob("fold_*") if folder.is_dir() and _is_fold(folder))
    if not folds:
        raise NnplugError(f"{run} is not a training: it holds no checkpoint_*.pth and no training_log_*.txt.")
    return folds


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as CSV with a header; NaN is an empty cell. Raises NnplugError if the file can not be written."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if _is_nan(value) else value for key, value in row.items()} for row in rows)
    replace_file(Path(path), lambda file: file.write(text.getvalue().encode()))


def _is_fold(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in ("checkpoint_*.pth", "training_log*.txt"))


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _newest_logging(fold_folder: Path, messages: list[str]) -> tuple[Path | None, dict[str, list[Any]]]:
    """The log inside the checkpoint whose last epoch ended last: a new training may lie beside an old final one."""
    newest: tuple[Path | None, dict[str, list[Any]]] = (None, {})
    newest_end = -math.inf
    for name in _CHECKPOINTS:
        path = fold_folder / name
        if not path.exists():
            continue
        try:
            logging = _logging_of(path)
        except NnplugError as error:
            messages.append(str(error))
            continue
        end = logging["epoch_end_timestamps"][-1] if _num_epochs(logging) else -math.inf
        if newest[0] is None or end > newest_end:
            newest, newest_end = (path, logging), end
    return newest


def _logging_of(path: Path) -> dict[str, list[Any]]:
    from nnplug.models.checkpoint import load

    logging = load(path, read_weights=False).get("logging")
    if not isinstance(logging, dict) or not logging.keys() >= _KEYS:
        raise NnplugError(f"{path} has no log of nnU-Net's in it.")
    return logging


def _num_epochs(logging: Mapping[str, Sequence[Any]]) -> int:
    """Finished epochs; the one in which a run was interrupted has a beginning only."""
    return min((len(logging[key]) for key in _KEYS), default=0) if logging else 0


def _classes(logging: Mapping[str, Sequence[Any]], epochs: Sequence[LoggedEpoch]) -> Sequence[Any]:
    if _num_epochs(logging):
        return list(logging["dice_per_class_or_region"][0])
    return epochs[0].dice_per_class if epochs else ()


def _dice_columns(model_folder: Path, num_classes: int) -> list[str]:
    """``dice_<label>`` in nnU-Net's order; numbered from 1 where dataset.json does not tell."""
    names = foreground_names((read_json(model_folder / "dataset.json") or {}).get("labels", {}))
    if len(names) != num_classes:
        names = [str(number + 1) for number in range(num_classes)]
    return [f"dice_{name}" for name in names]


def _rows_of_checkpoint(logging: Mapping[str, Sequence[Any]], dice_columns: Sequence[str]) -> list[Row]:
    return [
        {
            "epoch": epoch,
            "train_loss": float(logging["train_losses"][epoch]),
            "val_loss": float(logging["val_losses"][epoch]),
            "mean_dice": float(logging["mean_fg_dice"][epoch]),
            "ema_dice": float(logging["ema_fg_dice"][epoch]),
            **dict(zip(dice_columns, map(float, logging["dice_per_class_or_region"][epoch]), strict=False)),
            "learning_rate": float(logging["lrs"][epoch]),
            "epoch_seconds": float(logging["epoch_end_timestamps"][epoch] - logging["epoch_start_timestamps"][epoch]),
            "started": _local_time(datetime.fromtimestamp(logging["epoch_start_timestamps"][epoch])),
        }
        for epoch in range(_num_epochs(logging))
    ]


def _rows_of_log(epochs: Sequence[LoggedEpoch], dice_columns: Sequence[str], ema: float | None) -> list[Row]:
    rows = []
    for epoch in epochs:
        known = [dice for dice in epoch.dice_per_class if not math.isnan(dice)]
        mean = sum(known) / len(known) if known else math.nan
        ema = mean if ema is None else _EMA_OLD_SHARE * ema + (1 - _EMA_OLD_SHARE) * mean
        rows.append(
            {
                "epoch": epoch.epoch,
                "train_loss": epoch.train_loss,
                "val_loss": epoch.val_loss,
                "mean_dice": mean,
                "ema_dice": ema,
                **dict(zip(dice_columns, epoch.dice_per_class, strict=False)),
                "learning_rate": epoch.learning_rate,
                "epoch_seconds": epoch.epoch_seconds,
                "started": _local_time(epoch.started),
            }
        )
    return rows


def _local_time(time: datetime) -> str:
    return time.astimezone().isoformat(timespec="seconds")
