"""Workers that nnU-Net starts for export and preprocessing, of which their parent alone decides when they end.

A signal to a whole process group (Ctrl-C, ``timeout``, a scheduler) reaches the workers of a pool too. One that it
kills may hold the lock of the pool's queue, and ``Pool.terminate`` then waits for that for ever.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import context, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any

from nnplug.processes.interrupts import SIGNALS


class _Worker(BaseProcess):
    """A process without ears for the signals that ask for a stop; it ends with its parent, however that ends."""

    def start(self) -> None:
        with _blocked_signals():  # a new process inherits what its parent blocks, so it is deaf from its beginning
            super().start()
            popen: Any = self._popen  # type: ignore[attr-defined]
            popen.terminate = popen.kill  # pools and the end of the interpreter end their workers with SIGTERM

    def run(self) -> None:
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
        super().run()


class SpawnedWorker(_Worker, context.SpawnProcess):
    """Of a pool."""


_CLASSES: dict[str, Any] = {"spawn": SpawnedWorker}
if sys.platform != "win32":

    class ForkedWorker(_Worker, context.ForkProcess):
        """Of a ``Manager``."""

    _CLASSES["fork"] = ForkedWorker


@contextmanager
def keep_signals_from_workers() -> Iterator[None]:
    """What multiprocessing's contexts start while the block runs ends when this process says so, or with it."""
    with _blocked_signals():
        resource_tracker.ensure_running()  # it ignores SIGINT and SIGTERM by itself, SIGUSR1 it does not
    contexts: dict[str, Any] = {method: multiprocessing.get_context(method) for method in _CLASSES}
    before = {method: contexts[method].Process for method in contexts}
    try:
        for method, worker in _CLASSES.items():
            contexts[method].Process = worker
        yield
    finally:
        for method, process in before.items():
            contexts[method].Process = process


def _end_with_parent(parent: int) -> None:
    # the pipe that multiprocessing has for this stays open in other workers
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """In this thread; what comes meanwhile is delivered at the end."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [getattr(signal, name) for name in SIGNALS])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
