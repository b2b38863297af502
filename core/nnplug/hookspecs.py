"""What a plugin can implement. A plugin is a module named by an entry point of the group ``nnplug``.

Every hook is optional and may take fewer arguments than listed here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from nnplug.errors import NnplugError

if TYPE_CHECKING:
    from nnplug.config import TrainerConfig

PROJECT = "nnplug"
# Of the hooks and of the public names. A plugin can say NNPLUG_API = 1 and is refused by an nnplug with another number.
API_VERSION = 1
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

_log = logging.getLogger(PROJECT)
_listeners: list[Callable[[str, Mapping[str, Any]], None]] = []


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
#: Only listeners are told of it, with ``run``.
VALIDATION_START = "validation_start"


@contextmanager
def listening(listener: Callable[[str, Mapping[str, Any]], None]) -> Iterator[None]:
    """Tell ``listener`` the name and arguments of every lifecycle hook while the block runs, after the plugins."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def tell_listeners(hook_name: str, arguments: Mapping[str, Any]) -> None:
    """Call what ``listening`` has registered."""
    for listener in tuple(_listeners):
        listener(hook_name, arguments)


def call_lifecycle(hook_name: str, **kwargs: Any) -> None:
    """Call a lifecycle hook of every plugin, one plugin at a time.

    A logger must not end a training: a plugin that raises is reported once and its lifecycle hooks are not called again
    in this process. Only ``train_start``, when nothing is spent yet, may refuse with a `NnplugError`.

    Args:
        hook_name: one of `LIFECYCLE_HOOKS`.
        **kwargs: the hook's arguments.
    """
    from nnplug.discovery.registry import get_registry

    assert hook_name in LIFECYCLE_HOOKS, hook_name
    registry = get_registry()
    for record in registry.plugins:
        if not record.is_loaded or record.key in registry.silenced:
            continue
        try:
            registry.call_plugin(record, hook_name, **kwargs)
        except Exception as error:
            if hook_name == "train_start" and isinstance(error, NnplugError):
                raise  # the user asked for something that the plugin can not do
            registry.silenced.add(record.key)
            _log.warning(
                "Plugin %s failed in %s (%s: %s). Training goes on without its hooks.",
                record.title,
                hook_name,
                type(error).__name__,
                error,
                exc_info=_log.isEnabledFor(logging.DEBUG),
            )
    tell_listeners(hook_name, kwargs)
