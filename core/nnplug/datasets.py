"""nnU-Net's folders: the environment variables, data sets by id or name, plans, splits."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from nnplug.composition.checks import did_you_mean
from nnplug.errors import NnplugError
from nnplug.files.json_files import read_required_json

PURPOSES = {
    "nnUNet_raw": "raw data sets",
    "nnUNet_preprocessed": "preprocessed data",
    "nnUNet_results": "trained models",
}

DatasetId = int | str


def environment_folder(variable: str) -> Path:
    """The folder that one of nnU-Net's variables names.

    Raises:
        NnplugError: the variable is not set, or what it names is not a folder.
    """
    value = os.environ.get(variable)
    if not value:
        raise NnplugError(
            f"{variable} is not set: it names the folder of {PURPOSES[variable]}. export {variable}=FOLDER"
            + (", or give it with --results-dir" if variable == "nnUNet_results" else "")
        )
    folder = Path(value)
    if variable == "nnUNet_results":
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NnplugError(f"nnUNet_results={value} can not be created ({error.strerror}).") from None
        try:
            tempfile.TemporaryFile(dir=folder).close()  # of a network drive or root only trying tells
        except OSError as error:
            raise NnplugError(
                f"nnUNet_results={value} is not writable ({error.strerror}). Mend its permissions or choose another "
                "folder."
            ) from None
    if not folder.is_dir():
        raise NnplugError(f"{variable}={value} is not a folder.")
    return folder


@contextlib.contextmanager
def environment(**variables: Path | str) -> Iterator[None]:
    """Set environment variables for a ``with`` block."""
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update({key: str(path) for key, path in variables.items()})
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def find_dataset(dataset: DatasetId, variable: str = "nnUNet_preprocessed") -> str:
    """The name ``DatasetXXX_Name`` of a data set given by id or name.

    Args:
        dataset: id (``4``, ``"4"``, ``"004"``) or full name.
        variable: which of nnU-Net's folders it must be in.

    Raises:
        NnplugError: there is none, or more than one with that id.
    """
    folder = environment_folder(variable)
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and re.match(r"Dataset\d{3,}_", p.name))
    text = str(dataset)
    if text.isdecimal():
        found = [name for name in names if dataset_id(name) == int(text)]
    else:
        found = [name for name in names if name == text]
    if len(found) > 1:
        raise NnplugError(f"Data set id {text} is taken twice in {folder}: {', '.join(found)}. Give the full name.")
    if not found:
        have = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "no data set"
        hint = " Preprocess it first: nnplug plan_and_preprocess -d ID" if variable == "nnUNet_preprocessed" else ""
        near = nearest_dataset(text, names)
        raise NnplugError(f"No data set '{text}' in {variable}={folder}{near}; it has {have}.{hint}")
    return found[0]


def dataset_id(name: str) -> int | None:
    """The id in ``DatasetXXX_Name``, ``XXX`` or a number; None where there is none."""
    number = name.removeprefix("Dataset").partition("_")[0]
    return int(number) if number.isdecimal() else None


def nearest_dataset(text: str, names: Iterable[str]) -> str:
    """A clause with the name that was meant, also where only what follows ``DatasetXXX_`` was given; or nothing."""
    spelled = {spelling.lower(): name for name in names for spelling in (name, name.partition("_")[2])}
    near = get_close_matches(text.lower(), spelled, n=1, cutoff=0.7)
    return f" (did you mean {spelled[near[0]]}?)" if near else ""


def channel_names(dataset_json: Mapping[str, Any]) -> list[str]:
    """Names of the input channels in their order; nnU-Net v1 and the Decathlon call them modalities."""
    channels = dataset_json.get("channel_names") or dataset_json["modality"]
    return [str(channels[key]) for key in sorted(channels, key=int)]


def foreground_names(labels: Mapping[str, Any]) -> list[str]:
    """Names of the foreground classes or regions of a dataset.json's ``labels``, in the order of nnU-Net's channels."""
    foreground = {name: value for name, value in labels.items() if name != "ignore" and value not in (0, [0])}
    if has_regions(labels):
        return list(foreground)  # regions go by their order in the file
    return sorted(foreground, key=lambda name: as_values(foreground[name])[0])


def has_regions(labels: Mapping[str, Any]) -> bool:
    """Whether a label joins several values; a list of one is a label."""
    return any(len(as_values(value)) > 1 for value in labels.values())


def as_values(label: Any) -> list[Any]:
    """The values of a label or region."""
    return label if isinstance(label, list) else [label]


def read_plans(folder: Path, plans_name: str) -> dict[str, Any]:
    """The plans ``plans_name`` of a preprocessed data set.

    Raises:
        NnplugError: there are none of that name; those that are there are named.
    """
    path = folder / f"{plans_name}.json"
    if not path.is_file():
        others = sorted(p.stem for p in folder.glob("*.json") if holds_plans(p))
        have = f"it has {', '.join(others)}" if others else "it has none; run nnUNetv2_plan_and_preprocess"
        raise NnplugError(f"No plans '{plans_name}' in {folder}; {have}. Choose with -p.")
    return read_required_json(path, "The plans file")


def check_configuration(plans: Mapping[str, Any], configuration: str, remark: str = "") -> None:
    """Raise NnplugError where the plans have no such configuration; ``remark`` ends the line."""
    known = plans["configurations"]
    if configuration not in known:
        near = did_you_mean(configuration, known, cutoff=0.8)  # 3d_lowres is not 3d_fullres
        raise NnplugError(
            f"The plans '{plans['plans_name']}' of {plans['dataset_name']} have no configuration "
            f"'{configuration}'{near}; they have {', '.join(known)}{remark}."
        )


def holds_plans(path: Path) -> bool:
    """Whether a file of a preprocessed data set holds plans."""
    with contextlib.suppress(ValueError, OSError):
        content = json.loads(path.read_text(encoding="utf-8"))
        return isinstance(content, dict) and "configurations" in content
    return False


def read_splits(folder: Path) -> list[dict[str, list[str]]] | None:
    """The cross-validation splits of a preprocessed data set, or None where nnU-Net has not made them yet."""
    path = folder / "splits_final.json"
    return read_required_json(path, "The splits file") if path.exists() else None
