"""Batches from worker processes, as nnU-Net makes them, with a reason when a worker dies.

``Augmenter`` is batchgenerators' ``NonDetMultiThreadedAugmenter`` (nnU-Net's shut-down recognises it) with its own
workers.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import threading
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import RawArray
from queue import Empty, Full
from queue import Queue as ThreadQueue
from time import perf_counter
from typing import Any

import numpy as np
import torch
from batchgenerators.dataloading.data_loader import DataLoader
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import (
    NonDetMultiThreadedAugmenter,
    pin_memory_of_all_eligible_items_in_dict,
)
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnplug.training.worker_failures import WorkerDiedError, describe_exception, describe_exit
from nnplug.training.worker_process import WorkerTask, seed_generators, work

__all__ = ["Augmenter", "SerialAugmenter", "WorkerDiedError", "build_augmenters", "worker_seeds"]

_LONGEST_CASE_NAME = 256


class Augmenter(NonDetMultiThreadedAugmenter):
    """Batches in no fixed order from ``num_processes`` workers.

    Attributes:
        wait_seconds: time spent waiting for batches since the beginning: the data-loading share of the training.

    Raises:
        WorkerDiedError: from ``next``, when a worker died: with its exception and case, or the signal that ended it.
    """

    wait_seconds = 0.0
    initialized: bool
    _queue: Any
    results_loop_queue: Any
    _reports: list[Connection]
    _cases: list[Any]

    def __next__(self) -> Any:
        started = perf_counter()
        if not self.initialized:
            self._start()
        try:
            return self._wait_for_batch()
        finally:
            self.wait_seconds += perf_counter() - started

    def _wait_for_batch(self) -> Any:
        while True:
            if self.abort_event.is_set() or not all(process.is_alive() for process in self._processes):
                reason = self._reason_of_death()
                self._finish(timeout=3)
                raise WorkerDiedError(reason)
            with contextlib.suppress(Empty):
                batch = self.results_loop_queue.get(timeout=self.wait_time)
                self.results_loop_queue.task_done()
                return batch

    def _start(self) -> None:
        if self.initialized:
            return
        self._finish()
        self._queue = multiprocessing.Queue(self.num_cached)
        self.results_loop_queue = ThreadQueue(self.num_cached)
        self.abort_event = multiprocessing.Event()
        self.pause_event = multiprocessing.Event()
        self._reports, self._cases = [], []
        if isinstance(self.generator, DataLoader):
            self.generator.was_initialized = False
        for index in range(self.num_processes):
            self._processes.append(self._start_worker(index))
        self.results_loop_thread = threading.Thread(
            target=_collect,
            args=(
                self._queue,
                self.results_loop_queue,
                self.abort_event,
                _pinning_gpu(self.pin_memory),
                self.wait_time,
            ),
            daemon=True,
        )
        self.results_loop_thread.start()
        self.initialized = True

    def _start_worker(self, index: int) -> multiprocessing.Process:
        receive, send = multiprocessing.Pipe(duplex=False)
        case = RawArray("c", _LONGEST_CASE_NAME)
        task = WorkerTask(
            index=index,
            seed=self.seeds[index],
            data_loader=self.generator,
            batches=self._queue,
            abort=self.abort_event,
            pause=self.pause_event,
            wait_time=self.wait_time,
            report=send,
            current_case=case,
        )
        process = multiprocessing.Process(target=work, args=(task,), daemon=True)
        process.start()
        send.close()
        self._reports.append(receive)
        self._cases.append(case)
        return process

    def _reason_of_death(self) -> str:
        for index, report in enumerate(self._reports):
            with contextlib.suppress(EOFError, OSError):
                if report.poll():
                    kind, message, case = report.recv()
                    return f"Data worker {index} failed: " + describe_exception(kind, message, case, self.num_processes)
        for index, process in enumerate(self._processes):
            if not process.is_alive():
                case = self._cases[index].value.decode(errors="replace")
                return f"Data worker {index} died: " + describe_exit(process.exitcode, case, self.num_processes)
        return "A data worker handed over a batch that could not be received; see the messages above."


class SerialAugmenter(SingleThreadedAugmenter):
    """Batches made in the training process (``nnUNet_n_proc_DA=0``), with the time that this takes."""

    wait_seconds = 0.0

    def __next__(self) -> Any:
        started = perf_counter()
        try:
            return super().__next__()
        finally:
            self.wait_seconds += perf_counter() - started


def worker_seeds(seed: int | None, num_workers: int, rank: int = 0, epoch: int = 0, step: int = 0) -> list[int] | None:
    """A seed for each data worker; None (each takes its own from the system) without a seed.

    Args:
        seed: the config's.
        num_workers: how many.
        rank: of the DDP process, so that no two processes load the same batches.
        epoch: the first one to train, so that a resumed run does not repeat the batches of its beginning.
        step: likewise, inside the epoch.
    """
    if seed is None:
        return None
    state = np.random.SeedSequence(seed, spawn_key=(rank, epoch, step)).generate_state(num_workers)
    return [int(value) for value in state]


def build_augmenters(
    train_loader: Any,
    val_loader: Any,
    device: torch.device,
    seed: int | None,
    rank: int = 0,
    epoch: int = 0,
    step: int = 0,
) -> tuple[Augmenter | SerialAugmenter, Augmenter | SerialAugmenter]:
    """Start the workers of training and validation, in nnU-Net's numbers; their first batches are not waited for.

    Args:
        train_loader: nnU-Net data loader with its transforms, without an end.
        val_loader: likewise.
        device: batches are pinned for CUDA.
        seed: see ``worker_seeds``; with 0 workers the training process's own generators count.
        rank: likewise.
        epoch: likewise.
        step: likewise.
    """
    num_train = get_allowed_n_proc_DA()
    if num_train == 0:
        seeds = worker_seeds(seed, 1, rank, epoch, step)
        if seeds is not None and rank > 0:  # every process has seeded its own generators alike
            seed_generators(seeds[0])
        return SerialAugmenter(train_loader, None), SerialAugmenter(val_loader, None)
    num_val = max(1, num_train // 2)
    seeds = worker_seeds(seed, num_train + num_val, rank, epoch, step)
    augmenters = []
    for loader, part, num_cached in (
        (train_loader, slice(num_train), max(6, num_train // 2)),
        (val_loader, slice(num_train, num_train + num_val), max(3, num_train // 4)),
    ):
        augmenter = Augmenter(
            data_loader=loader,
            transform=None,
            num_processes=len(range(num_train + num_val)[part]),
            num_cached=num_cached,
            seeds=None if seeds is None else seeds[part],
            pin_memory=device.type == "cuda",
            wait_time=0.002,
        )
        augmenter._start()
        augmenters.append(augmenter)
    return augmenters[0], augmenters[1]


def _pinning_gpu(pin_memory: bool) -> int | None:
    return torch.cuda.current_device() if pin_memory and torch.cuda.is_available() else None


def _collect(incoming: Any, outgoing: ThreadQueue[Any], abort: Any, gpu: int | None, wait_time: float) -> None:
    """Move batches from the workers' queue to the training's, pinned for ``gpu``; runs in a thread."""
    if gpu is not None:
        torch.cuda.set_device(gpu)
    batch = None
    try:
        while not abort.is_set():
            if batch is None:
                with contextlib.suppress(Empty):
                    batch = incoming.get(timeout=wait_time)
                if batch is not None and gpu is not None:
                    batch = pin_memory_of_all_eligible_items_in_dict(batch)
            else:
                with contextlib.suppress(Full):
                    outgoing.put(batch, timeout=wait_time)
                    batch = None
    except Exception:
        # a dead worker takes the memory of batches with it that wait in the queue; next() tells why it died
        abort.set()
