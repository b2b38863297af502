"""A fold folder belongs to one split and data set, is trained by one process at a time, and is never deleted."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from nnplug.errors import NnplugError
from nnplug.files.atomic_file import write_error
from nnplug.files.json_files import as_plain_json, read_json, write_json
from nnplug.files.new_folder import free_name

FOLD_RECORD_NAME = "nnplug_fold.json"
RESULT_NAME = "nnplug_result.json"

_ORPHANS_MAY_TAKE_S = 30.0


@dataclass(frozen=True)
class FoldRecord:
    """What one fold is trained on.

    Attributes:
        train, val: case identifiers.
        fingerprint_hash: SHA-256 of the data set fingerprint.
        pretrained_weights: SHA-256 of the checkpoint that the training starts from, None without.
        previous_stage: folder of the first stage's predictions that a cascade's second stage takes as input.
    """

    train: list[str]
    val: list[str]
    fingerprint_hash: str
    pretrained_weights: str | None = None
    previous_stage: str | None = None

    @classmethod
    def of(
        cls,
        train: Iterable[str],
        val: Iterable[str],
        *,
        fingerprint: Path,
        pretrained_weights: Path | None,
        previous_stage: Path | None,
        results_folder: Path,
    ) -> FoldRecord:
        """The record of these files; ``results_folder`` is the data set's, which may be moved with what lies in it."""
        previous = previous_stage and previous_stage.resolve()
        if previous and previous.is_relative_to(results_folder.resolve()):
            previous = previous.relative_to(results_folder.resolve())
        return cls(
            train=[*map(str, train)],
            val=[*map(str, val)],
            fingerprint_hash=_hash(fingerprint),
            pretrained_weights=_hash(pretrained_weights) if pretrained_weights else None,
            previous_stage=str(previous) if previous else None,
        )

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "train": sorted(self.train), "val": sorted(self.val)}


def check_fold(fold_folder: Path, record: FoldRecord) -> None:
    """Check that ``fold_folder`` was trained with this split, data and weights.

    A fold without a checkpoint is free; of one without a record (stock nnU-Net's) only the weights are refused.

    Raises:
        NnplugError: with the cases that moved, or that the data changed.
    """
    fold_folder = Path(fold_folder)
    if not has_checkpoints(fold_folder):
        return
    now = record.as_json()
    old = read_json(fold_folder / FOLD_RECORD_NAME) or {**now, "pretrained_weights": None}
    found = []
    for key, part in (("train", "training"), ("val", "validation")):
        left, joined = set(old.get(key, ())) - set(now[key]), set(now[key]) - set(old.get(key, ()))
        found += [f"{_cases(left)} left {part}"] if left else []
        found += [f"{_cases(joined)} joined {part}"] if joined else []
    if old.get("fingerprint_hash") != record.fingerprint_hash:
        found.append("the data set's fingerprint is another one")
    if record.pretrained_weights not in (None, old.get("pretrained_weights")):
        found.append("it did not start from these pretrained weights")
    if old.get("previous_stage") != record.previous_stage:
        found.append(f"the previous stage's predictions were {old.get('previous_stage')}, now {record.previous_stage}")
    if found:
        raise NnplugError(
            f"{fold_folder} was trained on other data: {'; '.join(found)}. "
            "Restore the splits, data and options that it began with, or start anew with --restart."
        )


def claim_fold(fold_folder: Path, record: FoldRecord) -> None:
    """``check_fold``, then keep ``record`` in ``nnplug_fold.json`` until there is a checkpoint, and from then on."""
    make_folder(Path(fold_folder))
    check_fold(fold_folder, record)
    path = Path(fold_folder) / FOLD_RECORD_NAME
    if not (path.exists() and has_checkpoints(fold_folder)):
        write_json(path, record.as_json())


def check_previous_stage(folder: Path, cases: Iterable[str]) -> None:
    """Check that the first stage of a cascade has predicted these cases. Raises NnplugError with those it has not."""
    missing = set(cases) - {path.stem for path in folder.glob("*")}
    if missing:
        raise NnplugError(
            f"The second stage of a cascade needs a prediction of every case, and {folder} has none of "
            f"{_cases(missing)}. Train those folds of the first stage that validate them."
        )


def begins_with_weights(fold_folder: Path) -> bool:
    """Whether the training that was begun in ``fold_folder`` starts from pretrained weights."""
    return (read_json(fold_folder / FOLD_RECORD_NAME) or {}).get("pretrained_weights") is not None


def write_result(fold_folder: Path, result: Mapping[str, Any]) -> Path:
    """Write ``nnplug_result.json``; returns its path. NaN becomes null, so that every JSON reader takes it."""
    path = Path(fold_folder) / RESULT_NAME
    write_json(path, as_plain_json(result, nan_as_null=True))
    return path


def read_result(fold_folder: Path) -> dict[str, Any] | None:
    """The result of a finished fold, None if there is none."""
    return read_json(Path(fold_folder) / RESULT_NAME)


@contextmanager
def fold_lock(fold_folder: Path) -> Iterator[None]:
    """Hold the right to train ``fold_folder``; the lock lies beside it and ends with the process, however it ends.

    Where there is no such folder at the end, the lock goes too, and with it the model folder if nothing else is there.

    Raises:
        NnplugError: another process trains it; its host and process number are named.
    """
    fold_folder = Path(fold_folder)
    make_folder(fold_folder.parent)
    owner_file = fold_folder.parent / f".nnplug_{fold_folder.name}.owner.json"
    lock = FileLock(fold_folder.parent / f".nnplug_{fold_folder.name}.lock", thread_local=False)
    try:
        lock.acquire(timeout=0)
    except OSError as error:
        if not isinstance(error, Timeout):
            raise write_error(Path(lock.lock_file), error) from error
        _wait_for_orphans(lock, fold_folder, read_json(owner_file) or {})
    try:
        write_json(owner_file, {"host": socket.gethostname(), "pid": os.getpid(), "since": _now()})
        yield
    finally:
        owner_file.unlink(missing_ok=True)
        is_unused = not fold_folder.exists()
        if is_unused:
            with suppress(OSError):  # while it is held: who waits for it notices, and makes a new one
                Path(lock.lock_file).unlink()
        lock.release()
        if is_unused:
            _remove_empty(fold_folder.parent, fold_folder.parent.parent)


def has_begun(fold_folder: Path) -> bool:
    """Whether a training has taken the folder for its own: everything is made, the first step is next."""
    return (fold_folder / FOLD_RECORD_NAME).exists()


@contextmanager
def nothing_left_of_a_refusal(fold_folder: Path) -> Iterator[None]:
    """Remove a new ``fold_folder`` again where a NnplugError ends the training in it before it begins."""
    is_new = not fold_folder.exists()
    try:
        yield
    except NnplugError:
        if is_new and not has_begun(fold_folder):
            shutil.rmtree(fold_folder, ignore_errors=True)
        raise


def set_aside(fold_folder: Path) -> Path | None:
    """Move an old fold folder to ``replaced_<fold>_<timestamp>`` beside it, for ``--restart``; nothing is deleted.

    The new name does not start with ``fold_``, which nnU-Net would take for a fold.

    Returns:
        The new folder, None if there was nothing to move.
    """
    fold_folder = Path(fold_folder)
    if not fold_folder.exists():
        return None
    target = free_name(fold_folder.with_name(f"replaced_{fold_folder.name}_{datetime.now():%Y%m%d_%H%M%S}"))
    try:
        fold_folder.rename(target)
    except OSError as error:
        raise NnplugError(f"Could not move {fold_folder} to {target}: {error.strerror}.") from error
    return target


def put_back(kept: Path, fold_folder: Path) -> None:
    """Undo ``set_aside``; what a training that was refused has written in its place goes."""
    if fold_folder.exists():
        shutil.rmtree(fold_folder)
    kept.rename(fold_folder)


def make_folder(folder: Path) -> None:
    """Create ``folder``. Raises NnplugError if the place is not writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NnplugError(f"Could not create {folder}: {error.strerror}. Check the results folder.") from error


def has_checkpoints(folder: Path) -> bool:
    patterns = ("checkpoint_*.pth", "fold_*/checkpoint_*.pth", "replaced_fold_*/checkpoint_*.pth")
    return any(next(folder.glob(pattern), None) for pattern in patterns)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cases(cases: set[str]) -> str:
    names = sorted(cases)
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more cases"


def _wait_for_orphans(lock: FileLock, fold_folder: Path, owner: Mapping[str, Any]) -> None:
    """Refuse, unless the owner is dead: then only data workers that it left hold the lock, and they end soon."""
    if owner.get("host") == socket.gethostname() and not _is_alive(owner.get("pid")):
        try:
            lock.acquire(timeout=_ORPHANS_MAY_TAKE_S)
        except Timeout:
            pass
        else:
            return
    who = f"process {owner['pid']} on {owner['host']} (since {owner['since']})" if owner else "another process"
    raise NnplugError(f"{fold_folder} is being trained by {who}. Wait until it ends, or stop it.")


def _is_alive(pid: Any) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, TypeError, ValueError):
        return True
    return True


def _remove_empty(*folders: Path) -> None:
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _now() -> str:
    return datetime.now().isoformat(sep=" ", timespec="seconds")
