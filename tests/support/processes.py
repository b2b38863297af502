"""The processes of a session, from /proc (Linux)."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path


def in_session(leader: int) -> list[int]:
    """Processes of a session that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = _stat(int(path.name))
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(path.name))
    return found


def wait_until_gone(leader: int) -> None:
    """Until nothing of a session runs; multiprocessing's resource tracker ends a little after all others."""
    deadline = time.monotonic() + 30
    while left := in_session(leader):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


@contextlib.contextmanager
def stopped_until_a_worker_is_idle(leader: int) -> Iterator[None]:
    """Stop the leader of a session, until a worker that it spawned has begun and waits for work, and in the block.

    One of the workers of a ``multiprocessing.Pool`` then holds the lock of its queue.
    """
    os.kill(leader, signal.SIGSTOP)
    try:
        before: dict[int, int] = {}
        for _ in range(120):
            time.sleep(1)
            now = {pid: _cpu_ticks(pid) for pid in in_session(leader) if _is_spawned(pid)}
            if any(ticks > 0 and before.get(pid) == ticks for pid, ticks in now.items()):
                break
            before = now
        else:
            raise AssertionError("no worker became idle")
        yield
    finally:
        os.kill(leader, signal.SIGCONT)


def _is_spawned(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _cpu_ticks(pid: int) -> int:
    """Processor time that a process has used; 0 where it is gone."""
    with contextlib.suppress(OSError):
        fields = _stat(pid)
        return int(fields[11]) + int(fields[12])
    return 0


def _stat(pid: int) -> list[str]:
    """The fields after the command's name, from the state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
