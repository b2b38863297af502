"""The trainer under test on one made-up plan: nnU-Net's trainer object, its network, batches and targets.

Axis letters: B batch, C channels, classes or regions; ``*`` stands for the spatial axes.
"""

from __future__ import annotations

import inspect
import tempfile
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import nn

from nnplug.composition.resolved import ResolvedConfig
from nnplug.networks.network import PatchRefusedError, Size, set_deep_supervision
from nnplug.testing.exemptions import loaded
from nnplug.testing.made_up_data import IGNORE_LABEL, made_up_dataset, made_up_labels
from nnplug.testing.outcomes import CheckSkipped
from nnplug.testing.plan_cases import CASES, PlanCase
from nnplug.training.trainer import build_trainer_class


@dataclass(frozen=True)
class Step:
    """One forward and backward pass through every output of the network.

    Attributes:
        outputs: of the network, full resolution first.
        gradients: by name of the trainable parameter, whether its gradient is finite; None where it got none.
        unmoved: names of those whose gradient is 0.
        seconds: of both passes.
    """

    outputs: list[torch.Tensor]
    gradients: dict[str, bool | None]
    unmoved: list[str]
    seconds: float


class Subject:
    """A trainer on a plan. What is expensive is made once.

    Args:
        resolved: the trainer.
        case: the plan.

    Attributes:
        adapted_patch: the size that nnplug proposed, where the network does not take the plan's patch.
        kept: what checks have found out and others need as well.
    """

    def __init__(self, resolved: ResolvedConfig, case: PlanCase) -> None:
        self.resolved = resolved
        self.case = case
        self.adapted_patch: Size | None = None
        self._results = tempfile.TemporaryDirectory(prefix="nnplug-check-results-", ignore_cleanup_errors=True)
        self._has_failed = False
        self._steps: dict[int, Step] = {}
        self.kept: dict[str, Any] = {}

    @property
    def results(self) -> Path:
        return Path(self._results.name)

    @cached_property
    def planned(self) -> Any:
        """nnU-Net's trainer, on the patch that its network takes, before anything is built."""
        trainer = self.new_trainer()
        try:
            trainer.try_network()
        except PatchRefusedError as refusal:
            if self.resolved.config.patch_size is not None:
                raise
            self.adapted_patch = refusal.proposal
            trainer = self.new_trainer()
            trainer.try_network()
        return trainer

    @cached_property
    def trainer(self) -> Any:
        """The same, initialised on the CPU."""
        if self._has_failed:
            raise CheckSkipped(f"not run: the trainer can not be built, see builds[{self.case.name}]")
        self._has_failed = True
        self.planned.initialize()
        self._has_failed = False
        return self.planned

    def plans(self) -> dict[str, Any]:
        """The plans, with the patch that the network takes."""
        plans = deepcopy(made_up_dataset(self.case).plans)
        if self.adapted_patch is not None:
            plans["configurations"][self.case.configuration]["patch_size"] = list(self.adapted_patch)
        return {**plans, "continue_training": False}

    def new_trainer(self) -> Any:
        """A trainer that is not initialised."""
        self._write_example_inputs()
        make = build_trainer_class(self.resolved)
        dataset_json = deepcopy(made_up_dataset(self.case).dataset_json)
        return make(self.plans(), self.case.configuration, 0, dataset_json, torch.device("cpu"))

    def _write_example_inputs(self) -> None:
        """A sampler that reads files beside the data says which ones would do for this data set."""
        sampler = self.resolved.config.sampler
        write = getattr(loaded(sampler), "write_example_inputs", None)
        if sampler is not None and write is not None:
            write(made_up_dataset(self.case).preprocessed_folder, CASES, **sampler.kwargs)

    # --- network

    @property
    def network(self) -> nn.Module:
        return self.trainer.bare_network()

    @property
    def patch(self) -> Size:
        return tuple(self.planned.configuration_manager.patch_size)

    @property
    def num_classes(self) -> int:
        return int(self.planned.label_manager.num_segmentation_heads)

    def images(self, batch_size: int = 1) -> torch.Tensor:
        """Normal noise (B, C, *patch), the same every time."""
        generator = torch.Generator().manual_seed(batch_size)
        return torch.randn((batch_size, self.case.num_channels, *self.patch), generator=generator)

    def prepared_network(self, *, training: bool, deep_supervision: bool | None = None) -> nn.Module:
        """The network in a mode; deep supervision as the trainer trains it unless said."""
        is_on = self.trainer.enable_deep_supervision if deep_supervision is None else deep_supervision
        set_deep_supervision(self.network, is_on)
        return self.network.train(training)

    def step(self, batch_size: int = 1) -> Step:
        """One training step without an optimiser, done once for a batch size."""
        if batch_size not in self._steps:
            network = self.prepared_network(training=True)
            network.zero_grad(set_to_none=True)
            images = self.images(batch_size)
            started = perf_counter()
            outputs = as_list(network(images))
            probe(outputs).backward()
            seconds = perf_counter() - started
            found = {name: one.grad for name, one in network.named_parameters() if one.requires_grad}
            gradients = {name: None if g is None else bool(torch.isfinite(g).all()) for name, g in found.items()}
            unmoved = [name for name, gradient in found.items() if gradient is not None and not gradient.any()]
            self._steps[batch_size] = Step([output.detach() for output in outputs], gradients, unmoved, seconds)
            network.zero_grad(set_to_none=True)
        return self._steps[batch_size]

    # --- targets

    def labels(self, batch_size: int = 2) -> torch.Tensor:
        """Label maps (B, 1, *patch) with a ball and a box; where the data set has an ignore label, a slab has it."""
        samples = [made_up_labels(self.patch, np.random.default_rng(index)) for index in range(batch_size)]
        labels = torch.from_numpy(np.stack(samples))[:, None].short()
        if self.case.has_ignore_label:
            labels[..., int(self.patch[-1] * 0.8) :] = IGNORE_LABEL
        return labels

    def targets(self, labels: torch.Tensor) -> list[torch.Tensor]:
        """What the loaders make of label maps (B, 1, *): one target an output, full resolution first."""
        trainer = self.planned
        manager = trainer.label_manager
        transform = trainer.get_validation_transforms(
            trainer._get_deep_supervision_scales() or [[1.0] * len(self.patch)],
            foreground_labels=manager.foreground_labels,
            regions=manager.foreground_regions if manager.has_regions else None,
            ignore_label=manager.ignore_label,
        )
        samples = [transform(image=sample.float(), segmentation=sample)["segmentation"] for sample in labels]
        return [torch.stack(level) for level in zip(*samples, strict=True)]

    # --- where to look

    def where(self, field: str) -> str | None:
        """File and line of the code of a field."""
        value = getattr(self.resolved.config, field)
        value = self.resolved.config.base_trainer if value is None else value
        return None if value is None else location(loaded(value))


def as_list(outputs: Any) -> list[torch.Tensor]:
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def probe(outputs: list[torch.Tensor]) -> torch.Tensor:
    """A number that every voxel of every output has a part in, as a loss has."""
    generator = torch.Generator().manual_seed(0)
    return torch.stack(
        [(output.float() * torch.randn(output.shape, generator=generator)).mean() for output in outputs]
    ).sum()


def location(code: Any) -> str | None:
    """File and line where something is defined."""
    code = code if inspect.isfunction(code) or inspect.isclass(code) else type(code)
    try:
        return f"{inspect.getsourcefile(code)}:{inspect.getsourcelines(code)[1]}"
    except (OSError, TypeError):
        return getattr(code, "__qualname__", None)
