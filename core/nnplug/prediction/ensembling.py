"""Average the probabilities of several predictions, with nnU-Net's own function for each case."""

from __future__ import annotations

import os
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnplug.errors import NnplugError
from nnplug.files.json_files import keep_json
from nnplug.files.safe_pickle import read_pickle
from nnplug.models.descriptions import Descriptions, find_description, read_descriptions
from nnplug.prediction.postprocessing import move_all
from nnplug.problems import Problem, raise_problems
from nnplug.processes.case_pool import Pool, choose_num_processes

# the last two come from numpy's reading of the header
_DAMAGED = (
    *(OSError, KeyError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error),
    *(tokenize.TokenError, SyntaxError),
)
_AGAIN = "Predict it again with --save_probabilities."


@dataclass(frozen=True)
class _Work:
    reader: type[Any]
    labels: Any
    ending: str
    save_probabilities: bool
    drafts: Path
    output: Path


def ensemble(
    inputs: Sequence[Path],
    output: Path,
    *,
    save_probabilities: bool = False,
    num_processes: int | None = None,
    progress_bar: bool = True,
) -> list[Path]:
    """Average predictions that were made with ``--save_probabilities``.

    Args:
        inputs: folders of predictions of the same cases; the first one's ``dataset.json`` and ``plans.json`` are used.
        output: folder for the segmentations; each is whole or not there.
        save_probabilities: also write ``CASE.npz`` and ``CASE.pkl``.
        num_processes: worker processes, 0 for none; by default up to 8, none for one or two cases.
        progress_bar: show one where there is a terminal.

    Returns:
        The segmentations, sorted.

    Raises:
        NnplugError: folders that do not hold the same cases, classes or image sizes, files that are damaged or would
            run code when they are read. Every problem is listed.
    """
    descriptions = _read_inputs(inputs, output)
    cases = _find_cases(inputs)
    output.mkdir(parents=True, exist_ok=True)
    number = choose_num_processes(num_processes, 0 if len(cases) < 3 else 8, len(cases))
    pool = Pool(number, progress_bar=progress_bar, preload=("nnunetv2.ensembling.ensemble",))
    ending = descriptions.file_ending
    with tempfile.TemporaryDirectory(dir=output, prefix=".nnplug-") as drafts:
        work = _Work(descriptions.reader, descriptions.labels, ending, save_probabilities, Path(drafts), output)
        failures = pool.run(_merge, work, cases, "averaging")
    raise_problems(
        "The ensemble", [Problem(why, "Mend it and run this again.", name) for name, why in sorted(failures.items())]
    )
    # what nnplug evaluate and postprocess look for
    keep_json(output / "dataset.json", descriptions.dataset_json)
    keep_json(output / "plans.json", descriptions.plans)
    return [output / f"{name}{ending}" for name in cases]


def _read_inputs(inputs: Sequence[Path], output: Path) -> Descriptions:
    for folder in inputs:
        if not folder.is_dir():
            raise NnplugError(f"There is no folder {folder}.")
        if output.exists() and output.samefile(folder):
            raise NnplugError(f"The output folder is the input folder {folder}: choose another one.")
    if len({folder.resolve() for folder in inputs}) < max(2, len(inputs)):
        raise NnplugError("An ensemble needs at least two folders, all of them different. Name them with -i.")
    advice = "Predictions of nnplug and nnU-Net have it beside them."
    found = [
        read_descriptions(*(find_description(name, [folder], advice) for name in ("dataset.json", "plans.json")))
        for folder in inputs
    ]
    for folder, other in zip(inputs, found, strict=True):
        for key in ("labels", "regions_class_order"):
            one, two = found[0].dataset_json.get(key), other.dataset_json.get(key)
            if one != two:
                raise NnplugError(f"{folder} has {key} {two}, and {inputs[0]} has {one}: their classes differ.")
    return found[0]


def _find_cases(inputs: Sequence[Path]) -> dict[str, tuple[Path, ...]]:
    names = [{path.stem for path in folder.glob("[!.]*.npz")} for folder in inputs]
    every = sorted(set.union(*names))
    if not every:
        raise NnplugError(f"{inputs[0]} has no probabilities (.npz). {_AGAIN}")
    problems = [
        Problem(f"it has no probabilities ({name}.npz) in {folder}", _AGAIN, name)
        for name in every
        for folder, there in zip(inputs, names, strict=True)
        if name not in there
    ]
    cases = {name: tuple(folder / f"{name}.npz" for folder in inputs) for name in every}
    complete = {name: files for name, files in cases.items() if all(name in there for there in names)}
    raise_problems("The ensemble", problems + check_probabilities(complete))
    return cases


def check_probabilities(cases: Mapping[str, Sequence[Path]]) -> list[Problem]:
    """What is wrong with the files that nnU-Net would average, without reading them whole.

    Raises:
        NnplugError: a file would run code when it is read.
    """
    problems = []
    for name, files in cases.items():
        shapes = {}
        for path in files:
            try:
                shapes[path] = _shape(path)
            except _DAMAGED as error:
                problems.append(Problem(f"it is no file of probabilities ({error})", _AGAIN, name, path))
        problems += [
            Problem(f"its shape is {shape}, that in {files[0].parent} {shapes[files[0]]}", _AGAIN, name, path)
            for path, shape in shapes.items()
            if files[0] in shapes and shape != shapes[files[0]]
        ]
        properties = files[0].with_suffix(".pkl")
        if not properties.is_file():
            problems.append(Problem(f"{properties.name} is missing beside it", _AGAIN, name, files[0]))
        else:
            read_pickle(properties)  # nnU-Net's own loading runs what a foreign one contains
    return problems


def _shape(path: Path) -> tuple[int, ...]:
    """Of the array in nnU-Net's ``.npz``: its header is enough."""
    with zipfile.ZipFile(path) as archive, archive.open("probabilities.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(file)[0]


def _merge(work: _Work, name: str, files: tuple[Path, ...]) -> None:
    from nnunetv2.ensembling.ensemble import merge_files

    folder = work.drafts / name
    folder.mkdir()
    merge_files(
        [os.fspath(path) for path in files],
        os.fspath(folder / name),
        work.ending,
        work.reader(),
        work.labels,
        work.save_probabilities,
    )
    move_all(folder, work.output)
