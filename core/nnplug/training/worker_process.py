"""What runs in a data worker: make batches, and say why when that fails.

The loop is that of batchgenerators' non-deterministic augmenter. It also ends when the training process is gone, leaves
Ctrl-C to the training process, and tells which case it is at.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from queue import Full
from time import sleep
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from nnplug.errors import NnplugError

_MOST_REPORTED_CHARACTERS = 4000  # a pipe holds 64 KiB; a report must never block


@dataclass
class WorkerTask:
    """What one worker gets.

    Args:
        index: number of the worker.
        seed: of numpy, torch and random; None takes one from the system.
        data_loader: an iterator without an end; with a ``_data.load_case`` (nnU-Net's) the current case is known.
        batches: queue to the training process.
        abort: set to end all workers, by either side.
        pause: set while the queue is emptied.
        wait_time: seconds between looks at these.
        report: a ``(kind, message, case)`` goes here when the worker fails.
        current_case: shared memory with the identifier of the case loaded last.
    """

    index: int
    seed: int | None
    data_loader: Any
    batches: Queue[Any]
    abort: Event
    pause: Event
    wait_time: float
    report: Connection
    current_case: ctypes.Array[ctypes.c_char]


def work(task: WorkerTask) -> None:
    """The worker's life."""
    parent = os.getppid()
    _leave_signals_to_parent()
    torch.set_num_threads(1)
    seed_generators(task.seed)
    _record_cases(task)
    # an unsendable batch fails in the queue's own thread, which would only print it and drop the batch
    task.batches._on_queue_feeder_error = lambda error, _batch: _fail(task, error)  # type: ignore[attr-defined]
    try:
        with threadpool_limits(1, None):
            task.data_loader.set_thread_id(task.index)
            _produce(task, parent)
    except Exception as error:
        _fail(task, error)


def _produce(task: WorkerTask, parent: int) -> None:
    batch = None
    while not task.abort.is_set():
        if os.getppid() != parent:
            os._exit(1)  # nobody reads the queue any more; a normal end would wait for that
        if task.pause.is_set():
            sleep(task.wait_time)
            continue
        if batch is None:
            batch = next(task.data_loader)
        if task.abort.is_set():
            return
        with contextlib.suppress(Full):
            task.batches.put(batch, timeout=task.wait_time)
            batch = None


def _leave_signals_to_parent() -> None:
    """A terminal sends Ctrl-C to every process; the training process decides, and may need its workers still."""
    for name, action in (("SIGINT", signal.SIG_IGN), ("SIGUSR1", signal.SIG_IGN), ("SIGTERM", signal.SIG_DFL)):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), action)


def seed_generators(seed: int | None) -> None:
    """Seed numpy, torch and random; None takes a seed from the system."""
    # forked workers all inherit one state of torch's and random's generators: without a seed, take a fresh one
    fresh = int.from_bytes(os.urandom(4), "little") if seed is None else seed
    np.random.seed(fresh)
    torch.manual_seed(fresh)
    random.seed(fresh)


def _record_cases(task: WorkerTask) -> None:
    dataset = getattr(task.data_loader, "_data", None)
    load_case = getattr(dataset, "load_case", None)
    if load_case is None:
        return
    room = len(task.current_case) - 1

    def load_and_record(identifier: Any, *args: Any, **kwargs: Any) -> Any:
        task.current_case.value = str(identifier).encode()[:room]
        return load_case(identifier, *args, **kwargs)

    with contextlib.suppress(AttributeError):  # an object with slots
        dataset.load_case = load_and_record  # type: ignore[union-attr]


def _fail(task: WorkerTask, error: BaseException) -> None:
    is_mistake = isinstance(error, NnplugError)
    if not is_mistake:
        traceback.print_exception(error)
    kind = NnplugError.__name__ if is_mistake else type(error).__name__
    case = task.current_case.value.decode(errors="replace")
    message = " ".join(str(error).split())[:_MOST_REPORTED_CHARACTERS]
    with contextlib.suppress(OSError):
        task.report.send((kind, message, case))
    task.abort.set()
