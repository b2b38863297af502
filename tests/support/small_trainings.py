"""Trainings in the test's own process, short enough for unit tests: nothing is started but the training itself."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any
from unittest.mock import patch

from nnplug import TrainerConfig
from nnplug.training.training import train

from support.datasets import DatasetForTests

SETTINGS = {
    "num_epochs": 1,
    "num_iterations_per_epoch": 1,
    "num_val_iterations_per_epoch": 1,
    # the plan's patch holds a whole image of tiny_dataset: the validation is one step a case
    "mirror_axes": [],
}


class _Threads:
    """In place of the context ``spawn``, whose processes would import torch for longer than their work takes."""

    Pool = ThreadPool
    Process = None


def _context(method: str | None = None, _original: Any = multiprocessing.get_context) -> Any:
    return _Threads if method == "spawn" else _original(method)


def write_recipe(folder: Path, name: str = "loop", **settings: Any) -> Path:
    """A trainer with a small network, one step in one epoch; ``settings`` replaces or adds numbers, words and lists."""
    path = folder / f"{name}.toml"
    lines = [f'name = "{name}"', *(f"{key} = {value}" for key, value in {**SETTINGS, **settings}.items())]
    path.write_text("\n".join([*lines, "[plans.architecture.arch_kwargs]", "features_per_stage = [4, 8, 16]", ""]))
    return path


def small_config(name: str = "loop", **fields: Any) -> TrainerConfig:
    """As :func:`write_recipe`, for what a recipe can not hold."""
    plans = {"architecture": {"arch_kwargs": {"features_per_stage": [4, 8, 16]}}}
    return TrainerConfig(name=name, plans=plans, **{**SETTINGS, **fields})


@contextmanager
def without_processes(dataset: DatasetForTests) -> Iterator[None]:
    """The data set's variables, and threads where nnU-Net's validation starts processes that import torch."""
    with dataset.activated(), patch.object(multiprocessing, "get_context", _context):
        yield


def train_here(
    dataset: DatasetForTests, trainer: Any, *, configuration: str = "3d_fullres", folds: Any = 0, **arguments: Any
) -> list[dict[str, Any]]:
    """``nnplug.train`` on the CPU, in this process."""
    trainer = str(trainer) if isinstance(trainer, Path) else trainer
    with without_processes(dataset):
        return train(dataset.id, configuration, folds, trainer, device="cpu", **arguments)
