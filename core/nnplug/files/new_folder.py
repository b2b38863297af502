"""Folders for results, of which a refused start leaves nothing."""

from __future__ import annotations

import contextlib
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
