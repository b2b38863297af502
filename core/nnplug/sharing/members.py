"""What a zip file with models may hold: everything is checked before anything is written."""

from __future__ import annotations

import re
import stat
import zipfile
from collections.abc import Iterable
from pathlib import PurePosixPath, PureWindowsPath

MAX_FILES = 100_000
MAX_RATIO = 20
"""How many times larger than the file its content may be; weights hardly shrink at all."""
ALWAYS_ALLOWED_BYTES = 100_000_000

_DATASET = re.compile(r"Dataset\d{3,}_[^/]+")
_REGULAR = (0, stat.S_IFREG)  # 0: made on a system that stores no type


def find_problem(members: Iterable[zipfile.ZipInfo], archive_bytes: int) -> str | None:
    """Why these members are not unpacked, None where nothing speaks against it."""
    files = [member for member in members if not member.is_dir()]
    if len(files) > MAX_FILES:
        return f"it holds {len(files)} files, more than {MAX_FILES}"
    unpacked = sum(member.file_size for member in files)
    if unpacked > max(MAX_RATIO * archive_bytes, ALWAYS_ALLOWED_BYTES):
        return (
            f"it would unpack {archive_bytes / 1e6:.1f} MB to {unpacked / 1e6:.0f} MB; the limit is {MAX_RATIO} times "
            "its size, which models stay far below"
        )
    problem = next(filter(None, map(_problem, members)), None)
    return problem or _clash([member.filename for member in files])


def _problem(member: zipfile.ZipInfo) -> str | None:
    name = member.orig_filename  # in the other one zipfile has cut the name at a NUL
    path = PurePosixPath(name)
    windows = PureWindowsPath(name)
    if path.is_absolute() or windows.drive or windows.root or "\\" in name or ".." in path.parts:
        return f"{name!r} would be written outside its folder"
    if not name.isprintable():
        return f"{name!r} holds control characters"
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (*_REGULAR, stat.S_IFDIR) or (kind == stat.S_IFDIR) > member.is_dir():
        return f"{name!r} is {'a link' if kind == stat.S_IFLNK else 'no ordinary file'}"
    if member.flag_bits & 0x1:
        return f"{name!r} is encrypted"
    if not _DATASET.fullmatch(path.parts[0] if path.parts else ""):
        return f"{name!r} is in no DatasetXXX_NAME folder, as nnU-Net's exported models are"
    if len(path.parts) == 1 and not member.is_dir():
        return f"{name!r} is a file, and should be a folder"
    return None


def _clash(names: list[str]) -> str | None:
    """Two files of one name, or a file with the name of a folder; some file systems ignore case."""
    seen: set[str] = set()
    folders = {str(parent).casefold() for name in names for parent in PurePosixPath(name).parents}
    for name in names:
        key = str(PurePosixPath(name)).casefold()
        if key in seen or key in folders:
            return f"it holds {name!r} twice"
        seen.add(key)
    return None
