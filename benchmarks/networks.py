"""What the networks cost beside nnU-Net's PlainConvUNet: parameters, multiply-adds, memory and time of a training step.

    python benchmarks/networks.py              # all, a table in benchmarks/README.md
    python benchmarks/networks.py dynunet unet # only trainers whose name holds one of these, printed

Every registered trainer that brings a network, on the plans of Task04_Hippocampus: forward and backward through all
outputs. Where a network does not take the plan's patch it gets the one that nnplug proposes, and PlainConvUNet too.
The networks take turns with PlainConvUNet, so that the machine's load meets both alike; a figure is the median of the
rounds' ratios. One thread: with more, the result depends on who else computes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import measuring
import nnplug
import torch
from measuring import in_turns, quiet, ratios_of, shown
from nnplug.discovery.registry import get_registry
from nnplug.networks.network import PatchRefusedError
from nnplug.networks.report import count_text
from nnplug.testing.costs import costs_of
from nnplug.training.trainer import build_trainer_class
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from support.datasets import DatasetForTests, prepared, write_hippocampus
from torch import nn

BATCH = {"3d_fullres": 2, "2d": 16}
PLAIN, RESIDUAL = "PlainConvUNet", "ResidualEncoderUNet"
#: Blocks of nnU-Net's residual encoder presets, by stage.
RESIDUAL_BLOCKS = (1, 3, 4, 6, 6, 6, 6, 6)
NUM_CHANNELS, NUM_CLASSES = 1, 3
ROUNDS = 7

Patch = tuple[int, ...]


def trainers() -> list[str]:
    """Registered trainers that bring a network."""
    registry = get_registry()
    return [name for name in registry.list_names() if registry.resolve(name).config.network_builder is not None]


def build(
    dataset: DatasetForTests, name: str, configuration: str, patch: Patch | None = None
) -> tuple[nn.Module, Patch]:
    """A network as it is trained, and the patch that it takes: the given one for nnU-Net's, else found out."""
    folder = dataset.preprocessed_folder
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    settings = plans["configurations"][configuration]
    if name in (PLAIN, RESIDUAL):
        return _stock(name, settings["architecture"]), patch or tuple(settings["patch_size"])
    settings["batch_size"] = BATCH[configuration]
    dataset_json = json.loads((folder / "dataset.json").read_text())
    make = build_trainer_class(nnplug.resolve(name))

    def tried() -> Any:
        plan = {**deepcopy(plans), "continue_training": False}
        trainer = make(plan, configuration, 0, dataset_json, torch.device("cpu"))
        trainer.try_network()
        return trainer

    with tempfile.TemporaryDirectory() as results, dataset.with_results(Path(results)).activated(), quiet():
        try:
            trainer = tried()
        except PatchRefusedError as refusal:
            settings["patch_size"] = list(refusal.proposal)
            trainer = tried()
        taken = tuple(trainer.configuration_manager.patch_size)
        return trainer.build_for(taken, trainer.enable_deep_supervision).train(), taken


def _stock(name: str, architecture: dict[str, Any]) -> nn.Module:
    arch_kwargs = dict(architecture["arch_kwargs"])
    if name == RESIDUAL:
        num_stages = arch_kwargs["n_stages"]
        del arch_kwargs["n_conv_per_stage"]
        arch_kwargs["n_blocks_per_stage"] = RESIDUAL_BLOCKS[:num_stages]
        arch_kwargs["n_conv_per_stage_decoder"] = [1] * (num_stages - 1)
    return get_network_from_plans(
        f"dynamic_network_architectures.architectures.unet.{name}",
        arch_kwargs,
        architecture["_kw_requires_import"],
        NUM_CHANNELS,
        NUM_CLASSES,
        deep_supervision=True,
    ).train()


def step(network: nn.Module, images: torch.Tensor) -> Callable[[], float]:
    """Forward and backward; returns the seconds."""

    def timed() -> float:
        network.zero_grad(set_to_none=True)
        started = time.perf_counter()
        outputs = network(images)
        outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
        torch.stack([output.square().mean() for output in outputs]).sum().backward()
        return time.perf_counter() - started

    return timed


def images_of(configuration: str, patch: Patch) -> torch.Tensor:
    return torch.randn(BATCH[configuration], NUM_CHANNELS, *patch, generator=torch.Generator().manual_seed(0))


@cache
def peak_mib(name: str, configuration: str, patch: Patch) -> float:
    """What the network and two steps need, in a process of its own."""
    return measuring.in_own_process(__file__, name, configuration, "x".join(map(str, patch)))


def measure_peak(dataset: DatasetForTests, name: str, configuration: str, patch: Patch) -> float:
    # what is imported and loaded for a first step is not the network's
    build(dataset, name, configuration, patch)
    small = (16,) * len(patch)
    step(build(dataset, PLAIN, configuration, small)[0], images_of(configuration, small))()

    def two_steps() -> None:
        network, _ = build(dataset, name, configuration, patch)
        run = step(network, images_of(configuration, patch))
        run()
        run()

    return measuring.peak_mib(two_steps)


def row(dataset: DatasetForTests, name: str, configuration: str, rounds: int) -> str:
    network, patch = build(dataset, name, configuration)
    images = images_of(configuration, patch)
    costs = costs_of(network, tuple(images.shape))
    plain, _ = build(dataset, PLAIN, configuration, patch)
    ours, stock = (values[1:] for values in in_turns(rounds + 1, step(network, images), step(plain, images)))
    peak, reference = peak_mib(name, configuration, patch), peak_mib(PLAIN, configuration, patch)
    adds = "unknown" if costs.multiply_adds is None else count_text(costs.multiply_adds)
    cells = [
        f"`{name}`",
        "x".join(map(str, patch)),
        count_text(costs.num_parameters),
        adds,
        f"{peak:.0f} MiB",
        f"{peak / reference:.2f}",
        f"{statistics.median(ours):.3f} s",
        shown(ratios_of(ours, stock), digits=2),
        network.extra_repr().replace("\n", " "),
    ]
    return "| " + " | ".join(cells) + " |\n"


def table(dataset: DatasetForTests, names: list[str], configuration: str, rounds: int) -> str:
    dims = int(configuration[0])
    lines = (
        f"\nConfiguration `{configuration}`, batch {BATCH[configuration]}:\n\n"
        "| network | patch | parameters | multiply-adds | peak memory | ratio | seconds a step | ratio (95 %) | "
        "says of itself |\n" + "|---" * 9 + "|\n"
    )
    for name in [PLAIN, RESIDUAL, *names]:
        if name in names and dims not in (get_registry().resolve(name).config.spatial_dims or (2, 3)):
            lines += f"| `{name}` | not in {dims}D |" + " |" * 7 + "\n"
            continue
        print(f"{configuration} {name}", file=sys.stderr, flush=True)
        try:
            lines += row(dataset, name, configuration, rounds)
        except nnplug.NnplugError as error:  # the others' figures are not lost for it
            lines += f"| `{name}` | {error} |" + " |" * 7 + "\n"
    return lines


def main() -> None:
    options = measuring.parser(__doc__ or "")
    options.add_argument("part", nargs="*", help="part of a trainer's name")
    options.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    args = options.parse_args()
    torch.set_num_threads(1)
    dataset = prepared("Dataset004_Hippocampus", write_hippocampus, measuring.DATASETS)
    if args.peak:
        name, configuration, patch = args.peak
        print(measure_peak(dataset, name, configuration, tuple(map(int, patch.split("x")))))
        return
    chosen = [name for name in trainers() if not args.part or any(part in name for part in args.part)]
    made = "".join(table(dataset, chosen, configuration, ROUNDS) for configuration in BATCH)
    print(made)
    if not args.part:
        measuring.write_section("networks", made)


if __name__ == "__main__":
    main()
