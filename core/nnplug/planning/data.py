"""What is planned and preprocessed: a raw data set of nnU-Net's, or an inventory with its cache. Imports no torch.

For an inventory ``--cache-dir`` is both ``nnUNet_raw`` and ``nnUNet_preprocessed``: its ``DatasetXXX_NAME`` holds a
``dataset.json`` that names every file where it is, which nnU-Net understands.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnplug.datasets import DatasetId, environment, environment_folder, find_dataset
from nnplug.errors import NnplugError
from nnplug.files.atomic_file import keep_file
from nnplug.files.disk import telling_when_full
from nnplug.files.json_files import read_json, write_json
from nnplug.inventory.loading import Inventory, load_inventory, load_raw_folder
from nnplug.problems import Problem, raise_problems

_NAME = re.compile(r"Dataset(\d{3})_(.+)")


@dataclass(frozen=True)
class PlanningData:
    """A data set to plan.

    Attributes:
        name: ``DatasetXXX_NAME``.
        inventory: its cases.
        raw: ``nnUNet_raw``.
        preprocessed: ``nnUNet_preprocessed``.
        is_inventory: whether it is described by an inventory; then every rule is checked.
    """

    name: str
    inventory: Inventory
    raw: Path
    preprocessed: Path
    is_inventory: bool

    @property
    def folder(self) -> Path:
        """``nnUNet_preprocessed/DatasetXXX_NAME``."""
        return self.preprocessed / self.name

    @property
    def dataset_json(self) -> dict[str, Any]:
        """nnU-Net's description, without the list of the cases."""
        return {key: value for key, value in self.inventory.dataset_json().items() if key != "dataset"}

    @contextlib.contextmanager
    def activated(self) -> Iterator[None]:
        """nnU-Net's variables for a ``with`` block."""
        with environment(nnUNet_raw=self.raw, nnUNet_preprocessed=self.preprocessed):
            yield

    @contextlib.contextmanager
    def described(self) -> Iterator[Path]:
        """A temporary ``nnUNet_raw`` whose ``dataset.json`` names every file.

        For a raw data set nnU-Net would otherwise list its folders with a pool of twelve processes.
        """
        with tempfile.TemporaryDirectory(prefix="nnplug-raw-") as scratch:
            folder = Path(scratch, self.name)
            with telling_when_full(Path(scratch)):
                folder.mkdir()
                (folder / "dataset.json").write_text(json.dumps(self.inventory.dataset_json()))
                splits = self.raw / self.name / "splits_final.json"
                if not self.is_inventory and splits.is_file():
                    shutil.copyfile(splits, folder / splits.name)
            yield Path(scratch)


# --- raw data sets ---------------------------------------------------------------------------------------------------


def find_raw_data(dataset: DatasetId) -> PlanningData:
    """A data set in ``nnUNet_raw``, by id or name.

    Raises:
        NnplugError: there is none or more than one, its names are wrong, or files are missing; every problem is named.
    """
    raw = environment_folder("nnUNet_raw")
    preprocessed = _made_folder("nnUNet_preprocessed")
    try:
        name = find_dataset(dataset, "nnUNet_raw")
    except NnplugError:
        _suggest_rename(raw, dataset)
        raise
    _check_id(name, [raw, preprocessed, *_results()])
    inventory, problems = load_raw_folder(raw / name)
    raise_problems(raw / name, problems)
    return PlanningData(name, inventory, raw, preprocessed, is_inventory=False)


def _suggest_rename(raw: Path, dataset: DatasetId) -> None:
    for path in sorted(raw.iterdir()):
        match = re.fullmatch(r"(?:dataset|task)[ _-]?(\d+)[ _-]?(.*)", path.name, re.IGNORECASE)
        if match and path.is_dir() and _NAME.fullmatch(path.name) is None:
            right = f"Dataset{int(match[1]):03d}_{match[2] or 'NAME'}"
            if str(dataset) in (path.name, match[1], str(int(match[1])), right):
                raise NnplugError(f"{path} does not have a name as nnU-Net needs it. Rename it to {right}.")


def _made_folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if value:
        try:
            Path(value).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NnplugError(f"{variable}={value} can not be created ({error.strerror}).") from None
    return environment_folder(variable)


def _results() -> list[Path]:
    return [Path(os.environ["nnUNet_results"])] if os.environ.get("nnUNet_results") else []


def _check_id(name: str, folders: Sequence[Path]) -> None:
    """nnU-Net finds data sets by their id in all of its folders, and stops where they have different names."""
    number = name[: len("Dataset000")]
    for folder in folders:
        others = [path for path in folder.glob(f"{number}_*") if path.is_dir() and path.name != name]
        if others:
            raise NnplugError(
                f"{name} and {others[0]} have the same id, which nnU-Net can not tell apart. Choose another id for "
                "one, or for the same data set its whole name (--dataset-name)."
            )


# --- inventories -----------------------------------------------------------------------------------------------------


def dataset_name(dataset_id: int, name: str) -> str:
    """``DatasetXXX_NAME`` with what nnU-Net and file systems can take.

    Raises:
        NnplugError: the id is not from 0 to 999, or nothing is left of the name.
    """
    if not 0 <= dataset_id <= 999:
        raise NnplugError(f"--dataset-id {dataset_id}: expected a number from 0 to 999.")
    match = _NAME.fullmatch(name)
    if match and int(match[1]) != dataset_id:
        raise NnplugError(f"--dataset-name {name} has another id than --dataset-id {dataset_id}.")
    # nnU-Net splits folder names at two underscores
    plain = re.sub(r"[^A-Za-z0-9.-]+", "_", match[2] if match else name)
    plain = re.sub(r"_{2,}", "_", plain).strip("._-")
    if not plain:
        raise NnplugError(f"--dataset-name '{name}' has no letter or digit.")
    return f"Dataset{dataset_id:03d}_{plain}"


def open_inventory(
    path: Path, dataset_id: int, name: str | None, cache_dir: Path
) -> tuple[PlanningData, list[Problem]]:
    """An inventory and its cache, without writing anything.

    Args:
        path: the inventory.
        dataset_id: nnU-Net's number.
        name: of the data set; by default that in the inventory, or the name of its file.
        cache_dir: folder for all that is made.

    Returns:
        The data, and the problems of the inventory.

    Raises:
        NnplugError: no inventory; the id belongs to another data set.
    """
    inventory, problems = load_inventory(path)
    folder = dataset_name(dataset_id, name or str(inventory.others.get("name") or path.stem))
    cache_dir = Path(os.path.abspath(cache_dir))
    _check_id(folder, [cache_dir])
    return PlanningData(folder, inventory, cache_dir, cache_dir, is_inventory=True), problems


def write_dataset_json(data: PlanningData) -> None:
    """Write ``dataset.json`` beside what is made: the normalised one of an inventory, a raw data set's as it is.

    One in the Decathlon's style is converted; in the raw data set it stays.

    Raises:
        NnplugError: it can not be written.
    """
    path = data.folder / "dataset.json"
    try:
        data.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NnplugError(f"The cache {data.folder} can not be created ({error.strerror}).") from None
    if data.is_inventory or data.inventory.converted:
        content = data.inventory.dataset_json()
        if not data.is_inventory:
            del content["dataset"]
        if read_json(path) != content:
            write_json(path, content)
        return
    keep_file(path, (data.raw / data.name / path.name).read_bytes())
