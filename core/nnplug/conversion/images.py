"""Images of any common format to a raw data set, an inventory, or a folder to predict. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from nnplug.conversion.reading import Image, read_image
from nnplug.conversion.running import Case, Conversion, Outcome, run
from nnplug.conversion.spacing import find_spacing
from nnplug.conversion.target import check_description, write_description
from nnplug.conversion.writing import TARGET_ENDINGS, Output, image_outputs, label_outputs, reader_for, relabel
from nnplug.errors import NnplugError
from nnplug.image_headers import ROUNDED_SPACING_TOLERANCE, UnreadableImageError, geometry_differences
from nnplug.inventory import rules
from nnplug.inventory.file_stats import stat_files
from nnplug.inventory.loading import CaseFiles, Inventory
from nnplug.inventory.making import write_inventory
from nnplug.inventory.patterns import FoundFiles, default_patterns, find_files, read_table
from nnplug.problems import Problem, raise_problems
from nnplug.processes.case_pool import CaseFailure, Pool


@dataclass(frozen=True)
class ImageFiles:
    """What to convert, and into what.

    Attributes:
        folder: that is searched; None with ``table``.
        target: folder of the result.
        image_patterns, label_pattern: see ``nnplug inventory make``; None takes those of the folder's layout.
        table: CSV file with the columns case, label and one for each channel; without ``labels`` it needs no label.
        labels: name to value in the source's labels; they are numbered in this order. Empty for images to predict.
        channels: names; None takes those of the patterns, the colours, or numbers.
        spacing_mm: by axis x, y, z, stated by the user; None reads it.
        ending: of the result; None takes PNG for 2D images and compressed NIfTI for volumes.
        inventory: write this file in place of ``dataset.json``.
    """

    folder: Path | None
    target: Path
    image_patterns: Sequence[str] | None = None
    label_pattern: str | None = None
    table: Path | None = None
    labels: Mapping[str, int] = field(default_factory=dict)
    channels: Sequence[str] | None = None
    spacing_mm: Mapping[str, float] | None = None
    ending: str | None = None
    inventory: Path | None = None


@dataclass(frozen=True)
class _Settings:
    ending: str
    num_channels: int
    label_values: tuple[int, ...]
    spacing_mm: dict[str, float] | None
    is_training: bool


def parse_labels(words: Sequence[str]) -> dict[str, int]:
    """Name to value of ``background vessel`` (numbered from 0) or ``background=0 vessel=255``.

    Raises:
        NnplugError: only some have a value, or names or values are there twice.
    """
    names = [word.partition("=")[0] for word in words]
    values = [word.partition("=")[2] for word in words]
    if not any(values) and not any("=" in word for word in words):
        values = [str(index) for index in range(len(words))]
    wrong = [word for word, value in zip(words, values, strict=True) if not value.lstrip("-").isdecimal()]
    if wrong or len(set(names)) < len(names) or len(set(map(str, values))) < len(values) or not all(names):
        raise NnplugError(
            f"--labels {' '.join(words)}: give different names, each with its value in the files or none of them, as "
            "in --labels background=0 vessel=255."
        )
    return {name: int(value) for name, value in zip(names, values, strict=True)}


def convert_images(files: ImageFiles, pool: Pool, *, overwrite: bool = False, dry_run: bool = False) -> Outcome:
    """Convert images, and labels where there are some.

    Raises:
        NnplugError: nothing is found; labels or channels can not be told; all cases that fail are named.
    """
    source = files.table or files.folder
    found = _find(files)
    raise_problems(source, [*found.problems, *_used_twice(found)])
    channels, ending, reader = _describe(files, found)
    description: dict[str, Any] = {
        "channel_names": {str(index): name for index, name in enumerate(channels)},
        "labels": {name: index for index, name in enumerate(files.labels)},
        "numTraining": len(found.images),
        "file_ending": ending,
        **reader,
    }
    if files.labels:
        check_description(source, description)
    spacing = dict(files.spacing_mm) if files.spacing_mm is not None else None
    shared = _Settings(ending, len(channels), tuple(files.labels.values()), spacing, bool(files.labels))
    conversion = Conversion(
        target=files.target,
        settings={"command": "images", **description, "label_values": shared.label_values, "spacing_mm": spacing},
        cases={
            name: Case((*images, *_label(found, name)), (tuple(images), found.labels.get(name)))
            for name, images in found.images.items()
        },
        convert=_convert_case,
        shared=shared,
        finish=lambda _files: None,
        final_file=None,
    )
    if files.inventory is not None:
        finish = partial(_write_inventory, files.inventory, files.target, description)
        conversion = replace(conversion, finish=finish, final_file=files.inventory)
    elif files.labels:
        finish = partial(write_description, files.target, description)
        conversion = replace(conversion, finish=finish, final_file=files.target / "dataset.json")
    return run(conversion, pool, overwrite=overwrite, dry_run=dry_run)


def _find(files: ImageFiles) -> FoundFiles:
    if files.table is not None:
        return read_table(files.table, labelled=bool(files.labels))
    assert files.folder is not None
    images, label = files.image_patterns, files.label_pattern
    if images is None and files.labels:
        if not files.folder.is_dir():
            raise NnplugError(f"There is no folder {files.folder}.")
        images, label = default_patterns(files.folder)
    if images is None or (files.labels and label is None):
        raise NnplugError("Say which files: --images 'PATTERN', and --label 'PATTERN' with --labels.")
    if label is not None and not files.labels:
        raise NnplugError("What do the labels mean? Name their values, as in --labels background=0 vessel=255.")
    return find_files(files.folder, images, label)


def _used_twice(found: FoundFiles) -> list[Problem]:
    uses = [(name, f"channel {index}", path) for name in found.images for index, path in enumerate(found.images[name])]
    uses += [(name, "label", path) for name, path in found.labels.items()]
    return rules.check_duplicates(uses, stat_files([path for _, _, path in uses]))


def _label(found: FoundFiles, name: str) -> tuple[Path, ...]:
    return (found.labels[name],) if name in found.labels else ()


def _describe(files: ImageFiles, found: FoundFiles) -> tuple[list[str], str, dict[str, str]]:
    """Channel names, ending and nnU-Net's reader, from the first readable case where they are not given."""
    first, images = _read_one(found)
    number = sum(len(image.voxels) for image in images)
    if files.channels is not None:
        channels = list(files.channels)
    elif number == len(first) and all(found.channels):
        channels = list(found.channels)
    else:
        colours = ["red", "green", "blue"]
        channels = colours if number == 3 and len(first) == 1 else [f"channel_{index}" for index in range(number)]
    if len(channels) != number:
        raise NnplugError(f"--channels has {len(channels)} names ({', '.join(channels)}), and {first[0]} has {number}.")
    ending = files.ending or (".png" if len(images[0].size) == 2 else ".nii.gz")
    if ending not in TARGET_ENDINGS:
        raise NnplugError(f"--file-ending {ending}: nnU-Net has {', '.join(TARGET_ENDINGS)}.")
    return channels, ending, reader_for(ending, len(images[0].size))


def _read_one(found: FoundFiles) -> tuple[Sequence[Path], list[Image]]:
    refusal: UnreadableImageError | None = None
    for paths in found.images.values():
        try:
            return paths, [read_image(path) for path in paths]
        except UnreadableImageError as error:  # it is named with the others that fail
            refusal = refusal or error
    raise NnplugError(f"No image can be read: {refusal}. Mend the files.") from refusal


def _write_inventory(
    path: Path, target: Path, description: Mapping[str, Any], files: Mapping[str, Sequence[str]]
) -> None:
    cases = {
        name: CaseFiles(
            tuple(target / file for file in of_case if file.startswith("imagesTr/") and not file.endswith(".json")),
            next(target / file for file in of_case if file.startswith("labelsTr/") and not file.endswith(".json")),
        )
        for name, of_case in files.items()
    }
    channels = tuple(description["channel_names"].values())
    others = {key: description[key] for key in ("overwrite_image_reader_writer",) if key in description}
    inventory = Inventory(path, channels, description["labels"], description["file_ending"], cases, others)
    write_inventory(inventory, path, overwrite=True)


# --- in a worker -----------------------------------------------------------------------------------------------------


def _convert_case(settings: _Settings, name: str, work: tuple[tuple[Path, ...], Path | None]) -> list[Output]:
    paths, label_path = work
    images = [read_with_spacing(path, settings.spacing_mm) for path in paths]
    number = sum(len(image.voxels) for image in images)
    if number != settings.num_channels:
        raise CaseFailure(f"it has {number} channels, and the first case has {settings.num_channels}")
    for path, image in zip(paths[1:], images[1:], strict=True):
        check_same_grid(path, image, images[0])
    stem = f"imagesTr/{name}" if settings.is_training else name
    outputs = image_outputs(stem, images, settings.ending)
    if label_path is not None:
        label = read_image(label_path, is_label=True)
        if settings.spacing_mm is not None:
            label = replace(label, spacing_mm=images[0].spacing_mm)
        check_same_grid(label_path, label, images[0])
        try:
            numbers = relabel(label.voxels[0], settings.label_values)
        except CaseFailure as error:
            raise CaseFailure(f"{label_path}: {error}") from None
        outputs += label_outputs(f"labelsTr/{name}", numbers, images[0], settings.ending)
    return outputs


def read_with_spacing(path: Path, stated: Mapping[str, float] | None) -> Image:
    """An image with the spacing that ``find_spacing`` finds. Raises UnreadableImageError."""
    image = read_image(path)
    return replace(image, spacing_mm=find_spacing(path, image, stated))


def check_same_grid(path: Path, image: Image, first: Image) -> None:
    """Refuse an image or label on another grid; what one of the two files does not tell is not compared.

    Raises:
        CaseFailure: size, spacing (relative 1e-4), origin (0.01 voxel) or direction (0.001) differ.
    """
    if image.size != first.size:
        raise CaseFailure(f"{path}: it has {_shown(image.size)} voxels, the first channel has {_shown(first.size)}")
    for what, (one, other) in geometry_differences(image, first, ROUNDED_SPACING_TOLERANCE).items():
        raise CaseFailure(f"{path}: its {what} is {_shown(one)}, that of the first channel {_shown(other)}")


def _shown(values: Sequence[float]) -> str:
    return "x".join(f"{value:.6g}" for value in values)
