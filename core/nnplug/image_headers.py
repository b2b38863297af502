"""What the header of an image says, and whether the file is whole. Imports no torch.

ITK reads a truncated NIfTI file without an error and fills the missing voxels with zeros, so its reader alone does not
tell a damaged image from a good one.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class ImageHeader:
    """Size of an image.

    Attributes:
        size: voxels along each spatial axis, in the file's axis order.
        spacing_mm: voxel spacing in the same order; None where the format has none.
        num_channels: channels in this file; None where only reading it all would tell.
        origin_mm: position of the first voxel; None where the format has none.
        direction: the axes' direction cosines, row by row; None where the format has none.
    """

    size: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None
    num_channels: int | None
    origin_mm: tuple[float, ...] | None = field(default=None, compare=False)
    direction: tuple[float, ...] | None = field(default=None, compare=False)


class Geometry(Protocol):
    """Where the voxels of an image are; see ``ImageHeader``."""

    @property
    def spacing_mm(self) -> tuple[float, ...] | None: ...
    @property
    def origin_mm(self) -> tuple[float, ...] | None: ...
    @property
    def direction(self) -> tuple[float, ...] | None: ...


#: Relative: nnU-Net's readers and its integrity check refuse channels whose spacings differ by more.
NNUNET_SPACING_TOLERANCE = 1e-5
#: Relative: lets headers pass that were rounded, where nnU-Net does not read the two together.
ROUNDED_SPACING_TOLERANCE = 1e-4
DIRECTION_TOLERANCE = 1e-3
_ORIGIN_TOLERANCE_VOXELS = 0.01


def geometry_differences(
    image: Geometry, first: Geometry, spacing_tolerance: float
) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
    """What differs of ``spacing``, ``origin`` and ``direction``; what one of the two does not tell is not compared.

    Origins may be a hundredth of the first one's smallest voxel apart, direction cosines 0.001.

    Args:
        image, first: of the same size.
        spacing_tolerance: relative.

    Returns:
        The values of both.
    """
    voxel = min(first.spacing_mm) if first.spacing_mm else 1.0
    compared = (
        ("spacing", image.spacing_mm, first.spacing_mm, spacing_tolerance, 1e-8),
        ("origin", image.origin_mm, first.origin_mm, 0.0, _ORIGIN_TOLERANCE_VOXELS * voxel),
        ("direction", image.direction, first.direction, 0.0, DIRECTION_TOLERANCE),
    )
    return {
        what: (one, other)
        for what, one, other, relative, absolute in compared
        if one is not None and other is not None and not _are_close(one, other, relative, absolute)
    }


def _are_close(one: Sequence[float], other: Sequence[float], relative: float, absolute: float) -> bool:
    return len(one) == len(other) and all(
        math.isclose(a, b, rel_tol=relative, abs_tol=absolute) for a, b in zip(one, other, strict=True)
    )


class UnreadableImageError(Exception):
    """An image that can not be read; the message is the reason alone."""


def read_header(path: Path, reader: str) -> ImageHeader | None:
    """Read the header with the library that nnU-Net's reader uses.

    Args:
        path: the image.
        reader: name of nnU-Net's reader class in the plans (``image_reader_writer``).

    Returns:
        The header, or None for a reader that is not one of nnU-Net 2.8.

    Raises:
        UnreadableImageError: no image of this format, or an incomplete one.
    """
    read = {
        "SimpleITKIO": _read_itk,
        "NibabelIO": _read_nifti,
        "NibabelIOWithReorient": _read_nifti,
        "NaturalImage2DIO": _read_natural,
        "Tiff3DIO": _read_tiff,
    }.get(reader)
    if read is None:
        return None
    try:
        if path.stat().st_size == 0:
            raise UnreadableImageError("the file is empty")
        header = read(path)
        if reader == "SimpleITKIO" and path.name.endswith((".nii", ".nii.gz")):
            _check_whole_nifti(path)
        if 0 in header.size:
            raise UnreadableImageError("it has no voxels")
    except UnreadableImageError:
        raise
    except Exception as error:  # every library has its own, and each means the same here
        raise UnreadableImageError(reason(error)) from error
    return header


def reason(error: BaseException) -> str:
    """One line that says why, out of a library's message: ITK puts it last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix("sitk::ERROR: ").rstrip(".") if lines else type(error).__name__


def _read_itk(path: Path) -> ImageHeader:
    import SimpleITK as sitk

    file = sitk.ImageFileReader()
    file.SetFileName(str(path))
    file.ReadImageInformation()
    size, spacing = file.GetSize(), file.GetSpacing()
    if file.GetNumberOfComponents() != 1:
        raise UnreadableImageError(f"its voxels hold {file.GetNumberOfComponents()} values; expected a file a channel")
    if not 2 <= len(size) <= 4:
        raise UnreadableImageError(f"it has {len(size)} axes")
    num_axes = min(len(size), 3)
    rows = file.GetDirection()
    return ImageHeader(
        tuple(size[:3]),
        tuple(map(abs, spacing[:3])),
        size[3] if len(size) == 4 else 1,
        tuple(file.GetOrigin()[:3]),
        tuple(rows[row * len(size) + column] for row in range(num_axes) for column in range(num_axes)),
    )


def _read_nifti(path: Path) -> ImageHeader:
    import nibabel

    image: Any = nibabel.load(path)
    if len(image.shape) != 3:
        raise UnreadableImageError(f"it has {len(image.shape)} axes; expected 3")
    _check_whole_nifti(path)
    zooms = tuple(map(float, image.header.get_zooms()))
    rows = [[float(value) for value in row] for row in image.affine[:3]]
    return ImageHeader(
        tuple(image.shape),
        zooms,
        1,
        tuple(row[3] for row in rows),
        tuple(row[axis] / (zooms[axis] or 1.0) for row in rows for axis in range(3)),
    )


def _read_natural(path: Path) -> ImageHeader:
    if path.suffix.lower() in (".tif", ".tiff"):
        import tifffile

        with tifffile.TiffFile(path) as file:
            _check_whole_tiff(file, path)
            shape = file.series[0].shape
        if len(shape) == 3 and shape[-1] not in (3, 4):
            raise UnreadableImageError(f"its shape is {'x'.join(map(str, shape))}; expected a grey or RGB image")
        return ImageHeader(tuple(shape[:2]), None, shape[2] if len(shape) == 3 else 1)
    from PIL import Image

    with Image.open(path) as image:
        size, mode = image.size, image.mode
        image.verify()
    channels = {"RGB": 3, "RGBA": 4, "1": 1, "L": 1, "I": 1, "F": 1}
    return ImageHeader(size, None, 1 if mode.startswith("I;16") else channels.get(mode))


def _read_tiff(path: Path) -> ImageHeader:
    import tifffile

    with tifffile.TiffFile(path) as file:
        _check_whole_tiff(file, path)
        shape = tuple(file.series[0].shape)
    if len(shape) != 3:
        raise UnreadableImageError(f"it has {len(shape)} axes instead of 3, or is truncated")
    return ImageHeader(shape, None, 1)


def _check_whole_tiff(file: Any, path: Path) -> None:
    series = file.series[0]
    if series.dataoffset is not None:
        ends = [series.dataoffset + series.nbytes]
        num_voxels = series.size
    else:
        pages = [page for page in series.pages if page is not None]
        ends = [sum(ends) for page in pages for ends in zip(page.dataoffsets, page.databytecounts, strict=True)]
        num_voxels = sum(page.size for page in pages)
    if num_voxels != series.size or max(ends, default=math.inf) > path.stat().st_size:
        raise UnreadableImageError("the file is truncated")


def _check_whole_nifti(path: Path) -> None:
    """Compare the length of the data with what the header announces; a compressed file stores its own at its end."""
    import nibabel

    image: Any = nibabel.load(path)
    if 0 in image.shape:  # ITK takes such an axis for one voxel
        raise UnreadableImageError("it has no voxels")
    expected = image.dataobj.offset + math.prod(image.shape) * image.get_data_dtype().itemsize
    if not path.name.endswith(".gz"):
        if path.stat().st_size < expected:
            raise UnreadableImageError("the file is truncated")
        return
    with path.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        stored = int.from_bytes(file.read(4), "little")
    # a file of several compressed blocks stores only the last one's length: decompress it to know
    if stored != expected % 2**32 and decompressed_length(path) < expected:
        raise UnreadableImageError("the file is truncated")


def decompressed_length(path: Path) -> int:
    """Length in bytes of what a ``.gz`` file holds, all of it read and its checksums compared.

    Raises:
        UnreadableImageError: truncated or damaged.
    """
    try:
        with gzip.open(path) as file:
            return sum(len(block) for block in iter(lambda: file.read(1 << 22), b""))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UnreadableImageError("the file is truncated or damaged") from error
