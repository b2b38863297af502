"""What a fingerprint was taken of, kept beside it, so that data that has changed since is noticed. Imports no torch."""

from __future__ import annotations

import os
import time
from importlib.metadata import version
from typing import Any

from nnplug.datasets import read_splits
from nnplug.errors import NnplugError
from nnplug.files.json_files import as_plain_json, read_json, write_json
from nnplug.files.new_folder import free_name
from nnplug.inventory.file_stats import stat_files
from nnplug.planning.data import PlanningData
from nnplug.problems import count, shortened

FILE_NAME = "nnplug_data.json"
FINGERPRINT = "dataset_fingerprint.json"
_FORMAT = 1


def file_states(data: PlanningData) -> dict[str, list[list[Any]]]:
    """Path, size and time of change of every file, by case.

    Raises:
        NnplugError: a file is gone.
    """
    cases = data.inventory.cases
    found = iter(stat_files([path for files in cases.values() for path in files.all]))
    states: dict[str, list[list[Any]]] = {}
    for name, files in cases.items():
        states[name] = []
        for path, state in zip(files.all, found, strict=False):
            if isinstance(state, OSError):
                raise NnplugError(f"{data.name}: {path} is no longer there ({state.strerror}).")
            states[name].append([str(path), state.st_size, state.st_mtime_ns])
    return states


def nnunet_version() -> str:
    """Major and minor: what has an influence on the results changes with them."""
    return ".".join(version("nnunetv2").split(".")[:2])


def write_record(data: PlanningData, *, is_verified: bool = False, is_of_stock: bool = False) -> None:
    """Keep what the fingerprint is taken of, whether every rule was checked on it, and whether nnU-Net itself did."""
    about = {"is_verified": is_verified, "is_of_stock": is_of_stock}
    write_json(data.folder / FILE_NAME, {**_describe(data), **about})


def is_of_stock(data: PlanningData) -> bool:
    """Whether nnU-Net itself has taken the fingerprint that is there."""
    kept = read_json(data.folder / FILE_NAME)
    return kept is None or bool(kept.get("is_of_stock"))


def is_verified(data: PlanningData) -> bool:
    """Whether every rule was checked on the data that the fingerprint was taken of."""
    return bool((read_json(data.folder / FILE_NAME) or {}).get("is_verified"))


def check_unchanged(data: PlanningData) -> None:
    """Refuse data that has changed since its fingerprint was taken; nothing where there is none, or it is stock's.

    Raises:
        NnplugError: what has changed, and that ``--clean`` begins anew.
    """
    kept = read_json(data.folder / FILE_NAME)
    if kept is None or not (data.folder / FINGERPRINT).is_file():
        return
    where = f"{data.folder} was made" if not data.is_inventory else f"The cache {data.folder} was made"
    again = "Give --clean to make it anew"
    if data.is_inventory:
        again += ", or another --cache-dir"
    if kept.get("format") != _FORMAT or kept.get("nnunetv2") != nnunet_version():
        raise NnplugError(
            f"{where} by nnplug {kept.get('nnplug')} with nnU-Net {kept.get('nnunetv2')}; this is nnplug "
            f"{version('nnplug')} with nnU-Net {nnunet_version()}. {again}."
        )
    changes = _changes(kept, as_plain_json(_describe(data)))
    if changes:
        raise NnplugError(f"{where} from other data: {'; '.join(changes)}. {again}.")


def _describe(data: PlanningData) -> dict[str, Any]:
    content = data.inventory.dataset_json()
    read_by_nnunet = ("channel_names", "labels", "regions_class_order", "file_ending", "overwrite_image_reader_writer")
    return {
        "format": _FORMAT,
        "nnplug": version("nnplug"),
        "nnunetv2": nnunet_version(),
        **{key: content.get(key) for key in read_by_nnunet},
        "cases": file_states(data),
    }


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    changes = [
        f"{key} was {before.get(key)}, is {now[key]}"
        for key in now
        if key not in ("format", "nnplug", "nnunetv2", "cases") and before.get(key) != now[key]
    ]
    old, new = before.get("cases", {}), now["cases"]
    for what, names in (
        ("added", [name for name in new if name not in old]),
        ("gone", [name for name in old if name not in new]),
        ("with other files", [name for name in new if name in old and _paths(new[name]) != _paths(old[name])]),
        (
            "with changed files",
            [name for name in new if name in old and new[name] != old[name] and _paths(new[name]) == _paths(old[name])],
        ),
    ):
        if names:
            changes.append(f"{count(len(names), 'case')} {what} ({shortened(names)})")
    return changes


def _paths(files: list[list[Any]]) -> list[Any]:
    return [os.fspath(file[0]) for file in files]


def set_aside_splits(data: PlanningData) -> str | None:
    """Rename splits that name cases which are gone; returns what was done, None where nothing had to be.

    nnU-Net makes new ones; with the old ones a training would stop at the first such case.
    """
    path = data.folder / "splits_final.json"
    splits = read_splits(data.folder)
    if splits is None:
        return None
    gone = {name for fold in splits for part in ("train", "val") for name in fold[part]} - set(data.inventory.cases)
    if not gone:
        return None
    kept = free_name(path.with_name(f"replaced_splits_final_{time.strftime('%Y-%m-%d_%H-%M-%S')}.json"))
    os.replace(path, kept)
    return (
        f"{path.name} names cases that are gone ({shortened(sorted(gone))}); it is now {kept.name}. The next "
        "training draws random folds; for groups or held-out cases make them first: nnplug splits make"
    )
