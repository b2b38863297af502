"""A configuration derived from another one: what is set, and a network that nnU-Net's planner fits to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

from nnplug.errors import NnplugError
from nnplug.planning.planner import batch_that_fits, estimated_gb, network_for_patch, plan_network, planner_of
from nnplug.planning.plans_file import PlansFile
from nnplug.planning.preprocessing import what_cases_depend_on


@dataclass(frozen=True)
class Derivation:
    """A derived configuration.

    Attributes:
        settings: all of its entries, inherited ones included.
        base: those of the configuration that it is derived from.
        estimated_gb: memory of a training as nnU-Net's planner reckons it, None where it can not.
        target_gb: memory that was asked for, or that the planner goes by.
        data_changes: entries because of which the cases have to be preprocessed anew.
        trainer, trainer_gb: the trainer that it was made for, and its memory; see ``trainer_fit``.
    """

    settings: dict[str, Any]
    base: dict[str, Any]
    estimated_gb: float | None
    target_gb: float
    data_changes: list[str] = field(default_factory=list)
    trainer: str | None = None
    trainer_gb: float | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """Entries that differ from the base's."""
        return {key: value for key, value in self.settings.items() if self.base.get(key) != value}


def derive(
    file: PlansFile,
    configuration: str,
    changes: Mapping[str, Any],
    *,
    data_identifier: str,
    target_gb: float | None = None,
    keep_network: bool = False,
) -> Derivation:
    """Derive a configuration; nothing is written.

    A patch that is set is kept and gets the planner's network for it. Without one, a new spacing or a memory target
    lets the planner choose patch and network. A batch that is not set is the planner's where it chooses the patch, and
    what fits where there is a target.

    Args:
        file: the plans.
        configuration: the base.
        changes: entries to set, as ``parse_settings`` gives them.
        data_identifier: name for the preprocessed cases where the base's can not be used.
        target_gb: memory in gigabytes that the estimate must not exceed.
        keep_network: only change what is set; the network stays as it is.

    Raises:
        NnplugError: a patch that the network can not take, an estimate above the target.
    """
    base = file.configuration(configuration)
    settings = with_median({**base, **changes}, base)
    with planner_of(file.plans, file.dataset_json, file.folder) as planner:
        num_voxels = voxels_of_dataset(file, settings)
        if keep_network:
            check_patch(planner, settings, base)
        elif "patch_size" in changes:
            settings["architecture"] = fitted_network(planner, settings)
            check_patch(planner, settings, base)
        elif "spacing" in changes or target_gb is not None:
            settings |= _planned(planner, settings, target_gb, changes.get("batch_size"), num_voxels)
        if target_gb is not None and "batch_size" not in changes:
            settings["batch_size"] = batch_that_fits(planner, settings, target_gb, num_voxels)
        estimate = estimated_gb(planner, settings)
        planners_gb = planner.UNet_vram_target_GB
    if target_gb is not None and (estimate is None or estimate > target_gb):
        raise NnplugError(_too_large(settings, estimate, target_gb))
    data_changes = own_data(settings, base, changes, data_identifier)
    return Derivation(settings, base, estimate, planners_gb if target_gb is None else target_gb, data_changes)


def _too_large(settings: Mapping[str, Any], estimate: float | None, target_gb: float) -> str:
    what = f"A batch of {settings['batch_size']} patches of {size_text(settings['patch_size'])}"
    if estimate is None:
        return f"{what}: nnU-Net's planner can not estimate the memory of this network. Leave out -gpu_memory_target."
    return (
        f"{what} is estimated to need {estimate:.1f} GB, more than -gpu_memory_target {target_gb:g}. "
        "Set a smaller patch_size or batch_size, or leave out patch_size: then one that fits is chosen."
    )


def _planned(
    planner: ExperimentPlanner,
    settings: Mapping[str, Any],
    target_gb: float | None,
    batch_size: int | None,
    num_voxels: float,
) -> dict[str, Any]:
    """The planner's patch, batch and network, for a batch that is set too."""
    target_gb = planner.UNet_vram_target_GB if target_gb is None else target_gb
    if batch_size is None:
        return plan_network(planner, settings, target_gb, num_voxels)
    # the planner wants room for two samples: a share of the target makes that room for the batch
    chosen = plan_network(planner, settings, target_gb * planner.UNet_min_batch_size / batch_size, num_voxels)
    return {**chosen, "batch_size": batch_size}


def own_data(
    settings: dict[str, Any], base: Mapping[str, Any], changes: Mapping[str, Any], data_identifier: str
) -> list[str]:
    """Entries that make other cases; those get a folder of their own."""
    now, before = what_cases_depend_on(settings), what_cases_depend_on(base)
    changed = [key for key in now if now[key] != before.get(key)]
    if changed and "data_identifier" not in changes:
        settings["data_identifier"] = data_identifier
    return changed


# --- patch and network -----------------------------------------------------------------------------------------------


def fitted_network(planner: ExperimentPlanner, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The planner's architecture for the patch.

    Raises:
        NnplugError: a side that can not be divided as often as the network pools, with sizes that fit.
    """
    patch = tuple(settings["patch_size"])
    architecture, fitting = network_for_patch(planner, settings, patch)
    if fitting == patch:
        return architecture
    factors = pooling(architecture)
    smaller = tuple(max(side // factor, 1) * factor for side, factor in zip(patch, factors, strict=True))
    fit = [
        size_text(size)
        for size in (smaller, fitting)
        if network_for_patch(planner, settings, size)[1] == size and size != patch
    ]
    raise NnplugError(_not_divisible(patch, factors, list(dict.fromkeys(fit))))


def check_patch(planner: ExperimentPlanner, settings: Mapping[str, Any], base: Mapping[str, Any]) -> None:
    """Refuse a patch that the network of the settings can not divide, or of which it leaves too little.

    Raises:
        NnplugError: what does not fit, and a size that does.
    """
    if "strides" not in settings["architecture"]["arch_kwargs"]:
        return
    patch, factors = tuple(settings["patch_size"]), pooling(settings["architecture"])
    if any(side % factor for side, factor in zip(patch, factors, strict=True)):
        larger = tuple(-(-side // factor) * factor for side, factor in zip(patch, factors, strict=True))
        raise NnplugError(_not_divisible(patch, factors, [size_text(larger)]))
    edge = planner.UNet_featuremap_min_edge_length
    # an axis that is not pooled may be as short as the data is
    least = [
        min(edge, side) if factor == 1 else edge * factor
        for side, factor in zip(base["patch_size"], factors, strict=True)
    ]
    if any(side < low for side, low in zip(patch, least, strict=True)):
        left = size_text([side // factor for side, factor in zip(patch, factors, strict=True)])
        raise NnplugError(
            f"patch_size={size_text(patch)} leaves a feature map of {left} at the network's coarsest stage, where "
            f"nnU-Net keeps {edge} voxels an axis. Use at least {size_text(least)}."
        )


def pooling(architecture: Mapping[str, Any]) -> tuple[int, ...]:
    """By which factor a network makes each axis smaller."""
    return tuple(math.prod(axis) for axis in zip(*architecture["arch_kwargs"]["strides"], strict=True))


def _not_divisible(patch: Sequence[int], factors: Sequence[int], fitting: Sequence[str]) -> str:
    return (
        f"patch_size={size_text(patch)} can not be halved as often as the network pools: sides have to be multiples of "
        f"{size_text(factors)}. Sizes that fit: {' or '.join(fitting)}."
    )


def size_text(size: Sequence[int]) -> str:
    """As after ``--set patch_size=``."""
    return ",".join(map(str, size))


# --- data set --------------------------------------------------------------------------------------------------------


def voxels_of_dataset(file: PlansFile, settings: Mapping[str, Any]) -> float:
    """Voxels of all cases at the settings' spacing, as nnU-Net's planner reckons them."""
    shape = list(settings["median_image_size_in_voxels"])
    if len(shape) == 2:
        full = file.plans["configurations"].get("3d_fullres", {}).get("median_image_size_in_voxels")
        shape = [(full or file.plans["original_median_shape_after_transp"])[0], *shape]
    return math.prod(shape) * file.dataset_json["numTraining"]


def with_median(settings: dict[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The median image size follows the spacing."""
    if settings["spacing"] == base["spacing"]:
        return settings
    sizes = zip(base["median_image_size_in_voxels"], base["spacing"], settings["spacing"], strict=True)
    median = [max(1.0, float(round(size * before / now))) for size, before, now in sizes]
    return {**settings, "median_image_size_in_voxels": median}
