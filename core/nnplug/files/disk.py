"""A disk that fills while workers write: said as such, whatever the library that was writing made of it."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from nnplug.errors import NnplugError
from nnplug.files.atomic_file import write_error

_PROBE_BYTES = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def telling_when_full(folder: Path) -> Iterator[None]:
    """Turn any error of the block into a NnplugError where nothing more can be written to ``folder``.

    numpy and blosc2 raise errors without a number or a reason, so a probe is written.
    """
    try:
        yield
    except NnplugError:
        raise
    except Exception:
        try:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"0" * _PROBE_BYTES)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            if error.errno in _FULL:
                raise write_error(folder, error) from error
        raise


def flush_to_disk(path: Path) -> None:
    """What is renamed into its place has to be whole there after a power failure, too."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
