"""nnU-Net's experiment planner, run where it can neither leave half a file nor stumble over its own folders.

The planner copies ``dataset.json`` from the raw to the preprocessed folder, which fails where both are one, and writes
in place. So it works in temporary folders, and what it has written is moved to where it belongs.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.plan_and_preprocess_api import plan_experiment_dataset
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

from nnplug.datasets import environment, holds_plans, read_plans
from nnplug.errors import NnplugError
from nnplug.files.atomic_file import keep_file
from nnplug.files.disk import telling_when_full
from nnplug.files.json_files import write_json
from nnplug.planning.classes import find_class, list_classes, with_owners
from nnplug.planning.data import PlanningData, write_dataset_json
from nnplug.planning.data_record import FINGERPRINT


@dataclass(frozen=True)
class PlannerSettings:
    """What nnU-Net's planner is given.

    Attributes:
        planner: class of nnU-Net's or of a plugin.
        gpu_memory_target_gb: None takes the planner's own.
        preprocessor: class of nnU-Net's or of a plugin.
        target_spacing: of 3d_fullres, in the order of the array's axes; None lets the planner decide.
        plans_name: None takes the planner's own.
    """

    planner: str = "ExperimentPlanner"
    gpu_memory_target_gb: float | None = None
    preprocessor: str = "DefaultPreprocessor"
    target_spacing: Sequence[float] | None = None
    plans_name: str | None = None


def find_planner(plans_name: str) -> str | None:
    """nnU-Net's planner that gives its plans this name when it is told no other; None where no planner does."""
    for planner in list_classes(ExperimentPlanner, "experiment_planning"):
        if inspect.signature(planner).parameters["plans_name"].default == plans_name:
            return planner.__name__
    return None


def plan_experiment(data: PlanningData, settings: PlannerSettings, verbose: bool = False) -> str:
    """Make the plans of a data set that has its fingerprint.

    Returns:
        The plans' name.

    Raises:
        NnplugError: no fingerprint, an unknown planner or preprocessor, impossible settings.
    """
    if not (data.folder / FINGERPRINT).is_file():
        raise NnplugError(f"{data.name} has no fingerprint yet. Run nnplug fingerprint with the same data set first.")
    planner = find_class(settings.planner, ExperimentPlanner, "experiment_planning")
    find_class(settings.preprocessor, DefaultPreprocessor, "preprocessing")
    spacing = settings.target_spacing
    if spacing is not None and (len(spacing) != 3 or not all(value > 0 for value in spacing)):
        raise NnplugError(f"-overwrite_target_spacing {' '.join(map(str, spacing))}: expected three numbers above 0.")
    if settings.gpu_memory_target_gb is not None and not settings.gpu_memory_target_gb > 0:
        raise NnplugError(f"-gpu_memory_target {settings.gpu_memory_target_gb}: expected gigabytes, above 0.")
    with (
        tempfile.TemporaryDirectory(prefix="nnplug-plan-") as scratch,
        data.described() as raw,
        telling_when_full(Path(scratch)),
    ):
        draft = Path(scratch, data.name)
        _copy_inputs(data, draft)
        quiet = contextlib.nullcontext() if verbose else contextlib.redirect_stdout(io.StringIO())
        # planners give this number to torch as its number of threads, which can not be 0
        threads = {"nnUNet_n_proc_DA": "1"} if os.environ.get("nnUNet_n_proc_DA") == "0" else {}
        with environment(nnUNet_raw=raw, nnUNet_preprocessed=draft.parent, **threads), quiet:
            _, name = plan_experiment_dataset(
                data.name,
                planner,
                settings.gpu_memory_target_gb,
                settings.preprocessor,
                list(spacing) if spacing is not None else None,
                settings.plans_name,
            )
        _name_owners(draft, name)
        _move_results(draft, data, name)
    return name


def _name_owners(draft: Path, plans_name: str) -> None:
    """Where plans name a plugin's preprocessor they say whose it is; others stay nnU-Net's to the byte."""
    plans = read_plans(draft, plans_name)
    named = with_owners(plans)
    if named != plans:
        write_json(draft / f"{plans_name}.json", named)


def _copy_inputs(data: PlanningData, draft: Path) -> None:
    """What the planner reads in the preprocessed folder."""
    draft.mkdir()
    shutil.copyfile(data.folder / FINGERPRINT, draft / FINGERPRINT)
    for path in data.folder.glob("*.json"):
        # configurations that a user has added to plans are kept
        if path.name == "splits_final.json" or holds_plans(path):
            shutil.copyfile(path, draft / path.name)


def _move_results(draft: Path, data: PlanningData, plans_name: str) -> None:
    """The plans come last: where they are, what they need is there."""
    write_dataset_json(data)
    for name in ("splits_final.json", f"{plans_name}.json"):
        if (draft / name).is_file():
            keep_file(data.folder / name, (draft / name).read_bytes())


def describe_plans(data: PlanningData, plans_name: str) -> list[str]:
    """A line for each configuration."""
    lines = []
    for name, settings in read_plans(data.folder, plans_name)["configurations"].items():
        if "inherits_from" in settings:
            lines.append(f"  {name}: as {settings['inherits_from']}" + _stage(settings))
            continue
        spacing = " x ".join(f"{value:.3g}" for value in settings["spacing"])
        patch = "x".join(map(str, settings["patch_size"]))
        lines.append(f"  {name}: spacing {spacing} mm, patch {patch}, batch {settings['batch_size']}")
    return lines


def _stage(settings: dict[str, Any]) -> str:
    return f", after {settings['previous_stage']}" if settings.get("previous_stage") else ""
