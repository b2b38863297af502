"""The labels in ``gt_segmentations``, which a validation is compared with.

Those of a raw data set are copied, as nnU-Net does. Those of an inventory are linked to; only a label of another format
than ``file_ending`` is written anew, since nnU-Net looks for that ending.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nnplug.files.disk import telling_when_full
from nnplug.planning.data import PlanningData


def write_ground_truth(data: PlanningData, cases: Iterable[str], reader: type[Any]) -> None:
    """Bring the labels of some cases up to date; each file is whole or not there.

    Raises:
        NnplugError: the disk is full.
    """
    folder = data.folder / "gt_segmentations"
    folder.mkdir(parents=True, exist_ok=True)
    for name in cases:
        label = data.inventory.cases[name].label
        assert label is not None
        target = folder / f"{name}{data.inventory.file_ending}"
        draft = folder / f".{uuid.uuid4()}{data.inventory.file_ending}"
        if _is_current(label, target, data):
            continue
        try:
            with telling_when_full(folder):
                _write(label, draft, data, reader)
            os.replace(draft, target)
        finally:
            draft.unlink(missing_ok=True)


def _is_current(label: Path, target: Path, data: PlanningData) -> bool:
    if target.is_symlink():
        return data.is_inventory and os.readlink(target) == str(label)
    if not target.is_file():
        return False
    is_copy = not data.is_inventory or label.name.endswith(data.inventory.file_ending)
    ours, its = target.stat(), label.stat()
    return ours.st_mtime_ns == its.st_mtime_ns and not (is_copy and ours.st_size != its.st_size)


def _write(label: Path, draft: Path, data: PlanningData, reader: type[Any]) -> None:
    if not data.is_inventory:
        shutil.copy2(label, draft)
    elif label.name.endswith(data.inventory.file_ending):
        try:
            os.symlink(label, draft)
        except OSError:  # a file system without links
            shutil.copy2(label, draft)
    else:
        segmentation, properties = reader().read_seg(str(label))
        reader().write_seg(segmentation[0], str(draft), properties)
        shutil.copystat(label, draft)  # its time tells whether it is of this label
