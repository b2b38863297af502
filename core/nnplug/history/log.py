"""nnU-Net's dated text logs, ``training_log_2024_5_3_12_34_56.txt``: what they say of each finished epoch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

_STAMPED = re.compile(r"(?P<time>\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d+)?):\s+(?P<text>.*?)\s*")
_EPOCH = re.compile(r"Epoch (\d+)")
_VALUES = {
    "learning_rate": re.compile(r"Current learning rate: (\S+)"),
    "train_loss": re.compile(r"train_loss (\S+)"),
    "val_loss": re.compile(r"val_loss (\S+)"),
    "epoch_seconds": re.compile(r"Epoch time: (\S+) s"),
}
_DICE = re.compile(r"Pseudo dice \[(.*)\]")
_NUMPY_TYPE = re.compile(r"(?:np\.)?float\d+\(")  # numpy 2 prints np.float32(0.5)
_NUMBER = re.compile(r"nan|[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?")


@dataclass
class LoggedEpoch:
    """One epoch as logged; losses and Dice are rounded to 4 decimals, learning rates to 5."""

    epoch: int
    started: datetime
    train_loss: float = math.nan
    val_loss: float = math.nan
    learning_rate: float = math.nan
    epoch_seconds: float = math.nan
    dice_per_class: list[float] = field(default_factory=list)


def read_logs(fold_folder: Path) -> tuple[list[Path], list[LoggedEpoch]]:
    """The finished epochs of all logs in a fold folder, in order.

    A run that was continued has several logs. Where a later one begins before the end of an earlier one (the run was
    killed and went on from a checkpoint, or started anew), the later one counts from there on.

    Returns:
        The logs and the epochs.
    """
    logs = sorted(fold_folder.glob("training_log_*.txt"), key=_date_of)
    if not logs and (fold_folder / "training_log.txt").exists():
        logs = [fold_folder / "training_log.txt"]
    epochs: list[LoggedEpoch] = []
    for log in logs:
        for begun in _read_log(log):
            while epochs and epochs[-1].epoch >= begun.epoch:
                epochs.pop()
            epochs.append(begun)
    return logs, [epoch for epoch in epochs if not math.isnan(epoch.epoch_seconds)]


def _date_of(log: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", log.stem))


def _read_log(log: Path) -> Iterator[LoggedEpoch]:
    """The epochs of one log, begun ones too; an epoch without ``epoch_seconds`` did not end."""
    current: LoggedEpoch | None = None
    with open(log, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            stamped = _STAMPED.fullmatch(line.rstrip("\n"))
            if stamped is None:
                continue
            begin = _EPOCH.fullmatch(stamped["text"])
            if begin is not None:
                if current is not None:
                    yield current
                current = LoggedEpoch(int(begin[1]), datetime.fromisoformat(stamped["time"]))
            elif current is not None:
                _take(current, stamped["text"])
    if current is not None:
        yield current


def _take(epoch: LoggedEpoch, text: str) -> None:
    for name, pattern in _VALUES.items():
        found = pattern.fullmatch(text)
        if found is not None:
            setattr(epoch, name, _number(found[1]))
            return
    found = _DICE.fullmatch(text)
    if found is not None:
        epoch.dice_per_class = [float(number) for number in _NUMBER.findall(_NUMPY_TYPE.sub("", found[1]))]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
