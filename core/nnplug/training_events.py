"""What `nnunet_training` tells while it works. Imports no torch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nnplug.training.lifecycle import VALIDATION_START

Stage = Literal["check", "fingerprint", "plan", "preprocess", "train", "epoch", "validate", "fold"]

_log = logging.getLogger("nnplug")


@dataclass(frozen=True, kw_only=True)
class TrainingEvent:
    """A step of `nnunet_training`, as its callback ``progress`` gets it.

    Attributes:
        stage: ``check`` (every rule on data that is there already), ``fingerprint``, ``plan``, ``preprocess``,
            ``train`` (a fold begins), ``epoch`` (one is over), ``validate`` (the final validation begins), ``fold``
            (one is done).
        message: what to show, one line or several.
        dataset: ``DatasetXXX_NAME``.
        configuration: from ``preprocess`` on; for a cascade first that of its first stage.
        fold: from ``train`` on.
        epoch: of ``epoch``, counted from 0.
        num_epochs: from ``train`` to ``validate``.
        metrics: of ``epoch``: ``train_loss``, ``val_loss``, ``mean_dice``, ``ema_dice`` (both 0 to 1),
            ``learning_rate``, ``seconds``; of ``fold``: ``dice``, ``iou``, ``validation_loss`` of the final validation.
    """

    stage: Stage
    message: str
    dataset: str
    configuration: str | None = None
    fold: int | str | None = None
    epoch: int | None = None
    num_epochs: int | None = None
    metrics: Mapping[str, float | None] | None = None


class EventSender:
    """Sends events to a callback. One that raises is called no more: a display must not end a training.

    Args:
        callback: as given by the user; None prints every message but those of epochs, which the training shows itself.

    Attributes:
        dataset: ``DatasetXXX_NAME``, once it is known.
        error: what the callback raised.
    """

    def __init__(self, callback: Callable[[TrainingEvent], object] | None) -> None:
        self.callback: Callable[[TrainingEvent], object] | None = callback or print_event
        self.dataset = ""
        self.error: str | None = None

    def send(self, stage: Stage, message: str, **details: Any) -> None:
        """Call the callback with an event."""
        if self.callback is None:
            return
        try:
            self.callback(TrainingEvent(stage=stage, message=message, dataset=self.dataset, **details))
        except Exception as error:
            self.callback = None
            self.error = f"{type(error).__name__}: {error}"
            _log.warning("The progress callback failed (%s). The work goes on without it.", self.error, exc_info=True)

    def hear(self, hook_name: str, arguments: Mapping[str, Any]) -> None:
        """Make events of lifecycle hooks; for `nnplug.hookspecs.listening`."""
        run = arguments["run"]
        fold = int(run.fold) if run.fold.isdecimal() else run.fold
        about = {"configuration": run.configuration, "fold": fold, "num_epochs": run.num_epochs}
        if hook_name == "train_start":
            verb = "Continuing" if run.is_resumed else "Training"
            where = f"{run.trainer}, {run.configuration}, fold {fold} on {run.device}"
            self.send("train", f"{verb} {where}: {run.num_epochs} epochs", **about)
        elif hook_name == "epoch_end":
            found = arguments["metrics"]
            metrics = {name: getattr(found, name) for name in ("train_loss", "val_loss", "mean_dice", "ema_dice")}
            metrics |= {"learning_rate": found.learning_rate, "seconds": found.epoch_seconds}
            message = f"Epoch {found.epoch + 1} of {run.num_epochs}: Dice {found.mean_dice:.3f}"
            self.send("epoch", message, epoch=found.epoch, metrics=metrics, **about)
        elif hook_name == VALIDATION_START:
            self.send("validate", f"Validating {run.configuration}, fold {fold}", **about)


def print_event(event: TrainingEvent) -> None:
    """Print all but epochs."""
    if event.stage != "epoch":
        print(event.message, flush=True)
