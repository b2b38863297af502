"""Where a conversion writes to: a raw data set of nnU-Net's, with an id and a name. Imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nnplug.datasets import environment_folder
from nnplug.errors import NnplugError
from nnplug.files.json_files import write_json
from nnplug.inventory import rules
from nnplug.planning.data import dataset_name
from nnplug.problems import raise_problems


def raw_target(raw: Path | None, dataset_id: int, name: str) -> Path:
    """The folder of a new data set.

    Args:
        raw: folder of data sets; None takes ``nnUNet_raw``.
        dataset_id: 0 to 999.
        name: with or without ``DatasetXXX_``.

    Raises:
        NnplugError: the id is another data set's, there or in ``nnUNet_preprocessed`` or ``nnUNet_results``.
    """
    full = dataset_name(dataset_id, name)
    folder = environment_folder("nnUNet_raw") if raw is None else raw
    known = [
        folder,
        *(Path(os.environ[name]) for name in ("nnUNet_preprocessed", "nnUNet_results") if name in os.environ),
    ]
    for place in known:
        taken = sorted(path.name for path in place.glob(f"Dataset{dataset_id:03d}_*") if path.name != full)
        if taken:
            raise NnplugError(f"The id {dataset_id} is taken by {place / taken[0]}. Choose another id for {full}.")
    return folder / full


def check_description(subject: object, content: Mapping[str, Any]) -> None:
    """Refuse channels and labels that nnU-Net could not use; all problems at once."""
    problems = rules.check_channels(content.get("channel_names"))
    problems += rules.check_labels(content.get("labels"), content.get("regions_class_order"))
    raise_problems(subject, problems)


def write_description(target: Path, content: Mapping[str, Any], _files: Mapping[str, Any]) -> None:
    """``dataset.json``, as ``Conversion.finish``."""
    write_json(target / "dataset.json", content)


def task_name(folder: Path) -> tuple[int, str] | None:
    """Id and name of a folder ``Task04_Hippocampus``; None for another name."""
    match = re.fullmatch(r"Task(\d{1,3})_(.+)", Path(os.path.abspath(folder)).name)
    return (int(match[1]), match[2]) if match else None
