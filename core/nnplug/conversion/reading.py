"""Read an image of any of the common formats, voxel for voxel, with what it says of its geometry. No torch.

Axes: C channels, D H W voxels (D is missing in 2D). Spacings are in the order of the array's axes, origin and
direction in ITK's (x, y, z).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnplug.image_headers import UnreadableImageError, read_header, reason
from nnplug.inventory.nifti_bytes import count_nonfinite
from nnplug.problems import count

ITK_ENDINGS = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr")
TIFF_ENDINGS = (".tif", ".tiff")
NATURAL_ENDINGS = (".png", ".bmp", ".jpg", ".jpeg")
#: TIFF's tag ExtraSamples of associated and unassociated alpha.
_ALPHA = ((1,), (2,))
_UNITS_MM = {"nm": 1e-6, "um": 1e-3, "µm": 1e-3, "μm": 1e-3, "\\u00b5m": 1e-3, "micron": 1e-3, "microns": 1e-3}
UNITS_MM = {**_UNITS_MM, "mm": 1.0, "millimeter": 1.0, "cm": 10.0, "m": 1e3, "inch": 25.4}


@dataclass(frozen=True)
class Image:
    """An image.

    Attributes:
        voxels: C D H W, or C H W for 2D; of the type that is stored.
        spacing_mm: of the array's axes but C; None where the file has none.
        origin_mm, direction: position of the first voxel, and the axes' cosines row by row, both in ITK's order; None
            where the file has none.
    """

    voxels: np.ndarray
    spacing_mm: tuple[float, ...] | None = None
    origin_mm: tuple[float, ...] | None = None
    direction: tuple[float, ...] | None = None

    @property
    def size(self) -> tuple[int, ...]:
        """D H W, or H W."""
        return self.voxels.shape[1:]

    @property
    def spacing(self) -> tuple[float, ...]:
        """1 along each axis where the file says nothing."""
        return self.spacing_mm or (1.0,) * len(self.size)


def split_ending(path: Path) -> tuple[str, str]:
    """Stem and ending in lower case; ``.nii.gz`` is one ending."""
    for ending in (*ITK_ENDINGS, ".ome.tif", ".ome.tiff"):
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)], ending
    return path.stem, path.suffix.lower()


def read_image(path: Path, *, is_label: bool = False) -> Image:
    """Read an image whole.

    Args:
        path: one of ``ITK_ENDINGS``, ``TIFF_ENDINGS``, ``NATURAL_ENDINGS``.
        is_label: a palette then gives its numbers, not its colours; JPEG and colours are refused.

    Raises:
        UnreadableImageError: damaged, of another format, or not one image or volume; the message names the file.
    """
    ending = split_ending(path)[1]
    try:
        if not path.is_file():
            raise UnreadableImageError("there is no such file")
        image = _reader(ending, is_label)(path)
        if image.voxels.size == 0:
            raise UnreadableImageError("it has no voxels")
        if is_label and len(image.voxels) != 1:
            raise UnreadableImageError(f"the label holds {len(image.voxels)} channels; expected one of integers")
        number = _count_nonfinite(path, ending, image.voxels)
        if number:
            raise UnreadableImageError(
                f"NaN or infinity in {count(number, 'voxel')}; replace them by a value that means nothing there, for "
                "example 0"
            )
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{path}: {error}") from error
    except Exception as error:  # every library has its own, and each means the same here
        raise UnreadableImageError(f"{path} can not be read: {reason(error)}") from error
    return image


def _reader(ending: str, is_label: bool) -> Callable[[Path], Image]:
    if ending in ITK_ENDINGS:
        return _read_itk
    if ending.endswith(TIFF_ENDINGS):
        return lambda path: _read_tiff(path, is_label)
    if ending in NATURAL_ENDINGS and not (is_label and ending in (".jpg", ".jpeg")):
        return lambda path: _read_natural(path, is_label)
    if ending in NATURAL_ENDINGS:
        raise UnreadableImageError("JPEG changes the values of a label; save it without loss, for example as PNG")
    raise UnreadableImageError(
        f"'{ending}' is no format that can be converted; "
        f"these are: {', '.join((*ITK_ENDINGS, *TIFF_ENDINGS, *NATURAL_ENDINGS))}"
    )


def _count_nonfinite(path: Path, ending: str, voxels: np.ndarray) -> int:
    if ending in (".nii", ".nii.gz"):  # ITK reads NaN as zero
        return count_nonfinite(path)
    return int(np.count_nonzero(~np.isfinite(voxels))) if voxels.dtype.kind in "fc" else 0


def _read_itk(path: Path) -> Image:
    import SimpleITK as sitk

    if path.name.lower().endswith((".nii", ".nii.gz")):
        read_header(path, "SimpleITKIO")  # ITK reads a truncated one without an error
    image = sitk.ReadImage(str(path))
    voxels = sitk.GetArrayFromImage(image)
    num_axes = image.GetDimension()
    if not 2 <= num_axes <= 4:
        raise UnreadableImageError(f"it has {num_axes} axes; expected 2, 3, or 4 with the channels last")
    if image.GetNumberOfComponentsPerPixel() > 1:
        if num_axes == 4:
            raise UnreadableImageError("it has 4 axes and several values a voxel")
        voxels = np.moveaxis(voxels, -1, 0)
    elif num_axes < 4:
        voxels = voxels[None]
    spatial = min(num_axes, 3)
    rows = image.GetDirection()
    return Image(
        voxels,
        image.GetSpacing()[:spatial][::-1],
        image.GetOrigin()[:spatial],
        tuple(rows[row * num_axes + column] for row in range(spatial) for column in range(spatial)),
    )


def _read_natural(path: Path, is_label: bool) -> Image:
    """PNG with ITK, since pillow makes 8 bits of a colour image of 16."""
    from PIL import Image as PillowImage

    with PillowImage.open(path) as image:
        mode = image.mode
        if mode == "P":
            voxels = np.asarray(image if is_label else image.convert("RGB"))
        elif mode == "1":
            voxels = np.asarray(image).astype(np.uint8)
        elif path.suffix.lower() == ".png":
            image.verify()
            voxels = _read_itk(path).voxels
            return Image(voxels if is_label or len(voxels) not in (2, 4) else _without_alpha(voxels))
        else:
            voxels = np.asarray(image)
    if mode not in ("1", "L", "P", "RGB", "RGBA", "I;16", "I", "F"):
        raise UnreadableImageError(f"its colours are {mode}; save it as grey or RGB")
    voxels = np.moveaxis(voxels, -1, 0) if voxels.ndim == 3 else voxels[None]
    return Image(_without_alpha(voxels) if mode == "RGBA" and not is_label else voxels)


def _without_alpha(voxels: np.ndarray) -> np.ndarray:
    """Drop the last channel, of 8 or 16 bits, which is opaque everywhere."""
    if np.any(voxels[-1] != np.iinfo(voxels.dtype).max):
        raise UnreadableImageError("it is partly transparent; save it without the alpha channel")
    return voxels[:-1]


# --- TIFF ------------------------------------------------------------------------------------------------------------


class _Complaints(logging.Handler):
    """What tifffile logs of a broken file instead of raising it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())


def _read_tiff(path: Path, is_label: bool) -> Image:
    import tifffile

    complaints = _Complaints()
    logger = logging.getLogger("tifffile")
    logger.addHandler(complaints)
    try:
        with tifffile.TiffFile(path) as file:
            if len(file.series) != 1:
                raise UnreadableImageError(f"it holds {len(file.series)} images of different kinds; save one a file")
            series = file.series[0]
            voxels, axes = series.asarray(), series.axes
            has_alpha = "S" in axes and series.keyframe.extrasamples[-1:] in _ALPHA
            spacing = _tiff_spacing(file, "Z" in axes or "Q" in axes or "I" in axes)
    finally:
        logger.removeHandler(complaints)
    if any("invalid page offset" in text or "failed to reshape" in text for text in complaints.found):
        raise UnreadableImageError("the file is truncated")
    voxels = _channels_first(voxels, axes)
    if has_alpha and not is_label and voxels.dtype in (np.uint8, np.uint16):
        voxels = _without_alpha(voxels)
    return Image(voxels, spacing if spacing and len(spacing) == voxels.ndim - 1 else None)


def _channels_first(voxels: np.ndarray, axes: str) -> np.ndarray:
    """tifffile's letters: S samples, C channels, Z depth, Q and I pages without a meaning."""
    for index in reversed(range(len(axes))):
        if voxels.shape[index] == 1 and axes[index] not in "YXZ":
            voxels, axes = voxels.squeeze(index), axes[:index] + axes[index + 1 :]
    depth = [index for index, letter in enumerate(axes) if letter in "ZQI"]
    channel = [index for index, letter in enumerate(axes) if letter in "CS"]
    if len(depth) > 1 or len(channel) > 1 or len(depth) + len(channel) + 2 != len(axes):
        shape = "x".join(map(str, voxels.shape))
        raise UnreadableImageError(
            f"its axes are {axes} ({shape}); expected YX, ZYX, or one of them with channels. Save the slices as Z"
        )
    order = [*channel, *depth, axes.index("Y"), axes.index("X")]
    return voxels.transpose(order) if channel else voxels.transpose(order)[None]


def _tiff_spacing(file: Any, is_volume: bool) -> tuple[float, ...] | None:
    """Of ImageJ or OME. The resolution of other files is one for printing and means nothing."""
    if file.is_ome:
        return _ome_spacing(file.ome_metadata, is_volume)
    if not file.is_imagej:
        return None
    known = file.imagej_metadata or {}
    unit = UNITS_MM.get(str(known.get("unit", "")).lower())
    tags = file.pages[0].tags
    if unit is None or "XResolution" not in tags or "YResolution" not in tags:
        return None
    steps = [tags[name].value for name in ("YResolution", "XResolution")]
    if any(0 in step for step in steps) or (is_volume and not known.get("spacing")):
        return None
    plane = tuple(unit * below / above for above, below in steps)
    return (unit * float(known["spacing"]), *plane) if is_volume else plane


def _ome_spacing(text: str, is_volume: bool) -> tuple[float, ...] | None:
    import tifffile

    image = tifffile.xml2dict(text).get("OME", {}).get("Image", {})
    pixels = (image[0] if isinstance(image, list) else image).get("Pixels", {})
    spacing = []
    for axis in "ZYX" if is_volume else "YX":
        unit = UNITS_MM.get(str(pixels.get(f"PhysicalSize{axis}Unit", "µm")).lower())
        if unit is None or f"PhysicalSize{axis}" not in pixels:
            return None
        spacing.append(unit * float(pixels[f"PhysicalSize{axis}"]))
    return tuple(spacing)
