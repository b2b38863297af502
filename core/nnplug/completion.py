"""What a shell offers behind Tab: trainers, recipes, data sets, configurations. Imports nothing heavy."""

from __future__ import annotations

import argparse
import glob
import os
from pathlib import Path
from typing import Any

_CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")
_FOLDERS = ("nnUNet_preprocessed", "nnUNet_results", "nnUNet_raw")


def complete_trainers(prefix: str, **_: Any) -> list[str]:
    """Completions of the last term of ``a+b+field=@name``: names, fields, and files of recipes."""
    from nnplug.composition.fields import SETTINGS
    from nnplug.discovery.registry import get_registry

    head, plus, last = prefix.rpartition("+")
    field, assigned, part = last.partition("=@")
    names = get_registry().list_names()
    if assigned:
        return [f"{head}{plus}{field}=@{name}" for name in names if name.startswith(part)]
    fields = [f"{name}=" for name in SETTINGS]
    found = [name for name in [*names, *fields] if name.startswith(last)]
    return [f"{head}{plus}{name}" for name in [*found, *_recipes(last)]]


def complete_datasets(prefix: str, **_: Any) -> list[str]:
    """Names of the data sets in nnU-Net's folders, or ids where digits were typed."""
    from nnplug.datasets import dataset_id

    names = {path.name for folder in _folders() for path in folder.glob("Dataset[0-9][0-9][0-9]*_*") if path.is_dir()}
    ids = sorted({number for name in names if (number := dataset_id(name)) is not None})
    words = map(str, ids) if prefix.isdigit() else sorted(names)
    return [word for word in words if word.startswith(prefix)]


def complete_configurations(prefix: str, parsed_args: argparse.Namespace | None = None, **_: Any) -> list[str]:
    """Configurations of the data set's plans and models; nnU-Net's usual ones where the data set is not known."""
    from nnplug.datasets import find_dataset
    from nnplug.errors import NnplugError
    from nnplug.files.json_files import read_json

    given = getattr(parsed_args, "dataset", None) or (getattr(parsed_args, "datasets", None) or [None])[0]
    found: set[str] = set()
    for variable in _FOLDERS[:2] if given else ():
        try:
            folder = Path(os.environ[variable], find_dataset(given, variable))
            found.update(path.name.split("__")[2] for path in folder.glob("*__*__*"))
            for path in folder.glob("*[pP]lans*.json"):
                found.update((read_json(path) or {}).get("configurations", {}))
        except (NnplugError, KeyError):
            continue
    return [name for name in sorted(found) or _CONFIGURATIONS if name.startswith(prefix)]


def _recipes(start: str) -> list[str]:
    """Recipes, and the folders on the way to them once a path is begun."""
    paths = sorted(glob.glob(f"{glob.escape(start)}*"))
    folders = [f"{path}/" for path in paths if "/" in start and os.path.isdir(path)]
    return [*folders, *(path for path in paths if path.endswith(".toml"))]


def _folders() -> list[Path]:
    return [Path(os.environ[name]) for name in _FOLDERS if os.environ.get(name)]
