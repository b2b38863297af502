"""Task folders of the Medical Segmentation Decathlon and of nnU-Net v1 to raw data sets. Imports no torch.

Volumes are copied byte for byte. The Decathlon keeps channels in a fourth axis: these are split, each into a file with
the header, type and scaling of its source. nnU-Net v1 kept 2D images as volumes of one slice: these become 2D, so that
the spacing which was made up for the slice plays no part any more.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nnplug.conversion.reading import Image, read_image
from nnplug.conversion.running import Case, Conversion, Outcome, run
from nnplug.conversion.target import check_description, raw_target, task_name, write_description
from nnplug.conversion.writing import Output, write_voxels
from nnplug.errors import NnplugError
from nnplug.files.json_files import read_required_json
from nnplug.inventory import rules
from nnplug.inventory.case_check import CheckSettings, byte_problems, check_headers, label_problems
from nnplug.inventory.loading import CaseFiles
from nnplug.inventory.old_style import to_new_style
from nnplug.problems import Problem, raise_problems
from nnplug.processes.case_pool import CaseFailure, Pool

_ENDING = ".nii.gz"
#: Keys of the Decathlon that list files, which nnU-Net finds by their names.
_LISTS = ("training", "test", "numTest", "tensorImageSize")


@dataclass(frozen=True)
class TaskFolder:
    """What to convert.

    Attributes:
        folder: with ``dataset.json``, ``imagesTr``, ``labelsTr``, and ``imagesTs``, ``labelsTs`` where there are some.
        raw: folder of the new data set's folder; None takes ``nnUNet_raw``.
        dataset_id, name: of the new data set; None takes those of a folder ``Task04_Hippocampus``.
        numbered: images are named ``CASE_0000`` as in nnU-Net v1, a file a channel.
    """

    folder: Path
    raw: Path | None = None
    dataset_id: int | None = None
    name: str | None = None
    numbered: bool = False


def convert_task(task: TaskFolder, pool: Pool, *, overwrite: bool = False, dry_run: bool = False) -> Outcome:
    """Convert a task folder.

    Raises:
        NnplugError: the folder is no such task; all cases that can not be converted are named.
    """
    content = _read_description(task.folder)
    target = _target(task)
    cases = _find_cases(task, content)
    is_2d = task.numbered and _are_slices(cases)
    num_training = sum(1 for case in cases.values() if case.work[0] == "Tr")
    new, _ = to_new_style(content)
    new = {key: value for key, value in new.items() if key not in _LISTS}
    new |= {"numTraining": num_training, "file_ending": _ENDING}
    check_description(task.folder / "dataset.json", new)
    conversion = Conversion(
        target=target,
        settings={"command": "v1" if task.numbered else "msd", "dataset": new, **({"is_2d": True} if is_2d else {})},
        cases=cases,
        convert=_convert_case,
        shared=_Shared(tuple(new["channel_names"].values()), tuple(rules.label_values(new["labels"])), is_2d),
        finish=partial(write_description, target, new),
        final_file=target / "dataset.json",
    )
    return run(conversion, pool, overwrite=overwrite, dry_run=dry_run)


class _Shared(NamedTuple):
    channels: tuple[str, ...]
    labels: tuple[int, ...]
    is_2d: bool


def _read_description(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise NnplugError(f"There is no folder {folder}.")
    missing = [name for name in ("imagesTr", "labelsTr") if not (folder / name).is_dir()]
    if missing:
        raise NnplugError(f"{folder} has no folder {' and no folder '.join(missing)}. Give the folder TaskXX_NAME.")
    content = read_required_json(folder / "dataset.json", "The description")
    if not isinstance(content, dict) or not {"modality", "channel_names"} & set(content) or "labels" not in content:
        raise NnplugError(f"{folder / 'dataset.json'} has no modality or no labels: this is no task folder.")
    return content


def _target(task: TaskFolder) -> Path:
    known = task_name(task.folder)
    if known is None and (task.dataset_id is None or task.name is None):
        raise NnplugError(
            f"The folder {task.folder} is not named TaskXX_NAME. Give --dataset-id N and --dataset-name NAME."
        )
    known_id, known_name = known or (0, "")
    return raw_target(task.raw, known_id if task.dataset_id is None else task.dataset_id, task.name or known_name)


# --- finding cases ---------------------------------------------------------------------------------------------------


def _find_cases(task: TaskFolder, content: dict[str, Any]) -> dict[str, Case]:
    problems: list[Problem] = []
    cases: dict[str, Case] = {}
    for part in ("Tr", "Ts"):
        images, labels = task.folder / f"images{part}", task.folder / f"labels{part}"
        for name, files in _group(images, task.numbered, problems).items():
            label: Path | None = labels / f"{name}{_ENDING}"
            if label is not None and not label.is_file():
                if part == "Tr":
                    problems.append(Problem("there is no label", "Add it, or remove the images.", name, label))
                label = None
            if name in cases:
                problems.append(Problem("it is in imagesTr and in imagesTs", "Rename one of them.", name))
            sources = (*files, *([label] if label else []))
            cases[name] = Case(sources, (part, tuple(files), label))
    for entry in content.get("training", []):
        named = [entry.get("image"), entry.get("label")] if isinstance(entry, dict) else []
        for file in filter(None, named):
            if not task.numbered and not (task.folder / file).is_file():
                advice = "Mend dataset.json, or add the file."
                problems.append(Problem("dataset.json lists it, and it is not there", advice, file=task.folder / file))
    if not cases:
        problems.append(Problem("imagesTr holds no .nii.gz file", "Give the folder TaskXX_NAME."))
    raise_problems(task.folder, problems)
    return cases


def _group(folder: Path, numbered: bool, problems: list[Problem]) -> dict[str, list[Path]]:
    cases: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        # archives made on a Mac have a second file ._NAME for each
        if not path.name.endswith(_ENDING) or path.name.startswith((".", "_")):
            continue
        name = path.name.removesuffix(_ENDING)
        if numbered:
            name, _, number = name.rpartition("_")
            if number != f"{len(cases.get(name, [])):04d}":
                found = f"channel {len(cases.get(name, [])):04d} was expected"
                problems.append(Problem(found, "Name images CASE_0000.nii.gz, CASE_0001.nii.gz.", name or None, path))
        cases.setdefault(name, []).append(path)
    return cases


def _are_slices(cases: dict[str, Case]) -> bool:
    """Whether every file is a volume of one slice; those that can not be read are told later."""
    import nibabel

    shapes: list[tuple[int, ...]] = []
    for path in (path for case in cases.values() for path in case.sources):
        with contextlib.suppress(Exception):  # every library has its own
            image: Any = nibabel.load(path)
            shapes.append(image.shape)
    return bool(shapes) and all(len(shape) == 3 and shape[2] == 1 for shape in shapes)


# --- in a worker -----------------------------------------------------------------------------------------------------


def _convert_case(shared: _Shared, name: str, work: tuple[str, tuple[Path, ...], Path | None]) -> list[Output]:
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    part, images, label = work
    files = CaseFiles(images, label)
    settings = CheckSettings(SimpleITKIO, shared.channels, shared.labels)
    problems = list(check_headers(settings, name, files).problems)
    if not problems:
        problems = byte_problems(name, files)
        if label is not None:
            problems += label_problems(name, label, SimpleITKIO().read_seg(str(label))[0], shared.labels)
    if problems:
        raise CaseFailure(
            "; ".join(f"{problem.file.name if problem.file else name}: {problem.found}" for problem in problems)
        )
    named = {f"images{part}/{name}_{index:04d}{_ENDING}": path for index, path in enumerate(images)}
    if label is not None:
        named[f"labels{part}/{name}{_ENDING}"] = label
    if shared.is_2d:
        return [Output(file, partial(_write_slice, path)) for file, path in named.items()]
    outputs = list(_split_channels(f"images{part}/{name}", images[0])) if len(images) == 1 else []
    written = {output.file for output in outputs}
    return outputs + [
        Output(file, partial(shutil.copyfile, path)) for file, path in named.items() if file not in written
    ]


def _split_channels(stem: str, image: Path) -> Iterator[Output]:
    """The channels of a 4D image; nothing of a volume, which is copied."""
    import nibabel

    first: Any = nibabel.load(image)
    if len(first.shape) == 3:
        return
    voxels = first.dataobj.get_unscaled()
    for index in range(first.shape[3]):
        yield Output(f"{stem}_{index:04d}{_ENDING}", partial(_write_channel, first, voxels[..., index]))


def _write_slice(source: Path, path: Path) -> None:
    """The one slice as a 2D image with the values, the type and the geometry that it has within its plane."""
    image = read_image(source)
    turned = np.reshape(image.direction, (3, 3))[:2, :2] if image.direction is not None else np.eye(2)
    if not np.allclose(turned @ turned.T, np.eye(2), atol=1e-3):  # the plane is tilted: a 2D image can not tell
        turned = np.eye(2)
    plane = Image(
        image.voxels[:, 0], image.spacing[1:], image.origin_mm and image.origin_mm[:2], tuple(turned.ravel().tolist())
    )
    write_voxels(plane.voxels[0], plane, path)


def _write_channel(source: Any, voxels: Any, path: Path) -> None:
    """With the header of the source, whose scaling of stored values stays as it is."""
    channel = type(source)(voxels, None, source.header)
    channel.header.set_slope_inter(source.dataobj.slope, source.dataobj.inter)
    channel.to_filename(path)
