"""One picture of a data set: a slice of every case with the outlines of its labels. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from nnplug.files.atomic_file import replace_file

SIDE = 160
_CAPTION = 14
_WINDOW_PERCENTILES = (0.5, 99.5)
# distinguishable on grey, also for most colour-blind readers (Okabe and Ito's palette without black)
COLOURS = np.array(
    [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)],
    np.uint8,
)


def draw_case(
    image: np.ndarray, label: np.ndarray | None, spacing: tuple[float, ...] | None = None, side: int = SIDE
) -> np.ndarray:
    """The slice with the most labelled voxels, or the middle one.

    Args:
        image, label: D H W.
        spacing: of the three axes; None is 1.
        side: pixels of the longer side.

    Returns:
        H W 3, uint8.
    """
    index = len(image) // 2
    if label is not None and (label > 0).any():
        index = int(np.argmax([np.count_nonzero(plane > 0) for plane in label]))
    picture = _scale(_grey(image[index]), spacing, side, Image.Resampling.BILINEAR)
    if label is None:
        return picture
    plane = np.clip(label[index], 0, 255).astype(np.uint8)
    outline = _outline(_scale(plane, spacing, side, Image.Resampling.NEAREST)[..., 0])
    picture[outline > 0] = COLOURS[(outline[outline > 0] - 1) % len(COLOURS)]
    return picture


def write_overview(path: Path, pictures: Mapping[str, np.ndarray], side: int = SIDE) -> None:
    """Put pictures of at most ``side`` pixels into one PNG, each with its name. Raises as ``replace_file``."""
    columns = max(1, min(len(pictures), math.ceil(math.sqrt(len(pictures) * (side + _CAPTION) / side))))
    rows = max(1, math.ceil(len(pictures) / columns))
    sheet = Image.new("RGB", (columns * side, rows * (side + _CAPTION)))
    draw = ImageDraw.Draw(sheet)
    for position, (name, picture) in enumerate(pictures.items()):
        left, top = position % columns * side, position // columns * (side + _CAPTION)
        height, width = picture.shape[:2]
        sheet.paste(Image.fromarray(picture), (left + (side - width) // 2, top + (side - height) // 2))
        draw.text((left + 2, top + side + 1), name[: side // 6 - 1], fill=(255, 255, 255))
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda file: sheet.save(file, "PNG"))


def _grey(plane: np.ndarray) -> np.ndarray:
    finite = plane[np.isfinite(plane)]
    low, high = np.percentile(finite, _WINDOW_PERCENTILES) if finite.size else (0.0, 1.0)
    shown = np.nan_to_num((plane - low) / (high - low or 1.0), posinf=1.0, neginf=0.0)
    return (255 * np.clip(shown, 0, 1)).astype(np.uint8)


def _scale(plane: np.ndarray, spacing: tuple[float, ...] | None, side: int, method: Image.Resampling) -> np.ndarray:
    height, width = (size * step for size, step in zip(plane.shape, (spacing or (1.0, 1.0, 1.0))[-2:], strict=True))
    factor = side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.array(Image.fromarray(plane).resize(size, method).convert("RGB"))


def _outline(plane: np.ndarray) -> np.ndarray:
    """Labelled pixels with another value beside them."""
    padded = np.pad(plane, 1)
    neighbours = (padded[2:, 1:-1], padded[:-2, 1:-1], padded[1:-1, 2:], padded[1:-1, :-2])
    inner = np.logical_and.reduce([neighbour == plane for neighbour in neighbours])
    return np.where(inner, 0, plane)
