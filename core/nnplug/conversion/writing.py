"""Write images in nnU-Net's formats without loss; what a format can not hold is refused. No torch.

Axes: C channels, D H W voxels (D is missing in 2D).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from nnplug.conversion.reading import Image
from nnplug.processes.case_pool import CaseFailure

#: What nnU-Net reads and writes.
TARGET_ENDINGS = (".nii.gz", ".nii", ".mha", ".nrrd", ".tif", ".png")
#: Formats that are read and not written, and what is written in their place.
WRITTEN_AS = {".mhd": ".mha", ".nhdr": ".nrrd", ".tiff": ".tif", ".ome.tif": ".tif", ".ome.tiff": ".tif"}
_INTEGERS = tuple(map(np.dtype, ("uint8", "uint16", "int16", "int32", "uint32")))


@dataclass(frozen=True)
class Output:
    """A file to write.

    Attributes:
        file: from the target's folder on.
        write: called with the path to write to, which has the same ending.
    """

    file: str
    write: Callable[[Path], object]


def image_outputs(stem: str, images: Sequence[Image], ending: str) -> list[Output]:
    """The files of a case: a file a channel, but one for a 2D image of three colours in PNG or TIFF.

    Args:
        stem: folder and case.
        images: on the same grid; their channels are numbered through.
        ending: one of ``TARGET_ENDINGS``.

    Raises:
        CaseFailure: the format can not hold it.
    """
    first = images[0]
    if ending == ".png" and len(first.size) == 3:
        raise CaseFailure("it is a volume, and PNG holds single slices; choose --file-ending .nii.gz")
    if ending in (".png", ".tif") and len(images) == 1 and first.voxels.shape[0] == 3 and len(first.size) == 2:
        parts = [np.moveaxis(fit_type(first.voxels, ending, is_colour=True), 0, -1)]
    else:
        parts = [fit_type(channel, ending) for image in images for channel in image.voxels]
    outputs = [
        Output(f"{stem}_{index:04d}{ending}", partial(write_voxels, part, first)) for index, part in enumerate(parts)
    ]
    return outputs + side_cars(stem, first, ending)


def label_outputs(stem: str, label: np.ndarray, geometry: Image, ending: str) -> list[Output]:
    """The file of a label (D H W or H W, small integers), on the grid of ``geometry``."""
    output = Output(f"{stem}{ending}", partial(write_voxels, label, geometry))
    return [output, *side_cars(stem, geometry, ending)]


def side_cars(stem: str, image: Image, ending: str) -> list[Output]:
    """A 3D TIFF has no geometry: nnU-Net reads the spacing from a file beside it; the rest is kept there too."""
    return [geometry_file(stem, image)] if ending == ".tif" and len(image.size) == 3 else []


def geometry_file(stem: str, image: Image) -> Output:
    """Spacing, origin and direction as JSON."""
    content = {"spacing": image.spacing}
    if image.origin_mm is not None:
        content |= {"origin_xyz": image.origin_mm, "direction_xyz": image.direction or ()}
    return Output(f"{stem}.json", lambda path: path.write_text(json.dumps(content), encoding="utf-8"))


def reader_for(ending: str, num_axes: int) -> dict[str, str]:
    """nnU-Net's reader, for ``dataset.json``: left to itself it takes volumes of 3 or 4 slices for colours."""
    if ending != ".tif":
        return {}
    return {"overwrite_image_reader_writer": "Tiff3DIO" if num_axes == 3 else "NaturalImage2DIO"}


def fit_type(voxels: np.ndarray, ending: str, is_colour: bool = False) -> np.ndarray:
    """The same values in a type that the format has.

    Raises:
        CaseFailure: there is none.
    """
    kind, size = voxels.dtype.kind, voxels.dtype.itemsize
    if kind == "b":
        return voxels.astype(np.uint8)
    if kind not in "iuf" or size > 8:
        raise CaseFailure(f"voxels of type {voxels.dtype} can not be kept; convert them to real numbers first")
    if kind == "f":
        if ending == ".png":
            raise CaseFailure("PNG holds no fractions, and the voxels are floating point; choose --file-ending .tif")
        return voxels.astype(np.float32) if size < 4 else voxels
    allowed = _INTEGERS
    if ending == ".png":
        allowed = allowed[: 1 if is_colour else 2]
    elif size <= 4:
        return voxels
    if voxels.dtype in allowed:
        return voxels
    low, high = int(voxels.min()), int(voxels.max())
    ranges = [(int(np.iinfo(str(one)).min), int(np.iinfo(str(one)).max)) for one in allowed]
    for dtype, (lowest, highest) in zip(allowed, ranges, strict=True):
        if lowest <= low and high <= highest:
            return voxels.astype(dtype)
    what = f"{'a colour ' if is_colour else ''}{ending[1:].upper()}"
    lowest, highest = min(low for low, _ in ranges), max(high for _, high in ranges)
    advice = "choose --file-ending .nii.gz" if ending == ".png" else "scale them down first"
    raise CaseFailure(f"the values go from {low} to {high}, and {what} holds {lowest} to {highest}; {advice}")


def write_voxels(voxels: np.ndarray, geometry: Image, path: Path) -> None:
    """Write one file; ``voxels`` D H W, H W, or H W 3 for colours."""
    if path.suffix == ".tif":
        import tifffile

        photometric = "rgb" if voxels.ndim > len(geometry.size) else "minisblack"
        tifffile.imwrite(path, voxels, compression="zlib", photometric=photometric)
        return
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(voxels, isVector=voxels.ndim > len(geometry.size))
    if path.suffix != ".png":
        image.SetSpacing(geometry.spacing[::-1])
        if geometry.origin_mm is not None:
            image.SetOrigin(geometry.origin_mm)
        if geometry.direction is not None:
            image.SetDirection(geometry.direction)
    sitk.WriteImage(image, str(path), True)


def relabel(label: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """``values[i]`` becomes ``i``, in the smallest unsigned type.

    Raises:
        CaseFailure: other values are there; they are named.
    """
    present = np.unique(label)
    wrong = [value for value in present.tolist() if value not in values]
    if wrong:
        more = " and others" if len(wrong) > 5 else ""
        raise CaseFailure(
            f"the label holds {', '.join(f'{value:.6g}' for value in wrong[:5])}{more}; "
            f"expected {', '.join(map(str, values))}"
        )
    new = np.zeros(label.shape, np.uint8 if len(values) <= 256 else np.uint16)
    for index, value in enumerate(values):
        new[label == value] = index
    return new
