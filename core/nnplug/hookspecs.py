"""What a plugin can implement. A plugin is a module named by an entry point of the group ``nnplug``.

Every hook is optional and may take fewer arguments than listed here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from nnplug.config import TrainerConfig

PROJECT = "nnplug"
# Of the hooks and of the public names. A plugin can say NNPLUG_API = 1 and is refused by an nnplug with another number.
API_VERSION = 1
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """The training that a lifecycle hook is called for.

    Attributes:
        trainer: canonical name, as in the results folder.
        dataset: for example ``Dataset004_Hippocampus``.
        configuration: for example ``3d_fullres``.
        plans: name of the plans, for example ``nnUNetPlans``.
        fold: a number as text, or ``all``.
        output_folder: the fold's folder, where the checkpoints are.
        num_epochs: how many epochs the training has in all, those before a resume included.
        device: for example ``cuda:0``, ``cpu``.
        is_resumed: it continues from a checkpoint.
        config: the resolved config as plain values (`ResolvedConfig.as_dict`).
        labels: names of the foreground classes (or regions), in the order of `EpochMetrics.dice_per_class`.
    """

    trainer: str
    dataset: str
    configuration: str
    plans: str
    fold: str
    output_folder: Path
    num_epochs: int
    device: str
    is_resumed: bool
    config: Mapping[str, Any]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class EpochMetrics:
    """What one epoch gave.

    Attributes:
        epoch: counted from 0.
        learning_rate: in this epoch.
        train_loss: mean over the steps.
        val_loss: mean over the validation steps.
        mean_dice: pseudo Dice on validation patches, mean over the foreground classes; 0 to 1.
        ema_dice: its moving average, by which nnU-Net picks the best checkpoint; 0 to 1.
        dice_per_class: pseudo Dice by foreground class (or region), in label order; 0 to 1.
        epoch_seconds: wall time of the epoch.
        data_seconds: of it, waiting for the data loaders.
    """

    epoch: int
    learning_rate: float
    train_loss: float
    val_loss: float
    mean_dice: float
    ema_dice: float
    dice_per_class: tuple[float, ...]
    epoch_seconds: float
    data_seconds: float


@hookspec
def register_trainers(register: Callable[[TrainerConfig], None]) -> None:
    """Call ``register(TrainerConfig(...))`` once for every trainer of the plugin. Import nothing heavy here."""


@hookspec
def register_recipes() -> str | Path:  # type: ignore[empty-body]
    """Return the folder whose ``*.toml`` files are trainers, one a file."""


@hookspec
def register_planners(register: Callable[[str], None]) -> None:
    """Call ``register("package.module:Class")`` for every subclass of nnU-Net's ``ExperimentPlanner``.

    ``-pl Class`` chooses it. It is imported only then.
    """


@hookspec
def register_preprocessors(register: Callable[[str], None]) -> None:
    """Call ``register("package.module:Class")`` for every subclass of nnU-Net's ``DefaultPreprocessor``.

    ``-preprocessor_name Class`` chooses it, for predictions too. It is imported only then. Stock nnU-Net's prediction
    does not find it.
    """


@hookspec
def train_start(run: TrainingRun) -> None:
    """Called once, before data are loaded, in the main process only (as all hooks below).

    Raise `NnplugError` here, and here only, to refuse a training. Also called when a training is continued that only
    lacks its final validation; not with ``--val``.
    """


@hookspec
def epoch_end(run: TrainingRun, metrics: EpochMetrics) -> None:
    """Called after the validation steps of every epoch."""


@hookspec
def checkpoint_saved(run: TrainingRun, path: Path) -> None:
    """Called when a checkpoint is complete on disk."""


@hookspec
def train_end(run: TrainingRun, result: Mapping[str, Any]) -> None:
    """Called once after the final validation, or where a signal stopped the training or its validation.

    `result` is what nnplug_result.json holds; of a stopped training ``status`` ("interrupted"), ``epoch`` and ``step``.
    """


LIFECYCLE_HOOKS = ("train_start", "epoch_end", "checkpoint_saved", "train_end")
