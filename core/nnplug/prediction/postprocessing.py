"""Apply nnU-Net's post-processing, which ``find_best`` has chosen, to a folder of predictions."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnplug.errors import NnplugError
from nnplug.files.json_files import keep_json
from nnplug.files.safe_pickle import read_pickle
from nnplug.image_headers import UnreadableImageError, read_header
from nnplug.models.descriptions import find_description, read_descriptions
from nnplug.problems import Problem, raise_problems
from nnplug.processes.case_pool import Pool, choose_num_processes

_MODULE = "nnunetv2.postprocessing.remove_connected_components"
_FUNCTION = "remove_all_but_largest_component_from_segmentation"  # the only one that nnU-Net writes
_ARGUMENTS = {"labels_or_regions", "background_label"}


@dataclass(frozen=True)
class _Work:
    reader: type[Any]
    steps: list[dict[str, Any]]
    drafts: Path
    output: Path


def read_postprocessing(path: Path) -> list[dict[str, Any]]:
    """The arguments of each call of nnU-Net's ``remove_all_but_largest_component_from_segmentation``.

    Nothing that the file names is imported or run.

    Raises:
        NnplugError: no such file; it holds anything else than these calls.
    """
    if not path.is_file():
        raise NnplugError(f"There is no post-processing file {path}.")
    content = read_pickle(path, {f"{_MODULE}.{_FUNCTION}"})
    if _is_pair_of_lists(content):
        names, arguments = content
        known = all(isinstance(name, str) and name == f"{_MODULE}.{_FUNCTION}" for name in names)
        if known and all(map(_are_plain_arguments, arguments)):
            return arguments
    raise NnplugError(f"{path} is no post-processing file of nnU-Net: expected calls of {_FUNCTION} with labels.")


def _is_pair_of_lists(content: Any) -> bool:
    is_pair = isinstance(content, tuple) and len(content) == 2
    return is_pair and all(isinstance(part, list) for part in content) and len(content[0]) == len(content[1])


def _are_plain_arguments(arguments: Any) -> bool:
    return (
        isinstance(arguments, dict)
        and arguments.keys() <= _ARGUMENTS
        and "labels_or_regions" in arguments
        and all(map(_are_labels, arguments.values()))
    )


def _are_labels(value: Any, depth: int = 2) -> bool:
    """A label, a region, or a list of them."""
    if not isinstance(value, list | tuple):
        return type(value) is int
    parts = {id(part): part for part in value}.values()  # a pickle may hold one long list many times
    return depth > 0 and all(_are_labels(part, depth - 1) for part in parts)


def postprocess(
    inputs: Path,
    output: Path,
    steps_file: Path,
    *,
    dataset_json: Path | None = None,
    plans: Path | None = None,
    num_processes: int | None = None,
    progress_bar: bool = True,
) -> list[Path]:
    """Apply the steps of a ``postprocessing.pkl`` to every image of a folder.

    Args:
        inputs: folder with predictions.
        output: folder for the results; each is whole or not there.
        steps_file: nnU-Net's ``postprocessing.pkl``, read without running what it may contain.
        dataset_json, plans: nnU-Net's files; by default those of ``inputs``, or else beside ``steps_file``.
        num_processes: worker processes, 0 for none; by default up to 8, none for one or two images.
        progress_bar: show one where there is a terminal.

    Returns:
        The files, sorted.

    Raises:
        NnplugError: a folder or file that is missing, a foreign ``steps_file``, images that can not be read (all of
            them are listed).
    """
    steps = read_postprocessing(steps_file)
    if not inputs.is_dir():
        raise NnplugError(f"There is no folder {inputs}.")
    if output.exists() and output.samefile(inputs):
        raise NnplugError(f"The output folder is the input folder {inputs}: choose another one, or they are lost.")
    places = [inputs, steps_file.parent]
    descriptions = read_descriptions(
        dataset_json or find_description("dataset.json", places, "Name it with -dataset_json FILE."),
        plans or find_description("plans.json", places, "Name it with -plans_json FILE."),
    )
    ending = descriptions.file_ending
    files = {path.name: path for path in sorted(inputs.glob(f"[!.]*{ending}"))}
    if not files:
        raise NnplugError(f"{inputs} has no '{ending}' file, the file_ending of dataset.json.")
    reader = descriptions.reader
    raise_problems(inputs, _unreadable(files, reader.__name__))
    output.mkdir(parents=True, exist_ok=True)
    number = choose_num_processes(num_processes, 0 if len(files) < 3 else 8, len(files))
    pool = Pool(number, progress_bar=progress_bar, preload=(_MODULE,))
    with tempfile.TemporaryDirectory(dir=output, prefix=".nnplug-") as drafts:
        work = _Work(reader, steps, Path(drafts), output)
        failures = pool.run(_apply, work, files, "post-processing")
    raise_problems(inputs, [Problem(why, "Mend it and run this again.", name) for name, why in failures.items()])
    # what an evaluation looks for
    keep_json(output / "dataset.json", descriptions.dataset_json)
    keep_json(output / "plans.json", descriptions.plans)
    return [output / name for name in files]


def _unreadable(files: dict[str, Path], reader: str) -> list[Problem]:
    problems = []
    for path in files.values():
        try:
            read_header(path, reader)
        except UnreadableImageError as error:
            problems.append(Problem(f"it can not be read: {error}", "Predict it again.", file=path))
    return problems


def _apply(work: _Work, name: str, path: Path) -> None:
    from nnunetv2.postprocessing import remove_connected_components as nnunet

    function = getattr(nnunet, _FUNCTION)
    folder = work.drafts / name
    folder.mkdir()
    nnunet.load_postprocess_save(
        str(path), str(folder / name), work.reader(), [function] * len(work.steps), list(work.steps)
    )
    move_all(folder, work.output)


def move_all(draft: Path, output: Path) -> None:
    """Move the files of one case into their place: an image may have a file with its spacing beside it."""
    for path in sorted(draft.iterdir()):
        os.replace(path, output / path.name)
