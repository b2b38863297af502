"""What only the files of a case tell: first the headers, then every voxel. Runs in worker processes; imports no torch.

Geometry has to agree within a hundredth of a voxel for the origin, 0.001 for direction cosines, and nnU-Net's own
tolerance for the spacing (relative 1e-5), which its readers and its integrity check share.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TypeVar

import numpy as np

from nnplug.image_headers import (
    DIRECTION_TOLERANCE,
    NNUNET_SPACING_TOLERANCE,
    ImageHeader,
    UnreadableImageError,
    decompressed_length,
    geometry_differences,
    read_header,
    reason,
)
from nnplug.inventory.loading import CaseFiles
from nnplug.inventory.nifti_bytes import count_nonfinite
from nnplug.inventory.readers import misnamed_spacing_files, tiff_spacing_file
from nnplug.problems import Problem, count, shortened

T = TypeVar("T")

_LEAVE_OUT = "or leave the case out."


@dataclass(frozen=True)
class CheckSettings:
    """What every case is compared with.

    Attributes:
        reader: nnU-Net's class.
        channel_names: of the data set.
        label_values: that a label image may hold, sorted.
    """

    reader: type
    channel_names: tuple[str, ...]
    label_values: tuple[int, ...]


@dataclass(frozen=True)
class Headers:
    """What the headers of a case say.

    Attributes:
        problems: what is wrong.
        is_readable: whether every file can be read.
        size, spacing_mm: in the file's axis order; None where they are not known, as for a reader of one's own.
        channels: of each image.
    """

    problems: tuple[Problem, ...]
    is_readable: bool
    size: tuple[int, ...] | None = None
    spacing_mm: tuple[float, ...] | None = None
    channels: tuple[int | None, ...] = ()


# --- headers ---------------------------------------------------------------------------------------------------------


def check_headers(settings: CheckSettings, name: str, files: CaseFiles) -> Headers:
    """Read every header of a case, and compare them with the data set and each other."""
    problems: list[Problem] = []
    headers: dict[Path, ImageHeader] = {}
    for path in files.all:
        try:
            header = _read_header(path, settings.reader.__name__, path == files.label, files.images[0])
        except UnreadableImageError as error:
            advice = f"Mend or replace the file, {_LEAVE_OUT}"
            problems.append(Problem(f"it can not be read by {settings.reader.__name__}: {error}", advice, name, path))
            continue
        if header is not None:
            headers[path] = header
    if len(headers) < len(files.all):
        return Headers(tuple(problems), is_readable=not problems)
    problems += _check_channels(settings, name, files, headers)
    problems += _check_label_file(name, files.label, headers)
    if settings.reader.__name__ == "Tiff3DIO":
        problems += [
            Problem(f"nnU-Net does not read this spacing file, but {wanted.name}", "Rename it.", name, written)
            for written, wanted in misnamed_spacing_files(files.images, files.label)
        ]
    first = headers[files.images[0]]
    for path, header in headers.items():
        problems += [replace(problem, case=name, file=path) for problem in _check_geometry(header, first)]
    channels = tuple(headers[path].num_channels for path in files.images)
    return Headers(tuple(problems), True, first.size, first.spacing_mm, channels)


def _read_header(path: Path, reader: str, is_label: bool, first_image: Path) -> ImageHeader | None:
    header = read_header(path, reader)
    if reader != "Tiff3DIO" or header is None:
        return header
    side_car = tiff_spacing_file(path if is_label else first_image, is_label)
    if not side_car.is_file():
        return replace(header, spacing_mm=(1.0, 1.0, 1.0))
    try:
        spacing = json.loads(side_car.read_text())["spacing"]
        return replace(header, spacing_mm=tuple(float(value) for value in spacing))
    except (ValueError, TypeError, KeyError, OSError):
        raise UnreadableImageError(f"its spacing file {side_car.name} holds no list 'spacing'") from None


def _check_channels(
    settings: CheckSettings, name: str, files: CaseFiles, headers: dict[Path, ImageHeader]
) -> list[Problem]:
    counts = [headers[path].num_channels for path in files.images]
    total = sum(number or 0 for number in counts)
    names = settings.channel_names
    if None in counts or total == len(names):
        return []
    held = ", ".join(f"{path.name} holds {number}" for path, number in zip(files.images, counts, strict=True))
    found = f"it has {total} channels ({held}), and channel_names has {len(names)} ({', '.join(names)})"
    return [Problem(found, "List the images of every channel, in that order.", name)]


def _check_label_file(name: str, label: Path | None, headers: dict[Path, ImageHeader]) -> list[Problem]:
    if label is None:
        return []
    advice = "Save it as one channel of integers without loss, for example as PNG or NIfTI."
    problems = []
    if label.suffix.lower() in (".jpg", ".jpeg"):
        problems.append(Problem("JPEG changes the values of a label", advice, name, label))
    number = headers[label].num_channels
    if number != 1:
        held = "colours of a palette" if number is None else f"{number} channels"
        problems.append(Problem(f"the label holds {held}", advice, name, label))
    return problems


def _check_geometry(header: ImageHeader, first: ImageHeader) -> list[Problem]:
    """Problems without a place."""
    problems = []
    advice = f"Resample it to the grid of the first channel, {_LEAVE_OUT}"
    copied = f"Copy the geometry of the first channel if the voxels do match, resample if not, {_LEAVE_OUT}"
    if header.size != first.size:
        found = f"it has {_shown(header.size)} voxels, the first channel has {_shown(first.size)}"
        return [Problem(found, advice)]
    different = geometry_differences(header, first, NNUNET_SPACING_TOLERANCE)
    if header.spacing_mm is not None and first.spacing_mm is not None:
        if not all(value > 0 for value in header.spacing_mm):
            problems.append(Problem(f"its voxel spacing is {_shown(header.spacing_mm)} mm", "Mend the header."))
        elif "spacing" in different:
            found = (
                f"its spacing is {_shown(header.spacing_mm)} mm, that of the first channel {_shown(first.spacing_mm)}"
            )
            problems.append(Problem(found, advice))
    if header.direction is not None and not _is_orthonormal(header.direction):
        found = f"its axes are not at right angles (direction {_listed(header.direction)})"
        problems.append(Problem(found, "Resample it to a grid with right angles."))
    elif "direction" in different:
        found = f"its direction is {_listed(header.direction)}, that of the first channel {_listed(first.direction)}"
        problems.append(Problem(found, copied))
    if "origin" in different:
        found = f"its origin is {_listed(header.origin_mm)} mm, that of the first channel {_listed(first.origin_mm)}"
        problems.append(Problem(found, copied))
    return problems


def _is_orthonormal(direction: Sequence[float]) -> bool:
    matrix = np.reshape(direction, (math.isqrt(len(direction)), -1))
    return bool(np.all(np.abs(matrix @ matrix.T - np.eye(len(matrix))) <= DIRECTION_TOLERANCE))


def _shown(values: Sequence[float]) -> str:
    return "x".join(f"{value:.6g}" for value in values)


def _listed(values: Sequence[float] | None) -> str:
    return ", ".join(f"{round(value, 6) + 0.0:.6g}" for value in values or ())  # no -0


# --- voxels ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Voxels:
    """A case that was read.

    Attributes:
        problems: what is wrong with its voxels.
        image: first channel as nnU-Net reads it, D H W.
        label: D H W, None without one or where its shape is another.
        spacing: of these three axes.
    """

    problems: tuple[Problem, ...]
    image: np.ndarray
    label: np.ndarray | None
    spacing: tuple[float, ...]


def check_voxels(settings: CheckSettings, name: str, files: CaseFiles) -> Voxels:
    """Read a case whole, one file after the other.

    Raises:
        UnreadableImageError: the message names the file.
    """
    reader = settings.reader()
    problems = byte_problems(name, files)
    for path in files.images:
        array, properties = _read(path, lambda path: reader.read_images([path]))
        problems += image_problems(name, [path], [len(array)], array)
        if path == files.images[0]:
            image, spacing = array[0], tuple(properties["spacing"])
    label = None
    if files.label is not None:
        label = _read(files.label, reader.read_seg)[0]
        problems += label_problems(name, files.label, label, settings.label_values)
        label = label[0] if label.shape[1:] == image.shape else None
    return Voxels(tuple(dict.fromkeys(problems)), image, label, spacing)


def byte_problems(name: str, files: CaseFiles) -> list[Problem]:
    """What nnU-Net's readers do not show: NaN and infinite voxels of NIfTI files.

    Raises:
        UnreadableImageError: a file is damaged; the message names it.
    """
    numbers = {path: _read(path, _count_nonfinite) for path in files.all}
    return [_nonfinite(name, path, number) for path, number in numbers.items() if number]


def _count_nonfinite(path: str) -> int:
    if path.endswith((".nii", ".nii.gz")):
        return count_nonfinite(Path(path))
    if path.endswith(".gz"):
        decompressed_length(Path(path))
    return 0


def _nonfinite(name: str, path: Path, number: int) -> Problem:
    advice = "Replace them by a value that means nothing there, for example 0."
    return Problem(f"NaN or infinity in {count(number, 'voxel')}", advice, name, path)


def _read(path: Path, read: Callable[[str], T]) -> T:
    try:
        return read(str(path))
    except Exception as error:  # every library has its own, and each means the same here
        raise UnreadableImageError(f"{path} can not be read: {reason(error)}") from error


def image_problems(
    name: str, files: Sequence[Path], channels: Sequence[int | None], images: np.ndarray
) -> list[Problem]:
    """NaN and infinite voxels.

    Args:
        name: of the case.
        files, channels: images, and how many channels each holds.
        images: C D H W, as nnU-Net reads them.
    """
    ends = list(accumulate(number or 1 for number in channels))
    problems = []
    for index, channel in enumerate(images):
        # their minimum or maximum shows them, without a mask of the size of the image
        if channel.size and math.isfinite(channel.min()) and math.isfinite(channel.max()):
            continue
        path = files[min(sum(end <= index for end in ends), len(files) - 1)]
        problems.append(_nonfinite(name, path, int(np.count_nonzero(~np.isfinite(channel)))))
    return problems


def label_problems(name: str, file: Path, label: np.ndarray, allowed: Sequence[int]) -> list[Problem]:
    """Values that are no integers, or not in the label set; nothing for an empty set."""
    if not allowed:
        return []
    slabs = list(label.reshape(-1, *label.shape[-2:]))
    if all(_is_allowed(slab, allowed) for slab in slabs):
        return []
    values = np.unique(np.concatenate([np.unique(slab) for slab in slabs]))
    wrong = [value for value in values.tolist() if value not in allowed]
    if not wrong:
        return []
    if any(not math.isfinite(value) or value != int(value) for value in wrong):
        fractions = [value for value in wrong if not math.isfinite(value) or value != int(value)]
        found = f"the label holds values that are no integers ({shortened([f'{value:.6g}' for value in fractions])})"
        return [Problem(found, "Interpolate labels with nearest neighbour; save integers.", name, file)]
    found = (
        f"the label holds {shortened([f'{value:.0f}' for value in wrong])}; labels has {', '.join(map(str, allowed))}"
    )
    return [Problem(found, "Add the label, or change these voxels.", name, file)]


def _is_allowed(slab: np.ndarray, allowed: Sequence[int]) -> bool:
    if not (slab.min() >= 0 and slab.max() <= allowed[-1]) or list(allowed) != list(range(len(allowed))):
        return False
    return np.array_equal(slab.astype(np.uint16 if allowed[-1] < 2**16 else np.int64), slab)
