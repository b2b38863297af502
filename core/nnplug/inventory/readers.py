"""Which of nnU-Net's classes reads the images of a data set. Imports nnunetv2's readers, not torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES, recursive_find_reader_writer_by_name

from nnplug.errors import NnplugError
from nnplug.image_headers import UnreadableImageError, read_header
from nnplug.inventory.loading import Inventory


def choose_reader(inventory: Inventory) -> type[Any]:
    """The class that nnU-Net takes: the first one for ``file_ending`` that can read the first image.

    Raises:
        NnplugError: nnU-Net has none for the ending, or none of the name in ``overwrite_image_reader_writer``.
    """
    # nnU-Net's word for none is "None" too
    named = str(inventory.others.get("overwrite_image_reader_writer"))
    if named != "None":
        try:
            return recursive_find_reader_writer_by_name(named)
        except RuntimeError:
            known = ", ".join(one.__name__ for one in LIST_OF_IO_CLASSES)
            raise NnplugError(
                f"{inventory.path}: overwrite_image_reader_writer is {named!r}, which nnU-Net does not have. "
                f"Leave it out, or choose one of {known}."
            ) from None
    ending = inventory.file_ending.lower()
    candidates = [one for one in LIST_OF_IO_CLASSES if ending in one.supported_file_endings]
    if not candidates:
        known = ", ".join(dict.fromkeys(end for one in LIST_OF_IO_CLASSES for end in one.supported_file_endings))
        raise NnplugError(f"{inventory.path}: nnU-Net can not write file_ending {ending}. It can write {known}.")
    for files in list(inventory.cases.values())[:1]:
        for candidate in candidates:
            try:
                read_header(files.images[0], candidate.__name__)
            except UnreadableImageError:
                continue
            return candidate
    return candidates[0]


def tiff_spacing_file(path: Path, is_label: bool) -> Path:
    """Where nnU-Net looks for the spacing of a 3D TIFF: beside it, without the four digits of an image's channel."""
    stem = path.name.rpartition(".")[0]
    return path.with_name((stem if is_label else stem[:-5]) + ".json")


def misnamed_spacing_files(files: Sequence[Path], label: Path | None) -> list[tuple[Path, Path]]:
    """Spacing files that nnU-Net does not read, each with the one that it would read."""
    found = []
    for path in [*files, *([label] if label is not None else [])]:
        wanted = tiff_spacing_file(files[0] if path != label else path, path == label)
        for stem in {path.name.rpartition(".")[0], re.sub(r"_\d{4}$", "", path.name.rpartition(".")[0])}:
            written = path.with_name(f"{stem}.json")
            if written.is_file() and not wanted.is_file() and "spacing" in written.read_text(errors="replace"):
                found.append((written, wanted))
    return list(dict.fromkeys(found))
