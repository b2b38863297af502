"""Event files for TensorBoard; the step is the epoch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nnplug import EpochMetrics, NnplugError, TrainingRun


class TensorBoardLog:
    """Curves of losses, Dice, learning rate and times, the config at the start and the result at the end as text.

    A training that continues hides what an earlier one wrote from its first epoch on (``purge_step``).

    Raises:
        NnplugError: TensorBoard is not installed.
    """

    def __init__(self, run: TrainingRun) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise NnplugError(
                "nnplug_tensorboard_enabled is 1, but TensorBoard is not installed. "
                "Install it with: pip install 'nnplug[tensorboard]'"
            ) from error
        self._new_writer = SummaryWriter
        self._writer: Any = None
        self._run = run
        self._last_epoch = 0

    def write(self, metrics: EpochMetrics) -> None:
        """Add the values of an epoch; they are on disk on return."""
        if self._writer is None:
            folder = self._run.output_folder / "tensorboard"
            self._writer = self._new_writer(str(folder), purge_step=metrics.epoch)
            self._writer.add_text("config", _as_code(self._run.config), metrics.epoch)
        for tag, value in _scalars_of(metrics, self._run.labels).items():
            self._writer.add_scalar(tag, value, metrics.epoch)
        self._writer.flush()
        self._last_epoch = metrics.epoch

    def close(self, result: Mapping[str, Any]) -> None:
        """Add the result of the training and close the file."""
        if self._writer is not None:
            self._writer.add_text("result", _as_code(result), self._last_epoch)
            self._writer.close()


def _scalars_of(metrics: EpochMetrics, labels: Sequence[str]) -> dict[str, float]:
    pairs = zip(labels, metrics.dice_per_class, strict=True)
    per_class = {f"dice_per_class/{label}": dice for label, dice in pairs}
    return {
        "loss/train": metrics.train_loss,
        "loss/val": metrics.val_loss,
        "dice/mean": metrics.mean_dice,
        "dice/ema": metrics.ema_dice,
        **per_class,
        "learning_rate": metrics.learning_rate,
        "seconds/epoch": metrics.epoch_seconds,
        "seconds/data": metrics.data_seconds,
    }


def _as_code(values: Mapping[str, Any]) -> str:
    # Four spaces make it a code block in TensorBoard's Markdown.
    return "\n".join("    " + line for line in json.dumps(dict(values), indent=2, default=str).splitlines())
