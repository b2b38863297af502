"""Folders for results, of which a refused start leaves nothing, and free names."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def removed_if_refused(path: Path) -> Iterator[None]:
    """Where the block ends in an error, remove what it made of this folder and of those above it, if they are empty."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # it holds something, or was never made
            for folder in missing:
                folder.rmdir()
        raise


def free_name(path: Path) -> Path:
    """``path``, or where that is taken the first free of ``NAME_2``, ``NAME_3`` and so on beside it."""
    names = (path.with_name(f"{path.stem}_{number}{path.suffix}") for number in itertools.count(2))
    return next(name for name in itertools.chain([path], names) if not name.exists())
