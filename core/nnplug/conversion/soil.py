"""Sparsely annotated X-ray CT (soil, rock, concrete) to a raw data set with an ignore label. Imports no torch.

In an annotation each class has a number, and one more number stands for "to be predicted": nnU-Net's ignore label.
With 0 for it the classes count from 1, with -1 from 0; the first class becomes nnU-Net's background either way.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnplug.conversion.images import check_same_grid, read_with_spacing
from nnplug.conversion.reading import Image, read_image
from nnplug.conversion.running import Case, Conversion, Outcome, run
from nnplug.conversion.spacing import parse_spacing
from nnplug.conversion.target import check_description, raw_target, write_description
from nnplug.conversion.writing import TARGET_ENDINGS, Output, image_outputs, label_outputs, reader_for, relabel
from nnplug.errors import NnplugError
from nnplug.inventory.patterns import find_files
from nnplug.problems import raise_problems
from nnplug.processes.case_pool import CaseFailure, Pool

#: nnU-Net's channel names that choose a normalisation, by what the user writes.
NORMALIZATIONS = ("noNorm", "zscore", "rescale_to_0_1", "rgb_to_0_1")


@dataclass(frozen=True)
class SoilSettings:
    """What to convert; the keys of the TOML file.

    Attributes:
        images, annotations: folders; a volume and its annotation have the same name but for the postfixes.
        dataset_id, dataset_name: of the new data set.
        classes: names of the classes in the order of their numbers.
        unlabelled: number of voxels to be predicted, 0 or -1 (255 where -1 was saved as an unsigned byte).
        margin: voxels of context kept around the annotated part.
        no_crop: keep whole volumes.
        normalization: one of ``NORMALIZATIONS``; becomes the channel's name, so that prediction normalises alike.
        bake_in: normalise the voxels of the whole volume now, as float32, and name the channel noNorm.
        image_postfix, annotation_postfix: end of the names, with the ending, as ``_image.tif``.
        spacing: as ``x=5 y=5 z=5 um``; None reads it from the files.
        file_ending: of the result.
        raw_dir: folder of data sets; None takes ``nnUNet_raw``.
    """

    images: Path
    annotations: Path
    dataset_id: int
    dataset_name: str
    classes: tuple[str, ...]
    unlabelled: int = 0
    margin: int = 32
    no_crop: bool = False
    normalization: str = "zscore"
    bake_in: bool = False
    image_postfix: str = ".tif"
    annotation_postfix: str = ".tif"
    spacing: str | None = None
    file_ending: str = ".nii.gz"
    raw_dir: Path | None = None

    @property
    def first_value(self) -> int:
        """Number of the first class in the annotations."""
        return 1 if self.unlabelled == 0 else 0


def load_settings(path: Path | None, given: Mapping[str, Any]) -> SoilSettings:
    """The settings of a TOML file, over which stands what is given on the command line.

    Paths in the file count from its folder.

    Raises:
        NnplugError: no such file, an unknown key, a value of the wrong type, or something is missing.
    """
    content = _read_toml(path) if path is not None else {}
    merged: dict[str, Any] = content | {key: value for key, value in given.items() if value is not None}
    where = str(path) if path is not None else "nnplug convert soil"
    needed = [field.name for field in fields(SoilSettings)][:5]
    missing = [name for name in needed if name not in merged]
    if missing:
        raise NnplugError(f"{where}: {', '.join(missing)} missing. Give it as an option or in the TOML file.")
    settings = SoilSettings(**merged | {"classes": tuple(merged["classes"])})
    _check(where, settings)
    return settings


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NnplugError(f"{path} can not be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise NnplugError(f"{path} is no valid TOML ({error}).") from None
    kinds = {field.name: str(field.type) for field in fields(SoilSettings)}
    unknown = sorted(set(content) - set(kinds))
    if unknown:
        raise NnplugError(f"{path}: unknown key '{unknown[0]}'. The keys are {', '.join(kinds)}.")
    for key, value in content.items():
        kind = kinds[key].removesuffix(" | None")
        kinds_in_toml: dict[str, type] = {"int": int, "bool": bool, "tuple[str, ...]": list}
        python = kinds_in_toml.get(kind, str)
        if type(value) is not python or (isinstance(value, list) and not all(map(_is_text, value))):
            expected = {int: "an integer", bool: "true or false", list: "a list of texts"}.get(python, "a text")
            raise NnplugError(f"{path}: {key}: expected {expected}, got {value!r}.")
    paths = {key: path.parent / value for key, value in content.items() if kinds[key].startswith("Path")}
    return content | paths


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _check(where: str, settings: SoilSettings) -> None:
    for key, value, known in (
        ("normalization", settings.normalization, NORMALIZATIONS),
        ("file_ending", settings.file_ending, tuple(one for one in TARGET_ENDINGS if one != ".png")),
    ):
        if value not in known:
            raise NnplugError(f"{where}: {key} is '{value}'. Choose one of {', '.join(known)}.")
    if settings.margin < 0:
        raise NnplugError(f"{where}: margin is {settings.margin}. Give 0 or more voxels, or --no-crop.")
    last = settings.first_value + len(settings.classes) - 1
    if len(settings.classes) < 2 or len(set(settings.classes)) < len(settings.classes):
        raise NnplugError(f"{where}: classes are {', '.join(settings.classes)}. Give two or more different names.")
    if settings.first_value <= settings.unlabelled <= last:
        raise NnplugError(
            f"{where}: unlabelled is {settings.unlabelled}, and the classes are {settings.first_value} to {last}. "
            f"Give 0, -1, or a number above {last}."
        )
    if "ignore" in settings.classes:
        raise NnplugError(f"{where}: the class name 'ignore' is nnU-Net's own for what is not annotated. Rename it.")


def convert_soil(settings: SoilSettings, pool: Pool, *, overwrite: bool = False, dry_run: bool = False) -> Outcome:
    """Convert volumes and their sparse annotations.

    Raises:
        NnplugError: nothing is found; all cases that can not be converted are named.
    """
    images = find_files(settings.images, [f"{{case}}{settings.image_postfix}"], None)
    annotations = find_files(settings.annotations, [f"{{case}}{settings.annotation_postfix}"], None)
    raise_problems(settings.images, [*images.problems, *annotations.problems])
    volumes = {name: paths[0] for name, paths in images.images.items()}
    drawn = {name: paths[0] for name, paths in annotations.images.items() if paths[0] not in volumes.values()}
    alone = sorted(set(drawn) - set(volumes))
    if alone:
        raise NnplugError(
            f"{drawn[alone[0]]}: there is no {settings.images / alone[0]}{settings.image_postfix}. Add it, or say how "
            "the names end with --image-postfix and --annotation-postfix."
        )
    if not drawn:
        raise NnplugError(f"No annotation in {settings.annotations} belongs to an image in {settings.images}.")
    target = raw_target(settings.raw_dir, settings.dataset_id, settings.dataset_name)
    description = _describe(settings, len(drawn))
    check_description(settings.annotations, description)
    plain: dict[str, Any] = {
        field.name: getattr(settings, field.name) for field in fields(settings) if field.name != "raw_dir"
    }
    conversion = Conversion(
        target=target,
        settings={"command": "soil", **plain},
        cases={name: Case((volumes[name], drawn[name]), (volumes[name], drawn[name])) for name in drawn},
        convert=_convert_case,
        shared=settings,
        finish=partial(write_description, target, description),
        final_file=target / "dataset.json",
    )
    if settings.spacing is not None:
        parse_spacing(settings.spacing.split())
    return run(conversion, pool, overwrite=overwrite, dry_run=dry_run)


def _describe(settings: SoilSettings, num_cases: int) -> dict[str, Any]:
    names = ["background", *settings.classes[1:], "ignore"]
    return {
        "channel_names": {"0": "noNorm" if settings.bake_in else settings.normalization},
        "labels": {name: index for index, name in enumerate(names)},
        "numTraining": num_cases,
        "file_ending": settings.file_ending,
        **reader_for(settings.file_ending, 3),
        "classes": list(settings.classes),
        **({"baked_in": settings.normalization} if settings.bake_in else {}),
    }


# --- in a worker -----------------------------------------------------------------------------------------------------


def _convert_case(settings: SoilSettings, name: str, work: tuple[Path, Path]) -> list[Output]:
    path, annotation_path = work
    stated = parse_spacing(settings.spacing.split()) if settings.spacing is not None else None
    image = read_with_spacing(path, stated)
    if len(image.voxels) != 1 or len(image.size) != 3:
        shape = "x".join(map(str, image.voxels.shape))
        raise CaseFailure(f"{path}: expected a volume of one channel, and it is {shape}")
    annotation = read_image(annotation_path, is_label=True)
    if stated is not None:
        annotation = replace(annotation, spacing_mm=image.spacing_mm)
    check_same_grid(annotation_path, annotation, image)
    values = [*range(settings.first_value, settings.first_value + len(settings.classes)), settings.unlabelled]
    try:
        label = relabel(annotation.voxels[0], values)
        if settings.bake_in:
            image = replace(image, voxels=normalize(image.voxels, settings.normalization))
    except CaseFailure as error:
        raise CaseFailure(f"{annotation_path}: {error}") from None
    annotated = label != len(settings.classes)
    if not annotated.any():
        raise CaseFailure(f"{annotation_path}: every voxel is {settings.unlabelled}, nothing is annotated")
    if not settings.no_crop:
        box = box_around(annotated, settings.margin)
        image, label = crop(image, box), label[box]
    outputs = image_outputs(f"imagesTr/{name}", [image], settings.file_ending)
    return outputs + label_outputs(f"labelsTr/{name}", label, image, settings.file_ending)


def normalize(voxels: np.ndarray, normalization: str) -> np.ndarray:
    """What nnU-Net would do with a whole volume, as float32.

    Raises:
        CaseFailure: ``rgb_to_0_1`` with values outside 0 to 255.
    """
    exact = voxels.astype(np.float64)
    low, high = exact.min(), exact.max()
    if normalization == "zscore":
        exact = (exact - exact.mean()) / max(exact.std(), 1e-8)
    elif normalization == "rescale_to_0_1":
        exact = (exact - low) / max(high - low, 1e-8)
    elif normalization == "rgb_to_0_1":
        if low < 0 or high > 255:
            raise CaseFailure(f"the values go from {low:g} to {high:g}; rgb_to_0_1 is for 0 to 255, see rescale_to_0_1")
        exact = exact / 255
    return exact.astype(np.float32)


def box_around(annotated: np.ndarray, margin: int) -> tuple[slice, ...]:
    """The smallest box that holds every True, with ``margin`` voxels more on each side where there are some."""
    box = []
    for axis in range(annotated.ndim):
        others = tuple(other for other in range(annotated.ndim) if other != axis)
        found = np.flatnonzero(annotated.any(axis=others))
        box.append(slice(max(0, int(found[0]) - margin), min(annotated.shape[axis], int(found[-1]) + 1 + margin)))
    return tuple(box)


def crop(image: Image, box: Sequence[slice]) -> Image:
    """A part of an image, which stays where it is in space."""
    num_axes = len(image.size)
    offset = [part.start * step for part, step in zip(box, image.spacing, strict=True)][::-1]
    rows = image.direction or tuple(float(row == column) for row in range(num_axes) for column in range(num_axes))
    start = image.origin_mm or (0.0,) * num_axes
    origin = tuple(
        start[row] + math.fsum(rows[row * num_axes + column] * offset[column] for column in range(num_axes))
        for row in range(num_axes)
    )
    return replace(image, voxels=image.voxels[(slice(None), *box)], origin_mm=origin, direction=rows)
