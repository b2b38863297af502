"""What a user should know of the data that a training begins with, and that nnU-Net does not say."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnplug.datasets import read_splits
from nnplug.errors import NnplugError
from nnplug.planning.data import find_raw_data
from nnplug.planning.data_record import check_unchanged
from nnplug.planning.split_checks import cases_in_no_fold
from nnplug.planning.splits import HELD_OUT_NAME, read_names
from nnplug.problems import count, shortened


def describe_data(folder: Path, plans: Mapping[str, Any], configuration: str, all_data: bool) -> list[str]:
    """Raw data that are no longer those of the preprocessed cases; preprocessed cases that no fold uses.

    Args:
        folder: of the preprocessed data set.
        plans: its plans.
        configuration: that is trained.
        all_data: folds play no part.
    """
    remarks = [_changed_raw_data(folder), None if all_data else _cases_in_no_fold(folder, plans, configuration)]
    return [remark for remark in remarks if remark is not None]


def _changed_raw_data(folder: Path) -> str | None:
    """Raw data may be gone or archived by now: a training does not need them."""
    if not os.environ.get("nnUNet_raw"):
        return None
    try:
        data = find_raw_data(folder.name)
    except NnplugError:
        return None
    try:
        check_unchanged(data)
    except NnplugError as changed:
        message = str(changed).partition(" Give --clean")[0]
        return (
            f"{message} This training takes them as they were; to make them anew: nnplug plan_and_preprocess "
            f"-d {folder.name} --clean"
        )
    return None


def _cases_in_no_fold(folder: Path, plans: Mapping[str, Any], configuration: str) -> str | None:
    splits = read_splits(folder)
    if splits is None:
        return None
    cases = folder / PlansManager(dict(plans)).get_configuration(configuration).data_identifier
    listed = folder / HELD_OUT_NAME
    held_out = read_names(listed) if listed.is_file() else []
    left = cases_in_no_fold(splits, sorted(path.stem for path in cases.glob("*.pkl")), held_out)
    if not left:
        return None
    return (
        f"{count(len(left), 'preprocessed case')} in no fold of {folder / 'splits_final.json'} and not held out "
        f"({shortened(left)}): not trained with. To make folds of all cases: nnplug splits make --overwrite"
    )
