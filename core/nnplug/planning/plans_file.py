"""A plans file of a preprocessed data set: what its configurations are, and which trained models hold to it."""

from __future__ import annotations

import os
import warnings
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnplug.datasets import (
    DatasetId,
    channel_names,
    check_configuration,
    environment_folder,
    find_dataset,
    read_plans,
)
from nnplug.errors import NnplugError
from nnplug.files.json_files import read_required_json
from nnplug.planning.planner import estimated_gb, planner_of


@dataclass(frozen=True)
class PlansFile:
    """nnU-Net's plans of a data set.

    Attributes:
        folder: ``nnUNet_preprocessed/DatasetXXX_NAME``.
        name: of the plans, without ``.json``.
        plans: their content.
        dataset_json: of the data set.
    """

    folder: Path
    name: str
    plans: dict[str, Any]
    dataset_json: dict[str, Any]

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.json"

    @property
    def channel_names(self) -> list[str]:
        return channel_names(self.dataset_json)

    def configuration(self, name: str) -> dict[str, Any]:
        """The settings of a configuration with what it inherits.

        Raises:
            NnplugError: there is none of that name, or it inherits from what is not there or from itself.
        """
        check_configuration(self.plans, name)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of plans in an older format, which nnU-Net translates
                return PlansManager(deepcopy(self.plans)).get_configuration(name).configuration
        except (RuntimeError, ValueError) as error:
            raise NnplugError(f"{self.path}: configuration '{name}' can not be resolved ({error}).") from None


def open_plans(dataset: DatasetId, plans_name: str = "nnUNetPlans") -> PlansFile:
    """The plans of a data set in ``nnUNet_preprocessed``.

    Raises:
        NnplugError: no such data set or plans.
    """
    name = find_dataset(dataset)
    folder = environment_folder("nnUNet_preprocessed") / name
    plans = read_plans(folder, plans_name)
    return PlansFile(folder, plans_name, plans, read_required_json(folder / "dataset.json", "The data set file"))


def describe_configuration(file: PlansFile, name: str) -> dict[str, Any]:
    """What a configuration is, as plain values.

    Returns:
        ``inherits_from``, ``patch_size``, ``batch_size``, ``spacing`` (mm), ``network``, ``num_stages``, ``features``,
        ``strides``, ``kernel_sizes``, ``normalization_schemes``, ``estimated_memory_gb`` (None where nnU-Net can not
        tell), ``data_identifier``, ``preprocessed`` (``yes``, ``no``, ``unfinished``), ``previous_stage``. Axes are in
        the plans' order.
    """
    settings = file.configuration(name)
    architecture = settings["architecture"]["arch_kwargs"]
    return {
        "inherits_from": file.plans["configurations"][name].get("inherits_from"),
        "previous_stage": settings.get("previous_stage"),
        "patch_size": list(settings["patch_size"]),
        "batch_size": settings["batch_size"],
        "spacing": list(settings["spacing"]),
        "network": settings["architecture"]["network_class_name"].rpartition(".")[2],
        "num_stages": architecture.get("n_stages"),
        "features": architecture.get("features_per_stage"),
        "strides": architecture.get("strides"),
        "kernel_sizes": architecture.get("kernel_sizes"),
        "normalization_schemes": list(settings["normalization_schemes"]),
        "estimated_memory_gb": _memory_gb(file, settings),
        "data_identifier": settings["data_identifier"],
        "preprocessed": preprocessed_state(file.folder, settings["data_identifier"]),
    }


def _memory_gb(file: PlansFile, settings: dict[str, Any]) -> float | None:
    try:
        with planner_of(file.plans, file.dataset_json, file.folder) as planner:
            estimate = estimated_gb(planner, settings)
    except NnplugError:  # a planner that is not installed here
        return None
    return None if estimate is None else float(f"{estimate:.3g}")


def preprocessed_state(folder: Path, data_identifier: str) -> str:
    """``yes``, ``no``, or ``unfinished`` where only a part of the cases is there."""
    data = folder / data_identifier
    if data.is_dir() and any(data.iterdir()):
        return "yes"
    return "unfinished" if data.with_name(f"{data.name}.unfinished").is_dir() else "no"


def trained_with(dataset_name: str, plans_name: str, configuration: str | None = None) -> list[Path]:
    """Model folders in ``nnUNet_results`` that were trained with these plans; none where that is not set."""
    results = os.environ.get("nnUNet_results")
    if not results or not Path(results, dataset_name).is_dir():
        return []
    folders = Path(results, dataset_name).glob(f"*__{plans_name}__{configuration or '*'}")
    return sorted(folder for folder in folders if any(folder.glob("fold_*/checkpoint_*.pth")))
