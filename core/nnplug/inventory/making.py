"""Make an inventory of the files of a folder or a table."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnplug.errors import NnplugError
from nnplug.files.json_files import write_json
from nnplug.image_headers import UnreadableImageError, read_header
from nnplug.inventory import rules
from nnplug.inventory.loading import CaseFiles, Inventory
from nnplug.inventory.old_style import to_new_style
from nnplug.inventory.patterns import FoundFiles, default_patterns, find_files, read_table
from nnplug.inventory.readers import choose_reader
from nnplug.problems import count, raise_problems, shortened
from nnplug.processes.case_pool import Pool

_MOST_LABELS = 1000


@dataclass(frozen=True)
class Source:
    """Where the files are, and what is known of them.

    Attributes:
        folder: that is searched; with ``table`` it is not used.
        image_patterns, label_pattern: see ``find_files``; None takes those of the folder's layout.
        table: CSV file, see ``read_table``.
        channels: names; None takes those of a ``dataset.json`` in the folder, of the patterns, or numbers.
        labels: name to value; None takes those of a ``dataset.json``, or the values that are found.
        skip_incomplete: leave out cases of which something is missing.
    """

    folder: Path
    image_patterns: Sequence[str] | None = None
    label_pattern: str | None = None
    table: Path | None = None
    channels: Sequence[str] | None = None
    labels: Mapping[str, int | list[int]] | None = None
    skip_incomplete: bool = False


def make_inventory(source: Source, pool: Pool, on_message: Callable[[str], None] = print) -> Inventory:
    """Find the files and describe them.

    Raises:
        NnplugError: nothing is found, cases are not complete, channels or labels can not be told.
    """
    found = _find(source)
    incomplete = {problem.case or "" for problem in found.problems}
    if source.skip_incomplete and incomplete:
        on_message(f"Left out: {count(len(incomplete), 'case')} ({shortened(sorted(incomplete))}).")
    else:
        raise_problems(source.table or source.folder, found.problems)
    cases = {
        case: CaseFiles(tuple(map(_absolute, images)), _absolute(found.labels[case]))
        for case, images in found.images.items()
        if case not in incomplete
    }
    if not cases:
        raise NnplugError(f"No case in {source.table or source.folder} has all of its images and a label.")
    known = _read_description(source.folder, on_message) if source.table is None else {}
    told = known.get("numTraining")
    if isinstance(told, int) and told != len(cases):
        on_message(f"{source.folder / 'dataset.json'} tells of {count(told, 'case')}, {len(cases)} are there.")
    inventory = Inventory(
        path=source.table or source.folder,
        channel_names=(),
        labels={},
        file_ending=_most_common_ending([files.label for files in cases.values() if files.label]),
        cases=cases,
        others={key: known[key] for key in ("name", "description", "licence", "regions_class_order") if key in known},
    )
    labels: Any = dict(source.labels or {}) or known.get("labels")
    if labels is None:
        labels = _find_labels(inventory, pool)
        on_message(f"Labels found: {', '.join(map(str, labels.values()))}. Rename them in the file as you like.")
    problems = [*rules.check_labels(labels, inventory.others.get("regions_class_order"))]
    raise_problems(source.table or source.folder, problems)
    return replace(inventory, channel_names=_channel_names(source, found, known, inventory), labels=labels)


def write_inventory(inventory: Inventory, path: Path, *, overwrite: bool = False) -> None:
    """Write an inventory; files below its folder are named from there on, others by their whole path.

    Raises:
        NnplugError: the file is there already, or can not be written.
    """
    if path.exists() and not overwrite:
        raise NnplugError(f"{path} is there already. Give --overwrite to replace it, or another name.")
    content = inventory.dataset_json()
    base = _absolute(path).parent
    for entry in content["dataset"].values():
        entry["images"] = [_seen_from(base, Path(image)) for image in entry["images"]]
        entry["label"] = _seen_from(base, Path(entry["label"]))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NnplugError(
            f"{path} can not be written: no folder {path.parent} can be made ({error.strerror}). Give another name."
        ) from None
    write_json(path, content)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def _seen_from(base: Path, path: Path) -> str:
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else str(path)


def _find(source: Source) -> FoundFiles:
    if source.table is not None:
        return read_table(source.table)
    if (source.image_patterns is None) != (source.label_pattern is None):
        raise NnplugError("--images and --label belong together: give both, or none of them.")
    images, label = source.image_patterns, source.label_pattern
    if images is None or label is None:
        images, label = default_patterns(source.folder)
    return find_files(source.folder, images, label)


def _read_description(folder: Path, on_message: Callable[[str], None]) -> dict[str, Any]:
    """Channels and labels of a ``dataset.json`` in the folder, of nnU-Net or the Decathlon."""
    path = folder / "dataset.json"
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise NnplugError(f"{path} is no valid JSON ({error}).") from None
    new, notes = to_new_style(content if isinstance(content, dict) else {})
    on_message(f"Channels and labels are those of {path}{''.join(f'; {note}' for note in notes)}.")
    return new


def _channel_names(source: Source, found: FoundFiles, known: dict[str, Any], inventory: Inventory) -> tuple[str, ...]:
    files = next(iter(inventory.cases.values()))
    number = _num_channels(inventory, files)
    if source.channels is not None:
        names = list(source.channels)
    elif known.get("channel_names"):
        raise_problems(source.folder / "dataset.json", rules.check_channels(known["channel_names"]))
        names = [known["channel_names"][key] for key in sorted(known["channel_names"], key=int)]
    elif number != len(files.images):
        names = ["red", "green", "blue"] if number == 3 else [f"channel_{index}" for index in range(number)]
    else:
        told = found.channels if all(found.channels) else rules.channel_tokens(files.images)
        is_name = all(re.search("[A-Za-z]", name) for name in told)
        names = [name if is_name else f"channel_{index}" for index, name in enumerate(told)]
    if len(names) != number:
        raise NnplugError(f"There are {len(names)} names for channels ({', '.join(names)}), and {number} are found.")
    return tuple(names)


def _num_channels(inventory: Inventory, files: CaseFiles) -> int:
    """One file may hold several: colours, or the fourth axis."""
    reader = choose_reader(inventory).__name__
    try:
        headers = [read_header(path, reader) for path in files.images]
    except UnreadableImageError:  # the check will say which
        return len(files.images)
    return sum((header.num_channels if header else None) or 1 for header in headers)


def _most_common_ending(files: Sequence[Path]) -> str:
    endings = [(re.findall(r"(?:\.nii)?\.\w+$", path.name) or [".nii.gz"])[0] for path in files]
    return Counter(endings).most_common(1)[0][0]


# --- labels ----------------------------------------------------------------------------------------------------------


def _find_labels(inventory: Inventory, pool: Pool) -> dict[str, int]:
    values: set[float] = set()

    def take(_name: str, present: list[float]) -> None:
        values.update(present)

    failures = pool.run(_label_values, choose_reader(inventory), inventory.cases, "Reading labels", take)
    if failures:
        name, why = next(iter(failures.items()))
        raise NnplugError(f"The labels of {count(len(failures), 'case')} can not be read, first {name}: {why}.")
    # NaN of several images are several values of the set, and one for numpy
    different = np.unique([*values]).tolist()
    wrong = [value for value in different if not math.isfinite(value) or value != int(value) or value < 0]
    if wrong or len(different) > _MOST_LABELS:
        held = shortened([f"{value:.6g}" for value in wrong]) or f"{len(different)} different values"
        raise NnplugError(f"The label images hold {held}, which are no labels. Are these the images themselves?")
    return {"background" if value == 0 else f"label_{value}": value for value in sorted({0, *map(int, values)})}


def _label_values(reader: type, _name: str, files: CaseFiles) -> list[float]:
    label, _ = reader().read_seg(str(files.label))
    return np.unique(label).tolist()
