"""Voxel spacing from three places: what the user states, a file beside the image, the image's header. No torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from nnplug.conversion.reading import UNITS_MM, Image, split_ending
from nnplug.errors import NnplugError
from nnplug.image_headers import UnreadableImageError

EXAMPLE = "--spacing x=0.5 y=0.5 z=2 mm"
_UNITS = ("nm", "um", "mm", "cm", "m")


def parse_spacing(words: Sequence[str]) -> dict[str, float]:
    """Axis to spacing in mm of ``x=0.5 y=0.5 z=2 mm``.

    Raises:
        NnplugError: an axis or the unit is not stated, or a value is no positive number.
    """
    given = " ".join(words)
    *values, unit = words or [""]
    if unit not in _UNITS:
        raise NnplugError(
            f"--spacing {given}: the unit is missing. End with one of {', '.join(_UNITS)}, as in {EXAMPLE}."
        )
    found: dict[str, float] = {}
    for word in values:
        match = re.fullmatch(r"([xyz])=([0-9.eE+-]+)", word)
        try:
            value = float(match[2]) if match else math.nan
        except ValueError:
            value = math.nan
        if match is None or not (value > 0 and math.isfinite(value)) or match[1] in found:
            raise NnplugError(f"--spacing {given}: '{word}' is no axis with a positive number, as in {EXAMPLE}.")
        found[match[1]] = value * UNITS_MM[unit]
    if not {"x", "y"} <= set(found):
        raise NnplugError(f"--spacing {given}: give x and y, and z for volumes, as in {EXAMPLE}.")
    return found


def find_spacing(
    path: Path, image: Image, stated: Mapping[str, float] | None, *, is_needed: bool = True
) -> tuple[float, ...] | None:
    """Spacing in mm along the array's axes; None for a 2D image that has none, and where none ``is_needed``.

    What is stated wins. A header and a file beside the image have to agree.

    Raises:
        UnreadableImageError: none for a volume, two that differ, or one of other axes; the message names the file.
    """
    if stated is not None:
        axes = "zyx"[-len(image.size) :]
        if not set(axes) <= set(stated):
            raise UnreadableImageError(f"{path}: it is a volume, and --spacing has no z")
        return tuple(stated[axis] for axis in axes)
    beside = _read_side_car(path, len(image.size))
    header = image.spacing_mm
    if beside is not None and header is not None and not all(map(_agree, beside, header)):
        raise UnreadableImageError(
            f"{path}: its header says {_shown(header)} mm, the file beside it {_shown(beside)}; give --spacing"
        )
    found = beside or header
    if found is None and len(image.size) == 3 and is_needed:
        raise UnreadableImageError(
            f"{path}: nothing tells its voxel spacing. Give it, as in {EXAMPLE}, or write "
            f'{{"spacing": [z, y, x]}} in mm into {split_ending(path)[0]}.json beside it'
        )
    if found is not None and not all(value > 0 and math.isfinite(value) for value in found):
        raise UnreadableImageError(f"{path}: its voxel spacing is {_shown(found)} mm; give --spacing")
    return found


def _agree(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-4)


def _shown(spacing: Sequence[float]) -> str:
    return "x".join(f"{value:.6g}" for value in spacing)


def _read_side_car(path: Path, num_axes: int) -> tuple[float, ...] | None:
    """nnU-Net's own: ``{"spacing": [z, y, x]}`` in mm, beside the image, with or without the channel's number."""
    stem = split_ending(path)[0]
    for name in dict.fromkeys((stem, re.sub(r"_\d{4}$", "", stem))):
        file = path.with_name(f"{name}.json")
        if not file.is_file():
            continue
        try:
            spacing = tuple(float(value) for value in json.loads(file.read_text(encoding="utf-8"))["spacing"])
        except (ValueError, TypeError, KeyError):
            raise UnreadableImageError(f"{file}: it has no list 'spacing'") from None
        if len(spacing) != num_axes:
            raise UnreadableImageError(f"{file}: it has {len(spacing)} values, and the image has {num_axes} axes")
        return spacing
    return None
