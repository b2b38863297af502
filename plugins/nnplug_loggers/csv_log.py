"""``metrics.csv``: one row an epoch, ready for pandas or a spreadsheet."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnplug import EpochMetrics

_SCALARS = (
    "epoch",
    "learning_rate",
    "train_loss",
    "val_loss",
    "mean_dice",
    "ema_dice",
    "epoch_seconds",
    "data_seconds",
)


class CsvLog:
    """Columns: the fields of `EpochMetrics`, then ``dice_<label>`` by foreground class (or region), in label order.

    A training that continues replaces the rows from its first epoch on, so that no epoch is there twice.
    """

    def __init__(self, path: Path, labels: Sequence[str]) -> None:
        self.path = path
        self._labels = labels
        self._has_begun = False

    def write(self, metrics: EpochMetrics) -> None:
        """Add the row of an epoch; it is on disk on return."""
        row = _row_of(metrics, self._labels)
        if self._has_begun:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, list(row), lineterminator="\n").writerow(row)
        else:
            self._rewrite([*self._rows_before(metrics.epoch), row], list(row))
            self._has_begun = True

    def close(self, result: Mapping[str, Any]) -> None:
        """Nothing is left to write."""
        del result

    def _rows_before(self, epoch: int) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        # A crash may have cut the last row short.
        whole = [line for line in lines if line.endswith("\n")]
        rows = list(csv.DictReader(whole))
        return [row for row in rows if row.get("epoch", "").isdecimal() and int(row["epoch"]) < epoch]

    def _rewrite(self, rows: list[dict[str, Any]], columns: list[str]) -> None:
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore", lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)


def _row_of(metrics: EpochMetrics, labels: Sequence[str]) -> dict[str, float | int]:
    row: dict[str, float | int] = {name: float(getattr(metrics, name)) for name in _SCALARS}
    row["epoch"] = int(metrics.epoch)
    row |= {f"dice_{label}": float(dice) for label, dice in zip(labels, metrics.dice_per_class, strict=True)}
    return row
