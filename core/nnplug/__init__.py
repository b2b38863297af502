"""nnplug: plug-in trainers for nnU-Net v2. Importing it imports neither torch nor nnunetv2."""

from __future__ import annotations

from importlib import import_module
from os import PathLike
from typing import TYPE_CHECKING, Any

from nnplug.config import Component, TrainerConfig
from nnplug.errors import NnplugError
from nnplug.hookspecs import API_VERSION, EpochMetrics, TrainingRun, hookimpl
from nnplug.loss_contract import LossContext, loss_traits

if TYPE_CHECKING:
    from nnplug.composition.compose import ResolvedConfig
    from nnplug.evaluation.evaluating import evaluate
    from nnplug.prediction.predicting import predict
    from nnplug.training.training import train
    from nnplug.training_events import TrainingEvent
    from nnplug.training_tool import nnunet_training

__all__ = [
    "API_VERSION",
    "Component",
    "EpochMetrics",
    "LossContext",
    "NnplugError",
    "ResolvedConfig",
    "TrainerConfig",
    "TrainingEvent",
    "TrainingRun",
    "__version__",
    "evaluate",
    "hookimpl",
    "list_trainers",
    "loss_traits",
    "nnunet_training",
    "predict",
    "resolve",
    "train",
]

_LAZY = {
    "ResolvedConfig": "nnplug.composition.compose",
    "evaluate": "nnplug.evaluation.evaluating",
    "TrainingEvent": "nnplug.training_events",
    "nnunet_training": "nnplug.training_tool",
    "predict": "nnplug.prediction.predicting",
    "train": "nnplug.training.training",
}


def resolve(
    trainer: str | PathLike[str] | TrainerConfig | ResolvedConfig, *, trust_code: bool = False
) -> ResolvedConfig:
    """Decide everything about a trainer: see `nnplug.discovery.registry.Registry.resolve`."""
    from nnplug.discovery.registry import get_registry

    return get_registry().resolve(trainer, trust_code=trust_code)


def list_trainers(pattern: str | None = None) -> list[str]:
    """Names of the registered trainers in natural order; `pattern` is a glob or a part of the name."""
    from nnplug.discovery.registry import get_registry

    return get_registry().list_names(pattern)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("nnplug")
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'nnplug' has no attribute '{name}'")
