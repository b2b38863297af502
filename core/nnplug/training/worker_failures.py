"""Why a data worker died, and what the user can do about it."""

from __future__ import annotations

import contextlib
import shutil
import signal
from pathlib import Path

from nnplug.errors import NnplugError

_FEWER = "Use fewer data workers (nnUNet_n_proc_DA={fewer} instead of {num_workers})"


class WorkerDiedError(NnplugError, RuntimeError):
    """A data worker ended; the message says why. nnU-Net raises a RuntimeError without the reason here."""


def describe_exit(exit_code: int | None, case: str, num_workers: int) -> str:
    """The reason behind the exit code of a worker that could not report one itself.

    Args:
        exit_code: of ``multiprocessing.Process``: negative for a signal.
        case: the case it loaded last, "" if none.
        num_workers: data workers of this loader.
    """
    at = f" at case {case}" if case else ""
    fewer = _FEWER.format(fewer=max(0, num_workers // 2), num_workers=num_workers)
    if exit_code is None or exit_code >= 0:
        return f"it ended with exit code {exit_code}{at}."
    if -exit_code == signal.SIGKILL:
        return (
            f"it was killed (SIGKILL){at}, most likely by the system because memory ran out "
            f"({_memory_text()}). {fewer} or a machine with more memory."
        )
    if -exit_code == signal.SIGBUS:
        return (
            f"it was ended by SIGBUS{at}: most likely /dev/shm is too small ({_shared_memory()}), or a data file was "
            f"shortened while it was read. {fewer}, or give it more (Docker: --shm-size=8g or --ipc=host)."
        )
    if -exit_code == signal.SIGSEGV:
        return f"it crashed (SIGSEGV){at}: a library failed, often on a damaged data file. Preprocess that case anew."
    return f"it was ended by {_signal_name(-exit_code)}{at}."


def describe_exception(kind: str, message: str, case: str, num_workers: int) -> str:
    """The reason that a worker reported: an exception and the case it loaded last."""
    at = f" at case {case}" if case else ""
    if kind == NnplugError.__name__:
        return f"{case}: {message}" if case else message
    text = f"{kind}{at}: {message}" if message else f"{kind}{at}."
    if "No space left on device" in message or "shared memory" in message:
        text += f" /dev/shm is too small ({_shared_memory()}). Docker: --shm-size=8g or --ipc=host."
    elif kind == "MemoryError":
        text += f" Memory ran out ({_memory_text()}). " + _FEWER.format(
            fewer=max(0, num_workers // 2), num_workers=num_workers
        )
    return text


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def available_memory() -> int | None:
    """Bytes that can be had without swapping, the page cache included; None where the system does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    return None


def _memory_text() -> str:
    available, limit = available_memory(), _memory_limit_gb()
    if available is None:
        return "memory unknown"
    return f"{available / 1e9:.1f} GB available now" + (f", limit {limit:.1f} GB" if limit else "")


def _memory_limit_gb() -> float | None:
    """What a container or job may use, None without a limit."""
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            limit = int(Path(name).read_text())
            return limit / 1e9 if limit < 1 << 60 else None
    return None


def _shared_memory() -> str:
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        return "not there"
    return f"{usage.total / 1e9:.2f} GB, {usage.free / 1e9:.2f} GB free"
