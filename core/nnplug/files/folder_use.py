"""Who reads preprocessed data at the moment, so that nobody pulls it away from a training.

A lock (``flock``) that trainings share, and that whoever makes the data anew needs alone. It ends with its process.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO

from nnplug.errors import NnplugError

try:
    import fcntl
except ImportError:  # not on Windows; nobody is kept from anything then
    fcntl = None  # type: ignore[assignment]


_alone: set[Path] = set()  # what this process has alone: its own second lock would wait for the first


class FolderUse:
    """The use of ``nnUNet_preprocessed/DatasetXXX_NAME`` by this process, for a ``with`` block.

    Args:
        folder: it, also before it is there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder.with_name(f".nnplug_{folder.name}.use")
        self._file: IO[str] | None = None
        self._is_alone = False

    def __enter__(self) -> FolderUse:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()

    def read(self, on_message: Callable[[str], None] = print) -> None:
        """Keep others from making it anew; where one does just now, wait for it and say so."""
        if fcntl is None:
            return
        with contextlib.suppress(OSError):  # a folder that can not be written to, a file system without locks
            try:
                fcntl.flock(self._open(), fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                on_message(f"{self._folder} is being made anew (--clean). The training begins when it is done.")
                fcntl.flock(self._open(), fcntl.LOCK_SH)

    def make_anew(self, patience_s: float = 0) -> None:
        """Have it alone, as often as this process asks for it.

        Args:
            patience_s: seconds to wait for others.

        Raises:
            NnplugError: a training reads it.
        """
        if fcntl is None or self._path in _alone:
            return
        deadline = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(self._open(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise NnplugError(
                        f"A training reads {self._folder}, and this would take its data away. Wait until it ends."
                    ) from None
                time.sleep(0.1)
            except OSError:
                return
            else:
                break
        _alone.add(self._path)
        self._is_alone = True

    def end(self) -> None:
        """Leave it to others before the block ends."""
        if self._is_alone:
            _alone.discard(self._path)
            self._is_alone = False
        if self._file is not None:
            self._file.close()
            self._file = None

    def note_made_anew(self, what: str) -> None:
        """Tell those who wait to make the same anew that it is."""
        with contextlib.suppress(OSError):
            self._path.write_text(f"{what} {uuid.uuid4()}")

    def made_anew(self) -> str:
        """What was made anew last; another text after each time."""
        with contextlib.suppress(OSError):
            return self._path.read_text()
        return ""

    def _open(self) -> IO[str]:
        if self._file is None:
            self._file = self._path.open("a+")  # NFS gives a shared lock only to who can read
        return self._file
