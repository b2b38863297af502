"""Loggers that write a training's metrics beside its checkpoints, each switched on by a variable, as nnU-Net's W&B is.

* ``nnplug_csv_enabled=1``: ``metrics.csv``, one row an epoch
* ``nnplug_tensorboard_enabled=1``: ``tensorboard/``, event files for TensorBoard
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from nnplug import EpochMetrics, NnplugError, TrainingRun, hookimpl

NNPLUG_API = 1


class Log(Protocol):
    """One file or folder that a training is written to."""

    def write(self, metrics: EpochMetrics) -> None: ...

    def close(self, result: Mapping[str, Any]) -> None: ...


def _csv_log(run: TrainingRun) -> Log:
    from nnplug_loggers.csv_log import CsvLog

    return CsvLog(run.output_folder / "metrics.csv", run.labels)


def _tensorboard_log(run: TrainingRun) -> Log:
    from nnplug_loggers.tensorboard_log import TensorBoardLog

    return TensorBoardLog(run)


_LOGS: dict[str, Callable[[TrainingRun], Log]] = {
    "nnplug_csv_enabled": _csv_log,
    "nnplug_tensorboard_enabled": _tensorboard_log,
}
_open: dict[Path, list[Log]] = {}


@hookimpl
def train_start(run: TrainingRun) -> None:
    """Raises NnplugError for a variable that is neither on nor off, and for a logger that is not installed."""
    _open[run.output_folder] = [make(run) for variable, make in _LOGS.items() if _is_enabled(variable)]


@hookimpl
def epoch_end(run: TrainingRun, metrics: EpochMetrics) -> None:
    for log in _open.get(run.output_folder, ()):
        log.write(metrics)


@hookimpl
def train_end(run: TrainingRun, result: Mapping[str, Any]) -> None:
    for log in _open.pop(run.output_folder, ()):
        log.close(result)


def _is_enabled(variable: str) -> bool:
    value = os.environ.get(variable, "0")
    if value in ("0", "False", "false"):
        return False
    if value in ("1", "True", "true"):
        return True
    raise NnplugError(f"The environment variable {variable} is {value!r}. Set it to 1 to log, or to 0 not to.")
