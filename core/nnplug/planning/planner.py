"""nnU-Net's planner of plans that are there already: its choice of patch, batch and network, and its memory estimate.

A planner reads a raw data set and a fingerprint when it is made. It gets a temporary folder that holds what it needs,
so that the raw data need not be there.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from nnplug.datasets import channel_names, environment
from nnplug.errors import NnplugError
from nnplug.files.json_files import as_plain_json
from nnplug.planning.classes import find_class
from nnplug.planning.data_record import FINGERPRINT

Size = tuple[int, ...]
_UNLIMITED_POOLING = 999999


class NoPatchError(NnplugError):
    """The memory is too little for any patch."""


@contextmanager
def planner_of(plans: Mapping[str, Any], dataset_json: Mapping[str, Any], folder: Path) -> Iterator[ExperimentPlanner]:
    """The planner that made these plans, for a ``with`` block, with its own memory target.

    Args:
        plans: nnU-Net's plans.
        dataset_json: of the data set.
        folder: ``nnUNet_preprocessed/DatasetXXX_NAME``.

    Raises:
        NnplugError: the planner is not there.
    """
    made_by = plans["experiment_planner_used"]
    planner_class = find_class(made_by, ExperimentPlanner, "experiment_planning")
    name = plans["dataset_name"]
    with tempfile.TemporaryDirectory(prefix="nnplug-planner-") as scratch:
        draft = Path(scratch, name)
        draft.mkdir()
        # with a list of files, nnU-Net does not look for any
        (draft / "dataset.json").write_text(json.dumps({**dataset_json, "dataset": {}}))
        if (folder / FINGERPRINT).is_file():
            shutil.copyfile(folder / FINGERPRINT, draft / FINGERPRINT)
        else:
            (draft / FINGERPRINT).write_text("{}")
        # planners give the number of augmentation processes to torch as its number of threads, which can not be 0
        with (
            environment(nnUNet_raw=scratch, nnUNet_preprocessed=scratch, nnUNet_n_proc_DA="1"),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield planner_class(name)


def estimated_gb(planner: ExperimentPlanner, settings: Mapping[str, Any]) -> float | None:
    """The GPU memory that nnU-Net's planner reckons a training takes.

    It counts the values that the convolutions put out for one sample, and compares with a network and batch of which
    it is known that they run in so many gigabytes.

    Args:
        planner: of the plans.
        settings: a configuration, inherited entries included.

    Returns:
        Gigabytes; None for a network that can not count its feature maps.
    """
    architecture = settings["architecture"]
    try:
        with torch.device("meta"):
            values = planner.static_estimate_VRAM_usage(
                tuple(settings["patch_size"]),
                _num_channels(planner),
                len(planner.dataset_json["labels"]),
                architecture["network_class_name"],
                architecture["arch_kwargs"],
                architecture["_kw_requires_import"],
            )
    except (AttributeError, NotImplementedError):
        return None
    reference, batch = _reference(planner, len(settings["patch_size"]))
    return values / reference * settings["batch_size"] / batch * planner.UNet_reference_val_corresp_GB


def batch_that_fits(
    planner: ExperimentPlanner, settings: Mapping[str, Any], target_gb: float, num_voxels: float
) -> int:
    """nnU-Net's batch size for a given patch: what the memory allows, at most 5% of the voxels of the data set.

    Args:
        planner: of the plans.
        settings: a configuration with its patch and network.
        target_gb: memory in gigabytes.
        num_voxels: of all cases together.
    """
    of_one = estimated_gb(planner, {**settings, "batch_size": 1})
    if of_one is None:
        raise NnplugError("The memory of this network can not be estimated. Give the batch with --set batch_size=N.")
    return limited_batch(planner, settings, math.floor(target_gb / of_one), num_voxels)


def limited_batch(planner: ExperimentPlanner, settings: Mapping[str, Any], batch_size: int, num_voxels: float) -> int:
    """nnU-Net's limits of a batch: a share of the data set's voxels, and what it wants at least."""
    most = round(num_voxels * planner.max_dataset_covered / math.prod(settings["patch_size"]))
    return max(min(batch_size, most), planner.UNet_min_batch_size)


def plan_network(
    planner: ExperimentPlanner, base: Mapping[str, Any], target_gb: float, num_voxels: float
) -> dict[str, Any]:
    """What the planner chooses for a spacing: patch, batch and network.

    Args:
        planner: of the plans.
        base: a configuration with the spacing and the median image size that it is for.
        target_gb: memory in gigabytes.
        num_voxels: of all cases together.

    Returns:
        ``patch_size``, ``batch_size``, ``architecture``.

    Raises:
        NoPatchError: the memory is too little.
        NnplugError: the configuration's network is not the planner's.
    """
    _check_own_network(planner, base)
    before = planner.UNet_vram_target_GB
    planner.UNet_vram_target_GB = target_gb
    try:
        with torch.device("meta"):
            chosen = planner.get_plans_for_configuration(
                tuple(base["spacing"]), tuple(base["median_image_size_in_voxels"]), "", num_voxels, {}
            )
    except ZeroDivisionError:
        chosen = None
    finally:
        planner.UNet_vram_target_GB = before
    # the planner goes on until nothing is left
    if chosen is None or len(chosen["architecture"]["arch_kwargs"]["strides"]) < 2:
        raise NoPatchError("There is no patch for so little memory that a network could pool. Give more.")
    return as_plain_json({key: chosen[key] for key in ("patch_size", "batch_size", "architecture")})


def network_for_patch(
    planner: ExperimentPlanner, base: Mapping[str, Any], patch_size: Sequence[int]
) -> tuple[dict[str, Any], Size]:
    """The planner's network for a given patch: its stages, strides, kernels, features and convolutions.

    Args:
        planner: of the plans.
        base: a configuration with the spacing and the network that is to be changed.
        patch_size: in voxels.

    Returns:
        ``architecture``, and the patch size enlarged until every side can be divided as often as the network pools.

    Raises:
        NnplugError: the configuration's network is not the planner's.
    """
    _check_own_network(planner, base)
    architecture = base["architecture"]
    _, strides, kernels, fitting, _ = get_pool_and_conv_props(
        base["spacing"], patch_size, planner.UNet_featuremap_min_edge_length, _UNLIMITED_POOLING
    )
    num_stages = len(strides)
    most = planner.UNet_max_features_2d if len(patch_size) == 2 else planner.UNet_max_features_3d
    arch_kwargs = dict(architecture["arch_kwargs"])
    blocks = "n_blocks_per_stage" if "n_blocks_per_stage" in arch_kwargs else "n_conv_per_stage"
    arch_kwargs |= {
        "n_stages": num_stages,
        "features_per_stage": [min(most, planner.UNet_base_num_features * 2**stage) for stage in range(num_stages)],
        "kernel_sizes": kernels,
        "strides": strides,
        blocks: planner.UNet_blocks_per_stage_encoder[:num_stages],
        "n_conv_per_stage_decoder": planner.UNet_blocks_per_stage_decoder[: num_stages - 1],
    }
    return as_plain_json({**architecture, "arch_kwargs": arch_kwargs}), tuple(int(side) for side in fitting)


def _check_own_network(planner: ExperimentPlanner, base: Mapping[str, Any]) -> None:
    name = base["architecture"]["network_class_name"].rpartition(".")[2]
    if name != planner.UNet_class.__name__:
        raise NnplugError(
            f"The network {name} is not the one of the planner {type(planner).__name__} "
            f"({planner.UNet_class.__name__}), so its stages can not be planned anew. Keep it with --keep-network."
        )


def _num_channels(planner: ExperimentPlanner) -> int:
    return len(channel_names(planner.dataset_json))


def _reference(planner: ExperimentPlanner, dims: int) -> tuple[float, int]:
    """Values of the network that is known to fit, and its batch."""
    if dims == 2:
        return planner.UNet_reference_val_2d, planner.UNet_reference_val_corresp_bs_2d
    return planner.UNet_reference_val_3d, planner.UNet_reference_val_corresp_bs_3d
