"""Signals that ask a training to stop: it saves at the next step and exits with a code of its own."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: Exit code of a training that was interrupted and can be continued (EX_TEMPFAIL, so schedulers may requeue it).
EXIT_INTERRUPTED = 75

SIGNALS = [s for s in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, s)]


class TrainingInterrupted(SystemExit):
    """A signal stopped the training after a checkpoint was written. The process exits with :data:`EXIT_INTERRUPTED`."""

    def __init__(self, message: str) -> None:
        super().__init__(EXIT_INTERRUPTED)
        self.message = message

    def __str__(self) -> str:
        return self.message


class StopRequest:
    """Remembers that a signal asked for a stop. ``name`` is the signal's name, or None."""

    def __init__(self) -> None:
        self.name: str | None = None
        self.owner = os.getpid()

    def handle(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self.owner:
            self._handle_in_child(number)
        elif number == signal.SIGINT and self.name == "SIGINT":
            raise KeyboardInterrupt
        else:
            self.name = signal.Signals(number).name

    @staticmethod
    def _handle_in_child(number: int) -> None:
        # forked data workers inherit the handler: the main process decides about Ctrl-C, terminate() still ends them
        if number == signal.SIGTERM:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)


def in_main_thread() -> bool:
    """Python delivers signals to the main thread only."""
    return threading.current_thread() is threading.main_thread()


def ignore_signals() -> None:
    """For a process that is ending because of one: ``timeout`` sends it twice, to its child and to the group."""
    for name in SIGNALS if in_main_thread() else ():
        signal.signal(getattr(signal, name), signal.SIG_IGN)


@contextmanager
def listen() -> Iterator[StopRequest]:
    """Catch SIGTERM, SIGINT and SIGUSR1 while the block runs; a second SIGINT raises KeyboardInterrupt at once.

    Outside the main thread signals can not be caught; the block then runs without.
    """
    stop = StopRequest()
    if not in_main_thread():
        yield stop
        return
    before = {name: signal.signal(getattr(signal, name), stop.handle) for name in SIGNALS}
    try:
        yield stop
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
