"""Patch and batch for the network of a trainer: nnU-Net's planner, told how much more memory that network takes.

The planner knows its own network only. What a training step of both networks takes is counted on tensors without data,
for the same batch and patch, and nnU-Net's estimate is multiplied by the ratio.

Axis letters: B batch, C channels; sizes are in voxels, in the plan's axis order.
"""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnplug.composition.resolved import ResolvedConfig
from nnplug.config import TrainerConfig
from nnplug.datasets import environment
from nnplug.discovery import registry
from nnplug.errors import NnplugError
from nnplug.networks.costs import costs_of
from nnplug.networks.network import PatchRefusedError
from nnplug.planning.derivation import (
    Derivation,
    check_patch,
    fitted_network,
    own_data,
    size_text,
    voxels_of_dataset,
    with_median,
)
from nnplug.planning.planner import (
    NoPatchError,
    estimated_gb,
    limited_batch,
    network_for_patch,
    plan_network,
    planner_of,
)
from nnplug.planning.plans_file import PlansFile
from nnplug.training.trainer import build_trainer_class

_MOST_ATTEMPTS = 12
_MOST_ADAPTATIONS = 4


@dataclass(frozen=True)
class _Task:
    """What stays the same while patches are tried."""

    file: PlansFile
    configuration: str
    resolved: ResolvedConfig
    planner: ExperimentPlanner
    target_gb: float
    # by patch; the network is that of the patch
    has_deep_supervision: dict[tuple[int, ...], bool] = field(default_factory=dict)

    @property
    def trainer(self) -> str:
        return f"'{self.resolved.name}'"


def derive_for_trainer(
    file: PlansFile,
    configuration: str,
    changes: Mapping[str, Any],
    trainer: str,
    *,
    data_identifier: str,
    target_gb: float | None = None,
    trust_code: bool = False,
) -> Derivation:
    """Derive a configuration whose patch and batch a trainer's network can be trained with.

    Args:
        file: the plans.
        configuration: the base.
        changes: entries to set; patch and batch among them are kept.
        trainer: as after ``-tr``.
        data_identifier: name for the preprocessed cases where the base's can not be used.
        target_gb: memory in gigabytes; None takes that of the planner.
        trust_code: as in ``nnplug.resolve``, for a trainer that is a recipe file.

    Raises:
        NnplugError: the trainer sets another patch or batch itself, its memory can not be counted, nothing fits.
    """
    resolved = registry.get_registry().resolve(trainer, trust_code=trust_code)
    changes = _with_own_sizes(changes, resolved)
    base = file.configuration(configuration)
    settings = with_median({**base, **changes}, base)
    with planner_of(file.plans, file.dataset_json, file.folder) as planner:
        target_gb = planner.UNet_vram_target_GB if target_gb is None else target_gb
        task = _Task(file, configuration, resolved, planner, target_gb)
        settings = _with_patch(task, settings, base, changes)
        if "batch_size" not in changes:
            settings["batch_size"] = _largest_batch(task, settings)
        needed = _trainer_gb(task, settings)
        estimate = estimated_gb(planner, settings)
    if needed > target_gb:
        raise NnplugError(_too_large(task, settings, needed))
    data_changes = own_data(settings, base, changes, data_identifier)
    return Derivation(settings, base, estimate, target_gb, data_changes, resolved.name, needed)


def _with_own_sizes(changes: Mapping[str, Any], resolved: ResolvedConfig) -> dict[str, Any]:
    """A patch or batch of the trainer's own is what it is trained with."""
    config: TrainerConfig = resolved.config
    own: dict[str, Any] = {}
    if config.batch_size is not None:
        own["batch_size"] = config.batch_size
    if config.patch_size is not None:
        own["patch_size"] = list(config.patch_size)
    for key, value in own.items():
        if changes.get(key, value) != value:
            raise NnplugError(f"'{resolved.name}' sets {key} itself, so --set {key} would change nothing.")
    return {**changes, **own}


def _too_large(task: _Task, settings: Mapping[str, Any], needed: float) -> str:
    return (
        f"The network of {task.trainer} is estimated to need {needed:.1f} GB for a batch of {settings['batch_size']} "
        f"patches of {size_text(settings['patch_size'])}, more than -gpu_memory_target {task.target_gb:g}. Give more "
        "memory, or a smaller patch or batch."
    )


# --- patch -----------------------------------------------------------------------------------------------------------


def _with_patch(
    task: _Task, settings: dict[str, Any], base: Mapping[str, Any], changes: Mapping[str, Any]
) -> dict[str, Any]:
    if "patch_size" in changes:
        settings = {**settings, "architecture": fitted_network(task.planner, settings)}
        check_patch(task.planner, settings, base)
        try:
            _check_takes(task, settings)
        except PatchRefusedError as refusal:
            raise NnplugError(
                f"The network of {task.trainer} does not take patch_size={size_text(settings['patch_size'])}. A size "
                f"that fits: {size_text(refusal.proposal)}."
            ) from refusal
        return settings
    batch_size = changes.get("batch_size", task.planner.UNet_min_batch_size)
    share = task.target_gb * task.planner.UNet_min_batch_size / batch_size
    num_voxels = voxels_of_dataset(task.file, settings)
    smallest: tuple[float, str] | None = None
    for _ in range(_MOST_ATTEMPTS):
        try:
            chosen = plan_network(task.planner, settings, share, num_voxels)
        except NoPatchError:
            break
        tried = _adapted(task, {**settings, **chosen, "batch_size": batch_size})
        needed = _trainer_gb(task, tried)
        if needed <= task.target_gb:
            return tried
        attempt = (needed, size_text(tried["patch_size"]))
        smallest = min(smallest or attempt, attempt)
        share *= min(task.target_gb / needed, 0.95)
    least = "" if smallest is None else f" The smallest that was tried, {smallest[1]}, needs {smallest[0]:.2g} GB."
    raise NnplugError(
        f"No patch was found with which the network of {task.trainer} fits {task.target_gb:g} GB in a batch of "
        f"{batch_size}.{least} Give more with -gpu_memory_target, or patch and batch with --set."
    )


def _adapted(task: _Task, settings: dict[str, Any]) -> dict[str, Any]:
    """The patch enlarged to what the trainer's network takes, and the plan's network for it."""
    for _ in range(_MOST_ADAPTATIONS):
        try:
            _check_takes(task, settings)
            return settings
        except PatchRefusedError as refusal:
            architecture, patch = network_for_patch(task.planner, settings, refusal.proposal)
            if patch != refusal.proposal:
                architecture, patch = network_for_patch(task.planner, settings, patch)
            settings = {**settings, "patch_size": list(patch), "architecture": architecture}
    raise NnplugError(f"No patch was found that the network of {task.trainer} takes. Give one with --set patch_size.")


def _check_takes(task: _Task, settings: Mapping[str, Any]) -> None:
    """Raise PatchRefusedError where the network does not take the patch; keep whether it has deep supervision."""
    patch = tuple(settings["patch_size"])
    if patch not in task.has_deep_supervision:
        with _trainer(task, settings) as trainer:
            trainer.try_network()
            task.has_deep_supervision[patch] = trainer.enable_deep_supervision


# --- memory ----------------------------------------------------------------------------------------------------------


def _largest_batch(task: _Task, settings: Mapping[str, Any]) -> int:
    """As many samples as fit, within nnU-Net's limits."""
    least = task.planner.UNet_min_batch_size
    needed = _trainer_gb(task, {**settings, "batch_size": least})
    num_voxels = voxels_of_dataset(task.file, settings)
    wanted = limited_batch(task.planner, settings, math.floor(least * task.target_gb / needed), num_voxels)
    # a part of the memory does not grow with the batch: one more may fit, never one less
    more = {**settings, "batch_size": wanted + 1}
    if limited_batch(task.planner, settings, wanted + 1, num_voxels) > wanted:
        return wanted + 1 if _trainer_gb(task, more) <= task.target_gb else wanted
    return wanted


def _trainer_gb(task: _Task, settings: Mapping[str, Any]) -> float:
    """nnU-Net's estimate for its own network, times what the trainer's network takes of the same batch."""
    estimate = estimated_gb(task.planner, settings)
    if estimate is None:
        raise NnplugError(f"nnU-Net's planner can not estimate the memory of '{task.configuration}'.")
    plain = replace(task, resolved=ResolvedConfig(name="nnUNetTrainer", config=TrainerConfig(name="nnUNetTrainer")))
    own = _counted_bytes(plain, settings, deep_supervision=True)
    return estimate * _counted_bytes(task, settings, task.has_deep_supervision[tuple(settings["patch_size"])]) / own


def _counted_bytes(task: _Task, settings: Mapping[str, Any], deep_supervision: bool) -> int:
    """Most bytes of tensors in a training step with float32."""
    patch = tuple(settings["patch_size"])
    shape = (settings["batch_size"], len(task.file.channel_names), *patch)
    with _trainer(task, settings) as trainer:
        try:
            with torch.device("meta"):
                network = trainer.build_for(patch, deep_supervision)
            return costs_of(network.train(), shape).peak_bytes
        except NnplugError:
            raise
        except Exception as error:
            raise NnplugError(
                f"The memory of {task.trainer} can not be counted without computing ({type(error).__name__}). Give its "
                "patch and batch with --set, without --for-trainer."
            ) from error


@contextlib.contextmanager
def _trainer(task: _Task, settings: Mapping[str, Any]) -> Iterator[Any]:
    """The trainer on these settings; see ``idle_trainer``."""
    own = {key: value for key, value in settings.items() if key != "inherits_from"}
    plans = {**task.file.plans, "configurations": {**task.file.plans["configurations"], task.configuration: own}}
    with idle_trainer(
        plans, task.configuration, task.resolved, task.file.dataset_json, task.file.folder.parent
    ) as made:
        yield made


@contextlib.contextmanager
def idle_trainer(
    plans: Mapping[str, Any],
    configuration: str,
    resolved: ResolvedConfig,
    dataset_json: Mapping[str, Any],
    preprocessed: Path,
) -> Iterator[Any]:
    """The trainer on the CPU, before anything is built; its folder is a temporary one."""
    with (
        tempfile.TemporaryDirectory(prefix="nnplug-trainer-") as scratch,
        environment(nnUNet_results=scratch, nnUNet_preprocessed=preprocessed),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        make = build_trainer_class(resolved)
        made = {**plans, "continue_training": False}
        yield make(made, configuration, 0, dict(dataset_json), torch.device("cpu"))
