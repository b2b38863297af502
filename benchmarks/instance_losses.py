"""Time and memory of the instance losses beside nnU-Net's Dice + cross-entropy: forward and backward of the loss alone.

    python benchmarks/instance_losses.py                   # a table in benchmarks/README.md
    python benchmarks/instance_losses.py blob --rounds 2   # only losses whose name holds "blob", printed

Patches of 128x128x128, batch 2, 1 to 500 balls a sample. The sides take turns, so that the machine's load meets all
alike; a figure is the median of the rounds' ratios. One thread: with more, the result depends on who else computes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import measuring
import numpy as np
import torch
from measuring import in_turns, ratios_of, shown
from nnplug import Component, LossContext
from nnplug.discovery.registry import get_registry
from nnplug.training.losses import build_loss
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

SIDE, BATCH = 128, 2
COUNTS = (1, 10, 100, 500)
NAMES = ("blob_dice_loss", "blob_dice_ce_loss", "region_dice_loss", "region_dice_ce_loss")
STOCK = "stock"
ROUNDS = 9


class Step(NamedTuple):
    """Forward and backward of a loss; the size of the target that it is given."""

    run: Callable[[], None]
    target_mib: float


def balls(count: int, rng: np.random.Generator) -> np.ndarray:
    """(Z, Y, X) int16 with ``count`` balls of radius 2 to 4 that do not touch."""
    labels = np.zeros((SIDE,) * 3, np.int16)
    grid = np.arange(-5, 6)
    distance = np.sqrt(sum(axis**2 for axis in np.meshgrid(grid, grid, grid, indexing="ij")))
    placed = 0
    while placed < count:
        box = tuple(slice(start, start + 11) for start in rng.integers(0, SIDE - 11, 3))
        if not labels[box].any():
            labels[box][distance <= rng.integers(2, 5)] = 1
            placed += 1
    return labels


def steps(count: int, names: tuple[str, ...]) -> dict[str, Step]:
    """Forward and backward of every side: stock, and each loss with ids from the workers and without."""
    rng = np.random.default_rng(count)
    target = torch.from_numpy(np.stack([balls(count, rng) for _ in range(BATCH)]))[:, None]
    logits = torch.from_numpy(rng.standard_normal((BATCH, 2, SIDE, SIDE, SIDE), np.float32)).requires_grad_()
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
    stock = DC_and_CE_loss(dice, {}, dice_class=MemoryEfficientSoftDiceLoss)
    context = LossContext(num_classes=2, spatial_dims=3)

    def step(loss: torch.nn.Module, target: torch.Tensor) -> Step:
        def run() -> None:
            logits.grad = None
            loss(logits, target).backward()
            logits.grad = None

        return Step(run, target.nbytes / 2**20)

    made = {STOCK: step(stock, target)}
    for name in names:
        component = get_registry().resolve(name).config.loss_fn
        assert isinstance(component, Component)
        loss = build_loss(component, context, None)
        transform = loss.target_transform()
        extended = torch.stack([transform(segmentation=sample)["segmentation"] for sample in target])
        made[f"{name}, workers"] = step(loss, extended)
        made[f"{name}, step"] = step(loss, target)
    return made


def seconds(step: Step) -> Callable[[], float]:
    def timed() -> float:
        started = time.perf_counter()
        step.run()
        return time.perf_counter() - started

    return timed


def peak_mib(side: str, count: int) -> float:
    """What a step and its target need, in a process of its own."""
    return measuring.in_own_process(__file__, side, str(count))


def measure_peak(side: str, count: int) -> float:
    step = steps(count, () if side == STOCK else (side.split(",")[0],))[side]
    step.run()
    return step.target_mib + measuring.peak_mib(step.run)


def table(names: tuple[str, ...], rounds: int) -> str:
    ratios: dict[tuple[str, int], list[float]] = {}
    times: dict[tuple[str, int], float] = {}
    for count in COUNTS:
        made = steps(count, names)
        values = in_turns(rounds + 1, *(seconds(step) for step in made.values()))
        for side, measured in zip(made, values, strict=True):
            ratios[side, count] = ratios_of(measured[1:], values[0][1:])
            times[side, count] = statistics.median(measured[1:])
    peaks = {(side, count): peak_mib(side, count) for side in made for count in (COUNTS[0], COUNTS[-1])}

    lines = [
        f"| loss, ids made in | {' | '.join(f'{count} balls' for count in COUNTS)} | at most | growth 1 to 500 | "
        "peak memory, 1 and 500 balls |",
        "|---" * (len(COUNTS) + 4) + "|",
        f"| nnU-Net's Dice + CE | {' | '.join(f'{times[STOCK, c]:.3f} s' for c in COUNTS)} | | | "
        f"{peaks[STOCK, COUNTS[0]]:.0f} MiB |",
    ]
    for side in list(made)[1:]:
        limit = "1.5" if side.endswith("workers") else "2.5" if side.startswith("blob") else "4"
        cells = [shown(ratios[side, count], digits=2) for count in COUNTS]
        growth = statistics.median(ratios[side, COUNTS[-1]]) / statistics.median(ratios[side, COUNTS[0]])
        memory = ", ".join(f"{peaks[side, c] / peaks[STOCK, c]:.2f}" for c in (COUNTS[0], COUNTS[-1]))
        name, _, where = side.partition(", ")
        lines.append(f"| `{name}`, {where} | {' | '.join(cells)} | {limit} | {growth:.2f} | {memory} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    options = measuring.parser(__doc__ or "")
    options.add_argument("part", nargs="?", default="", help="part of a loss's name")
    options.add_argument("--rounds", type=int, default=ROUNDS)
    options.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.peak:
        print(measure_peak(args.peak[0], int(args.peak[1])))
        return
    torch.set_num_threads(1)
    made = table(tuple(name for name in NAMES if args.part in name), args.rounds)
    print(made)
    if not args.part:
        measuring.write_section("instance losses", made)


if __name__ == "__main__":
    main()
