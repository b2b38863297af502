"""What the benchmarks share: sides measured in turns, ratios and intervals, peak memory, sections of README.md."""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATASETS = ROOT / ".pytest_cache" / "d" / "nnplug-datasets"
sys.path.insert(0, str(ROOT / "tests"))  # data sets and commands are those of the tests


def parser(description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def in_turns(repeats: int, *sides: Callable[[], float]) -> list[list[float]]:
    """Values of each side, measured one after the other so that a change of the machine's load meets all alike."""
    values: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats):
        for side, measured in zip(sides, values, strict=True):
            measured.append(side())
    return values


def ratios_of(ours: list[float], stock: list[float]) -> list[float]:
    return [a / b for a, b in zip(ours, stock, strict=True)]


def shown(ratios: list[float], digits: int = 3) -> str:
    """Median and its 95 % bootstrap interval."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(2000))
    median, low, high = (f"{value:.{digits}f}" for value in (statistics.median(ratios), medians[50], medians[1949]))
    return f"{median} ({low} to {high})"


def peak_mib(run: Callable[[], object]) -> float:
    """Memory of this process while it runs, at its highest, beyond what the process had before; Linux."""

    def status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key))

    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = status("VmRSS")
    run()
    return (status("VmHWM") - before) / 1024


def in_own_process(script: str, *arguments: str) -> float:
    """The number that a script prints when it is asked for a peak."""
    # a fixed threshold: freed arrays go back to the system instead of hiding in the heap
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, script, "--peak", *arguments]
    return float(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout)


@contextmanager
def quiet() -> Iterator[None]:
    """Without what nnU-Net prints."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{os.cpu_count()} cores of {model}, {gpu}; Python {platform.python_version()}, torch {version('torch')}, "
        f"nnunetv2 {version('nnunetv2')}."
    )


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def write_section(name: str, text: str) -> None:
    """Replace what README.md tells under a name, with the machine that it was measured on."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    page = ROOT / "benchmarks" / "README.md"
    before, rest = page.read_text(encoding="utf-8").split(begin)
    page.write_text(f"{before}{begin}\n{machine()}\n\n{text.strip()}\n\n{end}{rest.split(end)[1]}", encoding="utf-8")
