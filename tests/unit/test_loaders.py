"""Data workers, run for real: their numbers, seeds, and the reason when one dies."""

from __future__ import annotations

import faulthandler
import mmap
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.data_loader import DataLoader
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from nnplug.errors import NnplugError
from nnplug.training.loaders import Augmenter, SerialAugmenter, WorkerDiedError, build_augmenters, worker_seeds
from nnplug.training.worker_failures import describe_exception, describe_exit

pytestmark = pytest.mark.timeout(120)


class Cases:
    """A data set like nnU-Net's: ``load_case`` by identifier."""

    identifiers = ("case_a", "case_b")

    def load_case(self, identifier: str) -> np.ndarray:
        return np.full((2, 2), len(identifier))


class Loader(DataLoader):
    """Gives batches until ``bad_batch``, then does ``misbehave`` with the current case loaded."""

    def __init__(self, misbehave: Any = None, bad_batch: int = 2, seconds: float = 0.0) -> None:
        super().__init__(Cases(), batch_size=1, infinite=True)
        self.indices = ["case_a"]
        self.misbehave, self.bad_batch, self.seconds = misbehave, bad_batch, seconds
        self.num_made = 0

    def generate_train_batch(self) -> dict[str, Any]:
        (case,) = self.get_indices()
        data = self._data.load_case(case)
        time.sleep(self.seconds)
        self.num_made += 1
        if self.misbehave is not None and self.num_made >= self.bad_batch and self.thread_id == 0:
            extra = self.misbehave()
        else:
            extra = None
        random_numbers = (np.random.randint(1 << 30), torch.randint(1 << 30, (1,)).item())
        return {"data": torch.from_numpy(data), "random": random_numbers, "worker": self.thread_id, "extra": extra}


def raise_value_error() -> None:
    raise ValueError("patch size and\nimage do not fit")


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def read_a_shortened_file() -> None:
    faulthandler.disable()  # pytest's; it would print the crash
    path = Path(f"/tmp/nnplug_shortened_{os.getpid()}")
    path.write_bytes(b"x" * 3 * mmap.PAGESIZE)
    with open(path, "r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
        file.truncate(mmap.PAGESIZE)
        path.unlink()
        memory[2 * mmap.PAGESIZE]


def take_many(augmenter: Augmenter) -> None:
    for _ in range(1000):
        next(augmenter)


def run_until_death(loader: Loader, num_processes: int = 2) -> str:
    augmenter = Augmenter(loader, None, num_processes, num_cached=2, wait_time=0.002)
    started = time.monotonic()
    with pytest.raises(WorkerDiedError) as caught:
        take_many(augmenter)
    assert time.monotonic() - started < 30
    assert isinstance(caught.value, NnplugError)
    assert isinstance(caught.value, RuntimeError)  # what nnU-Net raises
    assert not augmenter._processes, "the other workers are gone as well"
    return str(caught.value)


def test_batches_come_from_all_workers_until_finish() -> None:
    augmenter = Augmenter(Loader(seconds=0.01), None, 2, num_cached=2, wait_time=0.002)
    batches = [next(augmenter) for _ in range(20)]
    processes = list(augmenter._processes)
    augmenter._finish()
    assert {batch["worker"] for batch in batches} == {0, 1}
    assert batches[0]["data"].tolist() == [[6, 6], [6, 6]]
    assert not any(process.is_alive() for process in processes)
    assert next(augmenter)["extra"] is None, "it starts again when asked, as stock does"
    augmenter._finish()


def test_nnunet_recognises_the_augmenter() -> None:
    assert issubclass(Augmenter, NonDetMultiThreadedAugmenter)


def test_exception_is_told_with_type_message_and_case(capfd: pytest.CaptureFixture[str]) -> None:
    message = run_until_death(Loader(raise_value_error))
    assert message == "Data worker 0 failed: ValueError at case case_a: patch size and image do not fit"
    assert "raise_value_error" in capfd.readouterr().err, "the traceback is printed"


def test_kill_is_told_with_memory_and_remedy() -> None:
    message = run_until_death(Loader(kill_myself))
    assert message.startswith("Data worker 0 died: it was killed (SIGKILL) at case case_a, most likely by the system")
    assert "GB available now" in message
    assert "nnUNet_n_proc_DA=1 instead of 2" in message


def test_kill_from_outside_is_told() -> None:
    augmenter = Augmenter(Loader(seconds=0.01), None, 2, num_cached=2, wait_time=0.002)
    next(augmenter)
    os.kill(augmenter._processes[1].pid, signal.SIGKILL)
    with pytest.raises(WorkerDiedError, match=r"Data worker 1 died: it was killed \(SIGKILL\)"):
        take_many(augmenter)


def test_bus_error_is_told_with_size_of_shared_memory() -> None:
    message = run_until_death(Loader(read_a_shortened_file))
    assert message.startswith("Data worker 0 died: it was ended by SIGBUS at case case_a: most likely /dev/shm is too ")
    assert "GB free)" in message
    assert "--shm-size=8g" in message


def test_exit_in_a_worker_is_told() -> None:
    assert "it ended with exit code 7 at case case_a." in run_until_death(Loader(lambda: os._exit(7)))


def test_unsendable_batch_is_told_and_does_not_hang() -> None:
    message = run_until_death(Loader(lambda: lambda: None))  # a function in the batch can not be pickled
    assert "pickle" in message
    assert "at case case_a" in message


def test_death_while_another_worker_is_busy_is_told_soon() -> None:
    started = time.monotonic()
    run_until_death(Loader(raise_value_error, bad_batch=1, seconds=0.2), num_processes=2)
    assert time.monotonic() - started < 15


@pytest.mark.parametrize(
    ("exit_code", "expected"),
    [
        (-signal.SIGSEGV, "it crashed (SIGSEGV) at case c7: a library failed, often on a damaged data file."),
        (-signal.SIGTERM, "it was ended by SIGTERM at case c7."),
        (-250, "it was ended by signal 250 at case c7."),
        (3, "it ended with exit code 3 at case c7."),
    ],
)
def test_other_ends_are_named(exit_code: int, expected: str) -> None:
    assert expected in describe_exit(exit_code, "c7", 4)


def test_full_shared_memory_is_recognised_in_torch_messages() -> None:
    text = describe_exception("RuntimeError", "unable to write to file </torch_1>: No space left on device (28)", "", 4)
    assert "/dev/shm is too small (" in text


def test_a_users_mistake_is_told_with_its_case_alone() -> None:
    assert describe_exception("NnplugError", "The value 7.", "c7", 4) == "c7: The value 7."


def test_memory_error_proposes_fewer_workers() -> None:
    assert "nnUNet_n_proc_DA=2 instead of 4" in describe_exception("MemoryError", "", "c7", 4)


def test_wait_seconds_grow_by_the_time_spent_waiting() -> None:
    augmenter = Augmenter(Loader(seconds=0.1), None, 1, num_cached=2, wait_time=0.002)
    next(augmenter)
    before = augmenter.wait_seconds
    for _ in range(5):
        next(augmenter)
    waited = augmenter.wait_seconds - before
    augmenter._finish()
    assert 0.25 < waited < 3


def test_no_waiting_is_counted_when_batches_are_ready() -> None:
    augmenter = Augmenter(Loader(), None, 1, num_cached=4, wait_time=0.002)
    next(augmenter)
    time.sleep(0.5)
    before = augmenter.wait_seconds
    next(augmenter)
    assert augmenter.wait_seconds - before < 0.1
    augmenter._finish()


def test_serial_augmenter_counts_its_time() -> None:
    augmenter = SerialAugmenter(Loader(seconds=0.05), None)
    assert next(augmenter)["worker"] == 0
    assert augmenter.wait_seconds >= 0.05


def test_seeds_repeat_and_differ() -> None:
    assert worker_seeds(None, 4) is None
    seeds = worker_seeds(3, 6)
    assert seeds == worker_seeds(3, 6)
    assert len(set(seeds)) == 6
    assert all(type(seed) is int and 0 <= seed < 1 << 32 for seed in seeds)
    others = [worker_seeds(4, 6), *(worker_seeds(3, 6, **{part: 1}) for part in ("rank", "epoch", "step"))]
    assert all(not set(seeds) & set(other) for other in others)


def test_seeded_workers_repeat_their_batches() -> None:
    def first_numbers() -> Any:
        augmenter = Augmenter(Loader(), None, 1, num_cached=2, seeds=[17], wait_time=0.002)
        numbers = [next(augmenter)["random"] for _ in range(3)]
        augmenter._finish()
        return numbers

    assert first_numbers() == first_numbers()


def test_unseeded_workers_do_not_share_a_generator_state() -> None:
    augmenter = Augmenter(Loader(seconds=0.02), None, 2, num_cached=2, wait_time=0.002)
    batches = [next(augmenter) for _ in range(20)]
    augmenter._finish()
    for generator in (0, 1):  # numpy's, torch's
        numbers = [batch["random"][generator] for batch in batches]
        assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize(("num_workers", "expected"), [(1, (1, 1, 6, 3)), (2, (2, 1, 6, 3))])
def test_build_augmenters_takes_nnunets_numbers(
    num_workers: int, expected: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", str(num_workers))
    train, val = build_augmenters(Loader(), Loader(), torch.device("cpu"), seed=5)
    assert isinstance(train, Augmenter)
    assert isinstance(val, Augmenter)
    assert (train.num_processes, val.num_processes, train.num_cached, val.num_cached) == expected
    assert not train.pin_memory
    assert not set(train.seeds) & set(val.seeds)
    assert len(train._processes) == expected[0], "the workers run already"
    next(train), next(val)
    train._finish(), val._finish()


def test_no_workers_means_the_training_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    train, val = build_augmenters(Loader(), Loader(), torch.device("cpu"), seed=None)
    assert isinstance(train, SerialAugmenter)
    assert isinstance(val, SerialAugmenter)
    draws = []
    for rank in (0, 1):
        np.random.seed(5)  # as every process of a seeded training has
        build_augmenters(Loader(), Loader(), torch.device("cpu"), 5, rank)
        draws.append(np.random.rand())
    assert draws[0] != draws[1], "the processes of a training would load the same batches"


def test_workers_leave_ctrl_c_to_the_training_process() -> None:
    augmenter = Augmenter(Loader(seconds=0.01), None, 2, num_cached=2, wait_time=0.002)
    begun: set[int] = set()
    while len(begun) < 2:  # one worker alone may fill the queue at first
        begun.add(next(augmenter)["worker"])
    for process in augmenter._processes:
        os.kill(process.pid, signal.SIGINT)
        os.kill(process.pid, signal.SIGUSR1)
    time.sleep(0.2)
    for _ in range(10):
        next(augmenter)
    assert all(process.is_alive() for process in augmenter._processes)
    augmenter._finish()


def test_workers_can_be_terminated_though_the_training_process_handles_sigterm() -> None:
    previous = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        augmenter = Augmenter(Loader(seconds=60, bad_batch=99), None, 1, num_cached=2, wait_time=0.002)
        augmenter._start()
        (worker,) = augmenter._processes
        time.sleep(1)
        worker.terminate()
        worker.join(5)
        assert worker.exitcode == -signal.SIGTERM
        augmenter._finish(timeout=1)
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_workers_end_when_the_training_process_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_loaders import Augmenter, Loader
        augmenter = Augmenter(Loader(seconds=0.01), None, 2, num_cached=2, wait_time=0.002)
        next(augmenter)
        print(*(process.pid for process in augmenter._processes), flush=True)
        while True:
            next(augmenter)
        """)
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as training:
        workers = [int(pid) for pid in training.stdout.readline().split()]
        training.kill()
    assert len(workers) == 2
    deadline = time.monotonic() + 10
    while any(map(_is_running, workers)):
        assert time.monotonic() < deadline, "orphaned workers live on"
        time.sleep(0.05)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
