"""Files that are either the old or the new one, whole, whenever the process is killed.

The new content goes to a hidden temporary file in the same folder, is flushed to the disk and then renamed over the
old one. While it is written the temporary file is locked (``flock``), so that a later save can tell the leftovers of a
killed process from a file that somebody is still writing. Process numbers can not tell: they are reused, and differ
between containers.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from nnplug.errors import NnplugError

try:
    import fcntl
except ImportError:  # not on Windows; leftovers are then told by their age alone
    fcntl = None  # type: ignore[assignment]

_SUFFIX = ".nnplug-tmp"
_NAME = re.compile(r"\..+\.(?P<host>[A-Za-z0-9-]+)\.\d+\.\d+\.nnplug-tmp")
_STALE_WITHOUT_LOCK_S = 24 * 3600
_HOST = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()) or "host"
_counter = itertools.count()


def replace_file(path: Path, write: Callable[[IO[bytes]], object], *, keep_previous: Path | None = None) -> None:
    """Replace ``path`` by what ``write`` writes, or leave it as it is.

    Args:
        path: the file; its folder must exist.
        write: called with the open temporary file (binary).
        keep_previous: where the file now at ``path`` is kept (same folder); ``path`` exists at every moment.

    Raises:
        NnplugError: disk full or folder not writable. ``path`` is untouched, no temporary file is left.
    """
    try:
        remove_stale(path.parent)
        with _temporary_file(path) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            if keep_previous is not None and path.exists():
                _keep(path, keep_previous)
            os.replace(file.name, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error


def keep_file(path: Path, content: bytes) -> None:
    """As ``replace_file``, only if ``path`` does not hold ``content`` already."""
    if not path.is_file() or path.read_bytes() != content:
        replace_file(path, lambda file: file.write(content))


def create_file(path: Path, content: bytes) -> bool:
    """Write ``path`` only if it does not exist; of several processes that try at once exactly one gets True.

    The file appears whole: a complete temporary file is linked to the name, which fails when the name is taken. Where
    there are no hard links the name comes first.
    """
    try:
        remove_stale(path.parent)
        with _temporary_file(path) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            created = _link(Path(file.name), path)
        _sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    return created


def remove_stale(folder: Path) -> list[Path]:
    """Remove the temporary files that killed processes left in ``folder``; returns what was removed."""
    removed = []
    with os.scandir(folder) as entries:
        candidates = [Path(entry.path) for entry in entries if entry.name.endswith(_SUFFIX)]
    for path in candidates:
        match = _NAME.fullmatch(path.name)
        with contextlib.suppress(OSError):  # gone, or not ours to remove: neither may stop a save
            if match and _remove_if_stale(path, match["host"]):
                removed.append(path)
    return removed


def write_error(path: Path, error: OSError) -> NnplugError:
    """The one-line message for a file that could not be written: where, why, the free space, what to do."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    advice = "Free some space" if full else "Check the folder and its permissions"
    return NnplugError(
        f"Could not write {path}: {reason} ({_free_space(path.parent)} free). "
        f"What was there before is unchanged. {advice} and run it again."
    )


def _free_space(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e9:.2f} GB"
    except OSError:
        return "unknown space"


@contextlib.contextmanager
def _temporary_file(path: Path) -> Iterator[IO[bytes]]:
    """An open, locked, hidden file beside ``path``; removed at the end if it still bears its temporary name."""
    while True:
        name = path.parent / f".{path.name}.{_HOST}.{os.getpid()}.{next(_counter)}{_SUFFIX}"
        try:
            file = open(name, "xb")  # noqa: SIM115
        except FileExistsError:  # left by a killed process that had our number
            continue
        if _lock(file) and _is_same_file(file, name):
            break
        file.close()  # a cleaner found it between the creation and the lock
    try:
        with file:
            yield file
    finally:
        with contextlib.suppress(OSError):
            name.unlink(missing_ok=True)


def _lock(file: IO[bytes]) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: leftovers are told by their age
        return True
    return True


def _is_same_file(file: IO[bytes], name: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(name))
    except FileNotFoundError:
        return False


def _remove_if_stale(path: Path, host: str) -> bool:
    is_stale = time.time() - path.stat().st_mtime > _STALE_WITHOUT_LOCK_S
    with contextlib.ExitStack() as lock:  # held until the file is gone: who has just made it must not get it too
        if fcntl is not None and host == _HOST:  # locks need not reach across machines
            file = lock.enter_context(open(path, "rb"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_stale = True
            except BlockingIOError:
                return False
            except OSError:  # a file system without locks
                pass
        if is_stale:
            path.unlink()
    return is_stale


def _keep(path: Path, previous: Path) -> None:
    """Give the file at ``path`` the second name ``previous``; where there are no hard links, rename it."""
    temporary = path.parent / f".{previous.name}.{_HOST}.{os.getpid()}.{next(_counter)}{_SUFFIX}"
    try:
        os.link(path, temporary)
    except OSError:
        os.replace(path, previous)
    else:
        os.replace(temporary, previous)
        # rename(2) does nothing when both names already are the same file
        temporary.unlink(missing_ok=True)


def _link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError:  # no hard links here: create the name, then fill it
        content = source.read_bytes()
        try:
            with open(target, "xb") as file:
                file.write(content)
        except FileExistsError:
            return False
        except OSError:
            target.unlink(missing_ok=True)  # it would be taken for whole
            raise
    return True


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; not every file system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
