"""Checkpoints: plain values only, written atomically, read without running code.

The content is nnU-Net's own dictionary (``network_weights``, ``optimizer_state``, ``logging``, ``init_args``, ...) and
one more entry, ``nnplug``. ``to_plain`` makes it loadable with ``torch.load(weights_only=True)``; ``save`` and
``Writer`` replace files whole; ``load`` reads nnplug's and stock nnU-Net's checkpoints with an allow-list that holds no
code.
"""

from __future__ import annotations

import pickle
import re
import threading
import warnings
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import torch

from nnplug.errors import NnplugError
from nnplug.files.atomic_file import replace_file
from nnplug.files.plain_values import ALLOWED_GLOBALS, NotANumberError, arrays_from_stand_ins, convert, to_plain

__all__ = ["UntrustedCheckpointError", "Writer", "find_resumable", "load", "save", "to_plain"]

RESUMABLE_NAMES = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_previous.pth", "checkpoint_best.pth")
"""Where training goes on from, in nnU-Net's order; nnplug adds the predecessor of the latest one."""

_NEEDED_KEYS = ("network_weights", "init_args", "trainer_name")
_NEEDED_TO_RESUME = ("optimizer_state", "logging", "current_epoch", "_best_ema")


class UntrustedCheckpointError(NnplugError):
    """The checkpoint can only be read by letting it run code."""


def save(checkpoint: dict[str, Any], path: Path, *, keep_previous: Path | None = None) -> None:
    """Write ``checkpoint`` to ``path``: the old file stays until the new one is complete on the disk.

    Args:
        checkpoint: anything ``to_plain`` takes.
        path: the checkpoint file.
        keep_previous: where the checkpoint that is at ``path`` now is kept.

    Raises:
        NnplugError: a value that can not be stored (its key path is named), a full disk, a folder that can not be
            written; the old file is untouched and no temporary file is left.
    """
    _write(to_plain(checkpoint), Path(path), keep_previous)


def _write(plain: dict[str, Any], path: Path, keep_previous: Path | None) -> None:
    replace_file(path, lambda file: _torch_save(plain, file), keep_previous=keep_previous)


def _torch_save(plain: dict[str, Any], file: IO[bytes]) -> None:
    try:
        torch.save(plain, file)
    except RuntimeError as error:
        # torch reports its own confusion ("unexpected pos") when the write below it failed
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


class Writer:
    """Writes checkpoints in a background thread, one at a time, in the order they were given.

    ``write`` copies what it is given before it returns, so training may go on changing the weights. A checkpoint that
    still waits is dropped when a newer one for the same path comes. Call ``flush`` before another process is told of a
    file, or before a file is removed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nnplug-checkpoint")
        self._waiting: dict[Path, object] = {}
        self._finished: list[Path] = []
        self._num_unfinished = 0
        self._idle = threading.Condition(self._lock)
        self._error: BaseException | None = None

    def write(self, checkpoint: dict[str, Any], path: Path, keep_previous: Path | None = None) -> None:
        """Queue ``checkpoint`` for ``path``.

        Raises:
            NnplugError: a value that can not be stored, or an earlier write that failed. In the second case this
                checkpoint is queued all the same.
        """
        plain = convert(checkpoint, copy_to_cpu())
        ticket = object()
        with self._lock:
            earlier_error, self._error = self._error, None
            self._waiting[Path(path)] = ticket
            self._num_unfinished += 1
        self._executor.submit(self._run, plain, Path(path), keep_previous, ticket)
        if earlier_error is not None:
            raise earlier_error

    def take_finished(self) -> list[Path]:
        """The files that were completed since the last call, in order."""
        with self._lock:
            finished, self._finished = self._finished, []
        return finished

    def flush(self) -> None:
        """Wait until everything is written; raises the first error since the last report."""
        with self._idle:
            self._idle.wait_for(lambda: self._num_unfinished == 0)
            error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """As ``flush``; nothing can be written afterwards."""
        try:
            self.flush()
        finally:
            self._executor.shutdown()

    def _run(self, plain: dict[str, Any], path: Path, keep_previous: Path | None, ticket: object) -> None:
        with self._lock:
            is_newest = self._waiting.get(path) is ticket
            if is_newest:
                del self._waiting[path]
        try:
            if is_newest:
                _write(plain, path, keep_previous)
                with self._lock:
                    self._finished.append(path)
        except BaseException as error:  # a thread has no other way to report
            with self._lock:
                self._error = self._error or error
        finally:
            with self._idle:
                self._num_unfinished -= 1
                self._idle.notify_all()


def copy_to_cpu() -> Callable[[torch.Tensor], torch.Tensor]:
    """A function that copies tensors to CPU memory; one that is met twice (tied weights) is copied once."""
    copies: dict[tuple[Any, ...], torch.Tensor] = {}

    def copy(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.layout != torch.strided or tensor.is_meta:
            return tensor.clone().cpu()
        key = (tensor.device, tensor.dtype, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if key not in copies or tensor.numel() == 0:
            copies[key] = _copy_in_memory(tensor) if tensor.device.type == "cpu" else tensor.cpu()
        return copies[key]

    return copy


def _copy_in_memory(tensor: torch.Tensor) -> torch.Tensor:
    """As ``clone``, in one thread: torch's threads wait for each other where data workers keep the cores busy."""
    try:
        return torch.from_numpy(tensor.numpy().copy(order="K"))
    except (TypeError, RuntimeError):  # types that numpy lacks, such as bfloat16
        return tensor.clone()


def load(
    path: Path,
    *,
    map_location: str | torch.device = "cpu",
    trust_checkpoint: bool = False,
    read_weights: bool = True,
) -> dict[str, Any]:
    """Read a checkpoint of nnplug or of stock nnU-Net without running code that it may contain.

    Args:
        path: the file.
        map_location: device for the tensors, as in ``torch.load``.
        trust_checkpoint: let the file run code (``--trust-checkpoint``); only for files from people you trust.
        read_weights: False leaves tensors on the disk until they are used, for a quick look at the rest; the checksums
            of the file are then not compared.

    Raises:
        UntrustedCheckpointError: the file wants more than plain values.
        NnplugError: no such file, damaged, or not an nnU-Net checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise NnplugError(f"There is no checkpoint file {path}.")
    is_archive = _check_archive(path, compare_checksums=read_weights)
    content = _torch_load(path, trust_checkpoint, map_location=map_location, mmap=is_archive and not read_weights)
    if not isinstance(content, dict):
        raise NnplugError(
            f"{path} is not an nnU-Net checkpoint: it holds a {type(content).__name__}, not a dictionary."
        )
    _check_keys(content, _NEEDED_KEYS, path)
    if not isinstance(content["init_args"], dict) or not isinstance(content["network_weights"], dict):
        raise NnplugError(f"{path} is not an nnU-Net checkpoint: init_args and network_weights must be dictionaries.")
    return content


def _torch_load(path: Path, trust_checkpoint: bool, **arguments: Any) -> Any:
    try:
        if trust_checkpoint:
            return torch.load(path, weights_only=False, **arguments)
        with torch.serialization.safe_globals(ALLOWED_GLOBALS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that torch did not write; they end in an error of ours
            content = torch.load(path, weights_only=True, **arguments)
    except OSError as error:
        raise NnplugError(f"{path} could not be read: {error.strerror or error}.") from error
    except pickle.UnpicklingError as error:
        raise _refusal(path, error) from error
    except NotANumberError as error:
        raise _untrusted(path, [str(error)]) from error
    except Exception as error:
        raise _damaged(path, _first_line(error)) from error
    return arrays_from_stand_ins(content)


def _check_archive(path: Path, *, compare_checksums: bool) -> bool:
    """Whether the file is a whole archive, torch's format since 1.6.

    torch.load itself takes flipped bytes for weights, so the checksums that torch.save wrote are compared.
    """
    try:
        if not zipfile.is_zipfile(path):
            if path.stat().st_size == 0:
                raise _damaged(path, "it is empty")
            with open(path, "rb") as file:
                starts_as_archive = file.read(4) == b"PK\x03\x04"
            if starts_as_archive:
                raise _damaged(path, "its end is missing")
            return False  # torch's older format, or no checkpoint at all: torch.load tells
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip() if compare_checksums else None
    except OSError as error:
        raise NnplugError(f"{path} could not be read: {error.strerror or error}.") from error
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise _damaged(path, _first_line(error)) from error
    if bad is not None:
        raise _damaged(path, f"the checksum of {bad} is wrong")
    return True


def _damaged(path: Path, reason: str) -> NnplugError:
    return NnplugError(f"{path} is damaged or not a checkpoint ({reason}).")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _refusal(path: Path, error: pickle.UnpicklingError) -> NnplugError:
    wanted = _wanted_globals(path) or re.findall(r"GLOBAL ([\w.]+)", str(error))
    if not wanted:
        reason = re.search(r"WeightsUnpickler error: (.*)", str(error))
        return _damaged(path, reason[1].rstrip(".") if reason else "torch can not read it")
    return _untrusted(path, wanted)


def _untrusted(path: Path, wanted: list[str]) -> UntrustedCheckpointError:
    shown = ", ".join(wanted[:5]) + (f" and {len(wanted) - 5} more" if len(wanted) > 5 else "")
    return UntrustedCheckpointError(
        f"{path} holds more than plain values and would run code when it is read: it wants {shown}. "
        "It was not read. If you trust whoever made it, add --trust-checkpoint."
    )


def _wanted_globals(path: Path) -> list[str]:
    """What the pickle inside would import, by disassembling it; nothing of it is imported."""
    try:
        with torch.serialization.safe_globals(ALLOWED_GLOBALS):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # only the zip format with the simple opcodes can be listed; the message has another source
        return []


def _check_keys(content: dict[str, Any], keys: tuple[str, ...], path: Path) -> None:
    missing = [key for key in keys if key not in content]
    if missing:
        found = ", ".join(str(key) for key in list(content)[:6]) or "nothing"
        raise NnplugError(f"{path} is not an nnU-Net checkpoint: it has no {', '.join(missing)} (it has {found}).")


def find_resumable(fold_folder: Path, *, trust_checkpoint: bool = False) -> tuple[Path, dict[str, Any], list[str]]:
    """The checkpoint to continue from: the first readable one of ``RESUMABLE_NAMES``.

    Returns:
        Its path, its content (on the CPU), and one message for each unreadable file that was passed over.

    Raises:
        UntrustedCheckpointError: the next one in order needs ``--trust-checkpoint``; an older one is not taken instead.
        NnplugError: there is none, or none can be read (with every reason).
    """
    messages: list[str] = []
    for name in RESUMABLE_NAMES:
        path = Path(fold_folder) / name
        if not path.exists():
            continue
        try:
            content = load(path, trust_checkpoint=trust_checkpoint)
            _check_keys(content, _NEEDED_TO_RESUME, path)
        except UntrustedCheckpointError:
            raise
        except NnplugError as error:
            messages.append(str(error))
            continue
        if messages:
            messages.append(f"Continuing from {name} (epoch {content['current_epoch']}) instead.")
        return path, content, messages
    if messages:
        raise NnplugError(f"No checkpoint in {fold_folder} can be read. {' '.join(messages)} To start anew: --restart.")
    raise NnplugError(f"There is nothing to continue in {fold_folder}: no {', '.join(RESUMABLE_NAMES)}. Leave out --c.")
