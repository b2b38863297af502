"""Read an inventory (a JSON file) or a raw data set, and find what is wrong with the description itself.

The keys of an inventory are those of nnU-Net's ``dataset.json``::

    {
      "channel_names": {"0": "T1", "1": "FLAIR"},
      "labels": {"background": 0, "lesion": 1},
      "numTraining": 2,
      "file_ending": ".nii.gz",
      "dataset": {
        "case_a": {"images": ["mr/a_t1.nii.gz", "mr/a_flair.nii.gz"], "label": "masks/a.nii.gz"},
        "case_b": {"images": ["$DATA/b_t1.mha", "~/b_flair.nii.gz"], "label": "masks/b.nii.gz"}
      }
    }

Relative paths count from the inventory's folder. Further keys go into ``dataset.json`` as they are. Imports no torch.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnplug.errors import NnplugError
from nnplug.inventory import rules
from nnplug.inventory.file_stats import stat_files, unusable
from nnplug.inventory.old_style import to_new_style
from nnplug.problems import Problem, raise_problems

_KEYS = ("channel_names", "labels", "numTraining", "file_ending", "dataset")
_NO_READER = ("overwrite_image_reader_writer", None)
_IMAGE_NAME = re.compile(r"(.+)_(\d{4})")


@dataclass(frozen=True)
class CaseFiles:
    """The files of a case; ``label`` is None where none is needed."""

    images: tuple[Path, ...]
    label: Path | None

    @property
    def all(self) -> tuple[Path, ...]:
        return self.images if self.label is None else (*self.images, self.label)


@dataclass(frozen=True)
class Inventory:
    """A data set, every path absolute.

    Attributes:
        path: the inventory's file, or the raw data set's folder.
        channel_names: in the order of the images.
        labels: name to value, or list of values for a region; empty in an inventory without labels.
        file_ending: nnU-Net's, of what is predicted.
        cases: files by case, in the inventory's order; those without a problem.
        others: ``regions_class_order`` and other keys of ``dataset.json``.
        converted: what was converted of a description in the Decathlon's style.
    """

    path: Path
    channel_names: tuple[str, ...]
    labels: dict[str, int | list[int]]
    file_ending: str
    cases: dict[str, CaseFiles]
    others: dict[str, Any] = field(default_factory=dict)
    converted: tuple[str, ...] = ()

    def dataset_json(self) -> dict[str, Any]:
        """nnU-Net's ``dataset.json`` with a ``dataset`` that names every file."""
        return {
            **self.others,
            "channel_names": {str(index): name for index, name in enumerate(self.channel_names)},
            "labels": self.labels,
            "numTraining": len(self.cases),
            "file_ending": self.file_ending,
            "dataset": {
                name: {"images": [str(path) for path in files.images], "label": str(files.label)}
                for name, files in self.cases.items()
            },
        }


def load_inventory(path: Path, *, labelled: bool = True) -> tuple[Inventory, list[Problem]]:
    """Read an inventory.

    Args:
        path: JSON file.
        labelled: whether ``labels`` and each case's ``label`` are needed; images to predict have none.

    Returns:
        The inventory with the cases that have no problem, and every problem.

    Raises:
        NnplugError: no file, no JSON, or keys are missing; a raw data set without a file ending to find cases by.
    """
    content, problems, notes = _read_new_style(Path(path))
    needed = _KEYS if labelled else ("dataset",)
    missing = [key for key in needed if key not in content and key != "numTraining"]
    if missing:
        raise NnplugError(f"{path} has no {' and no '.join(missing)}. An inventory has the keys {', '.join(_KEYS)}.")
    return _check(Path(path), content, problems, labelled, notes)


def load_raw_folder(folder: Path) -> tuple[Inventory, list[Problem]]:
    """Read a raw data set ``DatasetXXX_NAME``: ``dataset.json``; ``imagesTr``, ``labelsTr`` where that lists no cases.

    Same returns and errors as :func:`load_inventory`.
    """
    path = folder / "dataset.json"
    content, problems, notes = _read_new_style(path)
    missing = [key for key in ("labels", "file_ending", "channel_names") if key not in content]
    if missing:
        raise NnplugError(
            f"{path} has no {' and no '.join(missing)}. nnU-Net needs channel_names, labels, file_ending."
        )
    if "dataset" not in content:
        raise_problems(path, _check_ending(content["file_ending"]))
        cases, more = _find_cases(folder, content["file_ending"])
        content["dataset"] = cases
        problems += more
    return _check(path, content, problems, True, notes)


# --- files -----------------------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[dict[str, Any], list[Problem]]:
    problems: list[Problem] = []

    def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        for key in sorted({key for key in keys if keys.count(key) > 1} if len(set(keys)) < len(keys) else ()):
            problems.append(
                Problem(f"the key '{key}' is there {keys.count(key)} times", "Names have to differ.", file=path)
            )
        return dict(pairs)

    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=without_doubles)
    except FileNotFoundError:
        raise NnplugError(f"There is no file {path}.") from None
    except OSError as error:
        raise NnplugError(f"{path} can not be read: {error.strerror}.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise NnplugError(f"{path} is no valid JSON ({error}).") from None
    if not isinstance(content, dict):
        raise NnplugError(f"{path} does not hold a JSON object. An inventory has the keys {', '.join(_KEYS)}.")
    return content, problems


def _read_new_style(path: Path) -> tuple[dict[str, Any], list[Problem], list[str]]:
    """The content with today's keys, problems, and what was converted."""
    content, problems = _read(path)
    new, notes = to_new_style(content)
    if notes and "file_ending" not in new:
        new["file_ending"] = ".nii.gz"
        notes.append("file_ending is .nii.gz")
    return new, problems, notes


def _find_cases(folder: Path, ending: str) -> tuple[dict[str, Any], list[Problem]]:
    """nnU-Net's own layout: ``imagesTr/CASE_0000.ending``, ``labelsTr/CASE.ending``."""
    missing = [name for name in ("imagesTr", "labelsTr") if not (folder / name).is_dir()]
    if missing:
        raise NnplugError(f"{folder} has no folder {' and no folder '.join(missing)}.")
    cases: dict[str, Any] = {}
    problems = []
    for name in sorted(entry.name for entry in os.scandir(folder / "imagesTr") if entry.name.endswith(ending)):
        match = _IMAGE_NAME.fullmatch(name.removesuffix(ending))
        if match is None:
            stem = re.sub(r"_\d*$", "", name.removesuffix(ending)) or "CASE"
            found, advice = "the name has no four-digit channel number", f"Rename it to {stem}_0000{ending}."
            problems.append(Problem(found, advice, file=folder / "imagesTr" / name))
            continue
        case = cases.setdefault(match[1], {"images": [], "label": f"labelsTr/{match[1]}{ending}"})
        if int(match[2]) != len(case["images"]):
            found = f"channel {len(case['images']):04d} of case {match[1]} is missing before this one"
            problems.append(
                Problem(found, "Channels count from 0000 without a gap.", match[1], folder / "imagesTr" / name)
            )
        case["images"].append(f"imagesTr/{name}")
    return cases, problems


# --- checks ----------------------------------------------------------------------------------------------------------


def _check(
    path: Path, content: dict[str, Any], problems: list[Problem], labelled: bool, notes: Sequence[str]
) -> tuple[Inventory, list[Problem]]:
    channels, labels, entries = content.get("channel_names"), content.get("labels"), content["dataset"]
    if labelled:
        problems += rules.check_channels(channels)
        problems += rules.check_labels(labels, content.get("regions_class_order"))
        problems += _check_ending(content["file_ending"])
    if not isinstance(entries, dict) or not entries:
        problems.append(Problem("dataset has no cases", "It maps each case to its images and its label."))
        entries = {}
    cases, more = _check_cases(path, entries, labelled)
    problems += more
    number = content.get("numTraining")
    if labelled and number is not None and number != len(entries):
        found = f"numTraining is {number!r}, and dataset has {len(entries)} cases"
        problems.append(Problem(found, f"Make it {len(entries)}, or see which cases are missing."))
    names = channels if isinstance(channels, dict) else {}
    inventory = Inventory(
        path=path,
        channel_names=tuple(str(names[key]) for key in sorted(names, key=lambda key: key.zfill(9))),
        labels=labels if isinstance(labels, dict) else {},
        file_ending=str(content.get("file_ending", "")),
        cases=cases,
        # null is no reader's name for nnU-Net, which asks whether the key is there
        others={key: value for key, value in content.items() if key not in _KEYS and (key, value) != _NO_READER},
        converted=tuple(notes),
    )
    images = {name: files.images for name, files in cases.items()}
    if inventory.channel_names:
        problems += rules.check_channel_order(images, inventory.channel_names)
    return inventory, problems


def _check_ending(ending: Any) -> list[Problem]:
    if isinstance(ending, str) and ending.startswith(".") and len(ending) > 1:
        return []
    return [Problem(f"file_ending is {ending!r}", "Give the ending that predictions get, for example .nii.gz.")]


def _check_cases(path: Path, entries: dict[str, Any], labelled: bool) -> tuple[dict[str, CaseFiles], list[Problem]]:
    problems: list[Problem] = []
    cases: dict[str, CaseFiles] = {}
    base = os.path.dirname(os.path.abspath(path))
    for name, entry in entries.items():
        found = rules.check_case_name(name)
        files, more = _case_files(base, name, entry, labelled)
        problems += found + more
        if files is not None:
            cases[name] = files
    uses = [
        (name, f"channel {index}" if index < len(files.images) else "label", file)
        for name, files in cases.items()
        for index, file in enumerate(files.all)
    ]
    states = stat_files([file for _, _, file in uses])
    for (name, _, file), state in zip(uses, states, strict=True):
        why = unusable(file, state)
        if why:
            problems.append(Problem(why, "Mend the path, or leave the case out.", name, file))
    problems += rules.check_duplicates(uses, states)
    bad = {problem.case for problem in problems}
    return {name: files for name, files in cases.items() if name not in bad}, problems


def _case_files(base: str, name: str, entry: Any, labelled: bool) -> tuple[CaseFiles | None, list[Problem]]:
    images = entry.get("images") if isinstance(entry, dict) else None
    label = entry.get("label") if isinstance(entry, dict) else None
    example = 'Give {"images": ["a_0000.nii.gz"], "label": "a.nii.gz"}.'
    if not isinstance(images, list) or not images or not all(isinstance(item, str) and item for item in images):
        return None, [Problem("it has no list of images", example, name)]
    if labelled and not (isinstance(label, str) and label):
        return None, [Problem("it has no label", example, name)]
    paths = []
    for text in [*images, label] if labelled else images:
        expanded = os.path.expanduser(os.path.expandvars(text)) if "$" in text or "~" in text else text
        unset = [variable for variable in re.findall(r"\$\{?(\w+)", expanded) if variable not in os.environ]
        if unset:
            found = f"{text}: the variable {unset[0]} is not set"
            return None, [Problem(found, f"export {unset[0]}=FOLDER, or write the path out.", name)]
        paths.append(Path(os.path.normpath(os.path.join(base, expanded))))
    return CaseFiles(tuple(paths[: len(images)]), paths[-1] if labelled else None), []
