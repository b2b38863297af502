"""Plans of one data set for another, so that networks of both have the same shape: nnU-Net's own move, with checks."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from statistics import median as median_of
from typing import Any

from nnunetv2.experiment_planning.plans_for_pretraining.move_plans_between_datasets import move_plans_between_datasets
from nnunetv2.preprocessing.normalization.map_channel_name_to_normalization import get_normalization_scheme

from nnplug.datasets import environment
from nnplug.errors import NnplugError
from nnplug.files.json_files import write_json
from nnplug.planning.data import PlanningData, write_dataset_json
from nnplug.planning.data_record import FINGERPRINT
from nnplug.planning.plans_file import PlansFile
from nnplug.planning.plans_writing import check_data_folder, check_models, plans_lock, refuse_taken
from nnplug.planning.settings import check_name
from nnplug.problems import count


def move_plans(
    source: PlansFile, target: PlanningData, plans_name: str | None = None, overwrite: bool = False
) -> PlansFile:
    """Copy plans to another data set.

    Args:
        source: the plans.
        target: the data set that gets them; it has its fingerprint.
        plans_name: their name there; None keeps it.
        overwrite: replace plans of that name.

    Returns:
        The plans of the target.

    Raises:
        NnplugError: channels or normalisation differ, no fingerprint, plans or cases are there already.
    """
    plans_name = plans_name or source.name
    check_name(plans_name)
    if target.name == source.folder.name:
        raise NnplugError(f"{target.name} is source and target. To copy plans in one data set: nnplug plans derive")
    _check_channels(source, target)
    if not (target.folder / FINGERPRINT).is_file():
        raise NnplugError(
            f"{target.name} has no fingerprint yet, which a training needs. Run nnplug fingerprint with it first."
        )
    path = target.folder / f"{plans_name}.json"
    with plans_lock(target.folder):
        refuse_taken(path.is_file(), f"{target.name} has plans '{plans_name}' already ({path})", overwrite)
        check_models(target.folder, plans_name, "replaced", "Give another name with -tp.")
        plans = _moved(source, target, plans_name)
        moved = PlansFile(target.folder, plans_name, plans, target.dataset_json)
        for configuration in plans["configurations"]:
            check_data_folder(moved, configuration, "Give another name with -tp.")
        write_dataset_json(target)
        write_json(path, plans)
    return moved


def _moved(source: PlansFile, target: PlanningData, plans_name: str) -> dict[str, Any]:
    """What nnU-Net's function writes, from and into temporary folders."""
    with tempfile.TemporaryDirectory(prefix="nnplug-move-") as scratch, target.described() as raw:
        for name in (source.folder.name, target.name):
            Path(scratch, name).mkdir()
        shutil.copyfile(source.path, Path(scratch, source.folder.name, source.path.name))
        with environment(nnUNet_raw=raw, nnUNet_preprocessed=scratch):
            move_plans_between_datasets(source.folder.name, target.name, source.name, plans_name)
        return json.loads(Path(scratch, target.name, f"{plans_name}.json").read_text())


def _check_channels(source: PlansFile, target: PlanningData) -> None:
    """The plans say by channel how to normalise, and the network takes as many channels."""
    theirs, ours = source.channel_names, target.inventory.channel_names
    if len(theirs) != len(ours):
        raise NnplugError(
            f"{source.folder.name} has {count(len(theirs), 'channel')} ({', '.join(theirs)}), {target.name} has "
            f"{len(ours)} ({', '.join(ours)}). Plans can be moved between data sets with the same channels."
        )
    for index, (before, now) in enumerate(zip(theirs, ours, strict=True)):
        schemes = [get_normalization_scheme(name).__name__ for name in (before, now)]
        if schemes[0] != schemes[1]:
            raise NnplugError(
                f"Channel {index} is '{before}' in {source.folder.name}, which nnU-Net normalises by {schemes[0]}, and "
                f"'{now}' in {target.name}, by {schemes[1]}. If the images are of one kind, give the channel the same "
                "name in both dataset.json."
            )


def describe_differences(moved: PlansFile, source: PlansFile, target: PlanningData) -> list[str]:
    """What differs between the data sets and may, in words."""
    notes = []
    theirs, ours = source.channel_names, list(target.inventory.channel_names)
    if theirs != ours:
        notes.append(
            f"The channels {', '.join(ours)} of {target.name} are taken for {', '.join(theirs)} of "
            f"{source.folder.name}."
        )
    spacings = json.loads((target.folder / FINGERPRINT).read_text())["spacings"]
    median = [median_of(axis) for axis in zip(*spacings, strict=True)]
    median = [median[axis] for axis in moved.plans["transpose_forward"]]
    text = " x ".join(f"{value:.3g}" for value in median)
    return [*notes, f"The median spacing of {target.name} is {text} mm; its cases are resampled to that of the plans."]
