"""Work that a test gives to the processes of a pool; they import it by its name."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from nnplug.errors import NnplugError
from nnplug.processes.case_pool import CaseFailure


def double(shared: int, name: str, case: int) -> tuple[str, int]:
    return name, shared * case


def fail(how: dict[str, str], name: str, case: int) -> int:
    """Fail in the way that is named for the case."""
    kind = how.get(name)
    if kind == "case":
        raise CaseFailure("the reason alone")
    if kind == "error":
        raise ValueError("first line\nsecond line")
    if kind == "printed":
        print("ERROR! said by nnU-Net")
        raise RuntimeError
    if kind == "memory":
        raise MemoryError
    if kind == "stop":
        raise NnplugError("the disk is full")
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return case


def wait_and_note(folder: Path, name: str, case: int) -> None:
    (folder / f"{name}-{os.getpid()}").touch()
    time.sleep(60)


def environment_of(variable: str, name: str, case: int) -> str | None:
    return os.environ.get(variable)


def loaded(module: str, name: str, case: int) -> bool:
    return module in sys.modules
