"""Look at many files at once: a network file system takes its time for each. Imports no torch."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_NUM_THREADS = 16
_FEW = 64


def stat_files(paths: Sequence[Path]) -> list[os.stat_result | OSError]:
    """What the system says of each file."""
    if len(paths) <= _FEW:
        return _stat_all(paths)
    share = -(-len(paths) // _NUM_THREADS)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        parts = pool.map(_stat_all, (paths[start : start + share] for start in range(0, len(paths), share)))
        return [found for part in parts for found in part]


def unusable(path: Path, found: os.stat_result | OSError) -> str | None:
    """Why a file can not be used; None where it can."""
    if isinstance(found, FileNotFoundError | NotADirectoryError):
        return "there is no such file"
    if isinstance(found, OSError):
        return f"it can not be looked at ({found.strerror})"
    if not stat.S_ISREG(found.st_mode):
        return "it is not a file"
    return None if os.access(path, os.R_OK) else "there is no permission to read it"


def _stat_all(paths: Sequence[Path]) -> list[os.stat_result | OSError]:
    found: list[os.stat_result | OSError] = []
    for path in paths:
        try:
            found.append(os.stat(path))
        except OSError as error:
            found.append(error)
    return found
