"""The demo's output folder: what it is for, which steps are finished, nnU-Net's variables that point into it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nnplug.datasets import environment
from nnplug.errors import NnplugError
from nnplug.files.json_files import read_required_json, write_json

STATE = "demo.json"
NUM_PROCESSES = 2
PARTS = ("raw", "preprocessed", "results")


class DemoFolder:
    """One output folder. It holds one data set; trainings of any trainers can be added to it.

    Args:
        path: the folder as the user gave it; made where it is missing.
        dataset: name of the data set.
        source: the user's raw data set, None for the demo's own images.
        say: receives the lines that explain each step.

    Raises:
        NnplugError: the folder holds something else, can not be made, or the data set has changed since.
    """

    def __init__(self, path: Path, dataset: str, source: Path | None, say: Callable[[str], None]) -> None:
        self.shown, self.path = path, path.expanduser().absolute()
        self.dataset, self.say = dataset, say
        self.raw, self.preprocessed, self.results = (self.path / f"nnUNet_{part}" / dataset for part in PARTS)
        self.state = self._open(None if source is None else content_hash(source))

    def _open(self, source: str | None) -> dict[str, Any]:
        record = self.path / STATE
        if not record.is_file():
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise NnplugError(f"{self.shown} holds something that no demo made. Name another folder with -o.")
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise NnplugError(f"{self.shown} can not be made ({error.strerror}). Name a folder with -o.") from None
            state: dict[str, Any] = {"dataset": self.dataset, "source": source, "finished": {}}
            write_json(record, state)
            return state
        state = read_required_json(record, "The demo's record")
        if state["dataset"] != self.dataset:
            raise NnplugError(f"{self.shown} holds a demo with {state['dataset']}. Name another folder with -o.")
        if state["source"] != source:
            raise NnplugError(
                f"{self.shown} holds a demo with {self.dataset}, whose files have changed since. "
                "Name another folder with -o."
            )
        return state

    def remember(self, key: str, value: Any) -> None:
        """Keep a value for a later run."""
        self.state[key] = value
        write_json(self.path / STATE, self.state)

    def step(
        self, key: str, title: str, command: str | None, is_whole: Callable[[], bool], do: Callable[[], object]
    ) -> None:
        """Do a step once: what is recorded as finished and is still there is not repeated.

        Args:
            key: the step's name in the record.
            title: printed.
            command: the command line that does the same, printed.
            is_whole: whether the step's files are all there.
            do: the step.
        """
        self.say(f"\n== {title}")
        if command is not None:
            self.say(f"$ {command}")
        if key in self.state["finished"] and is_whole():
            self.say("   finished before")
            return
        start = time.perf_counter()
        do()
        seconds = round(time.perf_counter() - start, 1)
        self.remember("finished", {**self.state["finished"], key: {"seconds": seconds}})
        self.say(f"   {seconds} s")

    def quietly(self, do: Callable[[], object]) -> None:
        """Do a step of nnU-Net with what it prints in ``nnunet.log``; an error says so."""
        log = self.path / "nnunet.log"
        try:
            with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
                do()
        except NnplugError:
            raise
        except Exception as error:
            raise NnplugError(f"nnU-Net stopped at {self.dataset}: {error} (what it printed: {log})") from error

    @contextlib.contextmanager
    def environment(self) -> Iterator[None]:
        """nnU-Net's folders and process counts for a small machine, as variables of this process."""
        from joblib import cpu_count

        ours = {f"nnUNet_{part}": str(self.path / f"nnUNet_{part}") for part in PARTS}
        ours["nnUNet_def_n_proc"] = os.environ.get("nnUNet_def_n_proc", str(NUM_PROCESSES))
        # Planning gives this number to torch as its number of threads, which can not be 0. Half of the processors keep
        # up with the training; more would compete with it.
        loaders = os.environ.get("nnUNet_n_proc_DA", "").lstrip("0")
        ours["nnUNet_n_proc_DA"] = loaders or str(min(8, max(1, cpu_count() // 2)))
        for part in PARTS:
            (self.path / f"nnUNet_{part}").mkdir(exist_ok=True)
        with environment(**ours):
            yield


def check_raw_dataset(folder: Path) -> Path:
    """The absolute folder of a raw data set.

    Raises:
        NnplugError: it is none.
    """
    path = folder.expanduser().resolve()
    if not path.is_dir():
        raise NnplugError(f"There is no folder {folder}. --dataset takes a raw data set of nnU-Net.")
    if not re.fullmatch(r"Dataset\d{3}_[^/]+", path.name) or not (path / "dataset.json").is_file():
        raise NnplugError(
            f"{folder} is no raw data set of nnU-Net: its name must be DatasetXXX_NAME, and it must hold dataset.json."
        )
    return path


def content_hash(folder: Path) -> str:
    """Tells whether files of a data set have changed, from their names, sizes and times."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{path.relative_to(folder)} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
