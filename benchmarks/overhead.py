"""What nnplug costs beside stock nnU-Net: listing, start, optimiser step, and the rest of an epoch.

    python benchmarks/overhead.py                # all, a table in benchmarks/README.md
    python benchmarks/overhead.py listing start  # only these, printed

Both sides of a ratio are measured in one run, in turns. The data are real MR volumes (Task04_Hippocampus).
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from measuring import DATASETS, in_turns, parser, quiet, ratios_of, shown, table, write_section
from support.commands import LAUNCHER, clean_environment
from support.datasets import DatasetForTests, prepared, write_hippocampus
from support.plugin_packages import PluginSite, trainers

Row = tuple[str, str, str, str, str]
#: A batch of 2 on the plan's patch of 40x56x40: nnU-Net's own batch of 9 takes a minute a step on two cores.
SMALL = "batch_size=2"


def seconds(command: list[str], env: dict[str, str]) -> float:
    """Wall time of a command; the processes that it leaves behind are killed."""
    with tempfile.TemporaryFile("w+") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, env=clean_environment(env), stdout=output, stderr=output, start_new_session=True
        )
        exit_code = process.wait()
        passed = time.perf_counter() - started
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if exit_code:
            output.seek(0)
            raise SystemExit(output.read())
    return passed


def row(what: str, ours: list[float], stock: list[float], limit: str) -> Row:
    medians = (f"{statistics.median(side):.3f} s" for side in (ours, stock))
    return what, *medians, shown(ratios_of(ours, stock)), limit


def listing(_: DatasetForTests) -> list[Row]:
    """``nnplug trainers`` in a cold process beside the import of nnU-Net's training module."""
    stock = [sys.executable, "-c", "import nnunetv2.run.run_training"]
    ours = [sys.executable, "-m", "nnplug", "trainers"]
    with tempfile.TemporaryDirectory() as site:
        for number in range(200):
            code = trainers(f"name='extra_{number}', num_epochs={number + 1}")
            PluginSite(Path(site)).add(f"extra-{number}", code=code)
        values = in_turns(
            7, lambda: seconds(ours, {}), lambda: seconds(ours, {"PYTHONPATH": site}), lambda: seconds(stock, {})
        )
    return [
        row("`nnplug trainers`, cold, beside `import nnunetv2.run.run_training`", values[0], values[2], "0.10"),
        row("the same with 200 more plugin packages", values[1], values[2], "0.20"),
    ]


FIRST_STEP = """
import sys, time
from torch.optim.optimizer import register_optimizer_step_post_hook
import os
register_optimizer_step_post_hook(lambda *_: os._exit(0))
sys.argv = [{name!r}, *{arguments!r}]
{run}
"""
RUN_OURS = "from nnplug.cli import main; main()"
RUN_STOCK = (
    "sys.path.insert(0, {tests!r}); from support.stock_launcher import declare_missing_operators; "
    "declare_missing_operators(); from nnunetv2.run.run_training import run_training_entry; run_training_entry()"
)


def start(dataset: DatasetForTests) -> list[Row]:
    """From the command to the end of the first optimiser step, the dry run included."""
    with tempfile.TemporaryDirectory() as results:
        dataset = dataset.with_results(Path(results))
        arguments = ["4", "3d_fullres", "0", "-p", "nnUNetPlans", "-device", "cpu"]
        ours = FIRST_STEP.format(name="nnplug", arguments=["train", *arguments], run=RUN_OURS)
        stock = FIRST_STEP.format(
            name="nnUNetv2_train", arguments=arguments, run=RUN_STOCK.format(tests=str(LAUNCHER.parents[1]))
        )
        default_workers = {key: value for key, value in dataset.env.items() if key != "nnUNet_n_proc_DA"}
        rows = []
        for what, env in (("nnU-Net's own number of data workers", default_workers), ("no data workers", dataset.env)):
            run = partial(seconds, env=env)
            values = in_turns(
                9, partial(run, [sys.executable, "-c", ours]), partial(run, [sys.executable, "-c", stock])
            )
            rows.append(row(f"command to first optimiser step (plan's own batch, {what})", *values, "1.00"))
    return rows


def make_trainers(dataset: DatasetForTests, epochs: int) -> tuple[Any, Any]:
    """nnplug's trainer and stock's with the same settings."""
    import nnplug
    import torch
    from nnplug.training.trainer import build_trainer_class
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    folder = dataset.preprocessed_folder
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    plans["configurations"]["3d_fullres"]["batch_size"] = 2
    dataset_json = json.loads((folder / "dataset.json").read_text())
    ours = build_trainer_class(nnplug.resolve("nnUNetTrainer_5epochs"))
    made = []
    for trainer_class in (ours, nnUNetTrainer):
        trainer = trainer_class(
            {**plans, "continue_training": False}, "3d_fullres", 0, dataset_json, torch.device("cpu")
        )
        trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = epochs, 1, 1
        made.append(trainer)
    return made[0], made[1]


def step(dataset: DatasetForTests, pairs: int = 100) -> list[Row]:
    """One optimiser step on the same batch, in interleaved pairs."""
    with tempfile.TemporaryDirectory() as results, dataset.with_results(Path(results)).activated(), quiet():
        ours, stock = make_trainers(dataset, epochs=2)
        for trainer in (ours, stock):
            trainer.on_train_start()
            trainer.on_epoch_start()
            trainer.on_train_epoch_start()
        batch = next(stock.dataloader_train)

        def timed(trainer: Any) -> float:
            started = time.perf_counter()
            trainer.train_step(batch)
            return time.perf_counter() - started

        in_turns(3, lambda: timed(ours), lambda: timed(stock))  # warm-up
        values = in_turns(pairs, lambda: timed(ours), lambda: timed(stock))
    return [row(f"optimiser step, batch 2, {pairs} interleaved pairs", values[0], values[1], "1.02")]


def epoch(dataset: DatasetForTests, epochs: int = 12) -> list[Row]:
    """What an epoch takes outside of its steps and of data loading, from its start to the start of the next."""
    spent: list[list[float]] = []
    with tempfile.TemporaryDirectory() as results, dataset.with_results(Path(results)).activated(), quiet():
        for trainer in make_trainers(dataset, epochs):
            spent.append(_outside_steps(trainer, epochs)[1:])  # the first draws the network's diagram, once
    return [row("an epoch outside steps and data loading", spent[0], spent[1], "0.20")]


def _outside_steps(trainer: Any, epochs: int) -> list[float]:
    inside = [0.0]
    starts: list[tuple[float, float]] = []

    def count(function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*args)
            finally:
                inside[0] += time.perf_counter() - began

        return timed

    get_loaders, begin, end = trainer.get_dataloaders, trainer.on_epoch_start, trainer.on_train_end

    class Timed:
        def __init__(self, loader: Any) -> None:
            self.next = count(loader.__next__)

        def __next__(self) -> Any:
            return self.next()

    def mark(then: Callable[[], None]) -> Callable[[], None]:
        def marked() -> None:
            starts.append((time.perf_counter(), inside[0]))
            then()

        return marked

    trainer.get_dataloaders = lambda: tuple(Timed(loader) for loader in get_loaders())
    trainer.train_step, trainer.validation_step = count(trainer.train_step), count(trainer.validation_step)
    trainer.on_epoch_start, trainer.on_train_end = mark(begin), mark(end)
    trainer.run_training()
    assert len(starts) == epochs + 1
    return [b[0] - a[0] - (b[1] - a[1]) for a, b in pairwise(starts)]


MEASUREMENTS = {"listing": listing, "start": start, "step": step, "epoch": epoch}
HEADER = ("what", "nnplug", "stock", "ratio: median (95 % interval)", "wanted, at most")


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument(
        "measurement",
        nargs="*",
        choices=[*MEASUREMENTS, []],
        metavar="MEASUREMENT",
        help=f"{', '.join(MEASUREMENTS)}; all where none is named",
    )
    chosen = options.parse_args().measurement
    dataset = prepared("Dataset004_Hippocampus", write_hippocampus, DATASETS)
    made = table(HEADER, [r for name in chosen or MEASUREMENTS for r in MEASUREMENTS[name](dataset)])
    print(made)
    if not chosen:
        write_section("overhead", made)


if __name__ == "__main__":
    main()
