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

import torch
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from torch import nn

from nnplug.network import PatchRefusedError, Size, set_deep_supervision
from nnplug.resolved import ResolvedConfig
from nnplug.testing.exemptions import loaded
from nnplug.testing.made_up_data import IGNORE_LABEL, made_up_dataset
from nnplug.testing.outcomes import CheckFailed
from nnplug.testing.plan_cases import PlanCase
from nnplug.trainer import build_trainer_class


@dataclass(frozen=True)
class Step:
    """One forward and backward pass through every output of the network.

    Attributes:
        outputs: of the network, full resolution first.
        gradients: by name of the trainable parameter, None where it got none.
        seconds: of both passes.
    """

    outputs: list[torch.Tensor]
    gradients: dict[str, torch.Tensor | None]
    seconds: float


class Subject:
    """A trainer on a plan. What is expensive is made once.

    Args:
        resolved: the trainer.
        case: the plan.

    Attributes:
        adapted_patch: the size that nnplug proposed, where the network does not take the plan's patch.
    """

    def __init__(self, resolved: ResolvedConfig, case: PlanCase) -> None:
        self.resolved = resolved
        self.case = case
        self.adapted_patch: Size | None = None
        self._results = tempfile.TemporaryDirectory(prefix="nnplug-check-results-", ignore_cleanup_errors=True)
        self._failure: BaseException | None = None
        self._steps: dict[int, Step] = {}

    @property
    def results(self) -> Path:
        return Path(self._results.name)

    @cached_property
    def planned(self) -> Any:
        """nnU-Net's trainer, on the patch that its network takes, before anything is built."""
        trainer = self.new_trainer()
        try:
            trainer._try_network()
        except PatchRefusedError as refusal:
            if self.resolved.config.patch_size is not None:
                raise
            self.adapted_patch = refusal.proposal
            trainer = self.new_trainer()
            trainer._try_network()
        return trainer

    @cached_property
    def trainer(self) -> Any:
        """The same, initialised on the CPU."""
        if self._failure is not None:
            raise CheckFailed("a trainer that can be built", f"builds[{self.case.name}] fails")
        try:
            assert self.planned is not None
            trainer = self.new_trainer()
            trainer.initialize()
        except Exception as error:
            self._failure = error
            raise
        return trainer

    def plans(self) -> dict[str, Any]:
        """The plans, with the patch that the network takes."""
        plans = deepcopy(made_up_dataset(self.case).plans)
        if self.adapted_patch is not None:
            plans["configurations"][self.case.configuration]["patch_size"] = list(self.adapted_patch)
        return {**plans, "continue_training": False}

    def new_trainer(self) -> Any:
        """A trainer that is not initialised."""
        make = build_trainer_class(self.resolved)
        dataset_json = deepcopy(made_up_dataset(self.case).dataset_json)
        return make(self.plans(), self.case.configuration, 0, dataset_json, torch.device("cpu"))

    # --- network

    @property
    def network(self) -> nn.Module:
        return self.trainer.bare_network()

    @property
    def patch(self) -> Size:
        return tuple(self.trainer.configuration_manager.patch_size)

    @property
    def num_classes(self) -> int:
        return int(self.trainer.label_manager.num_segmentation_heads)

    def images(self, batch_size: int = 1) -> torch.Tensor:
        """Normal noise (B, C, *patch), the same every time."""
        generator = torch.Generator().manual_seed(batch_size)
        return torch.randn((batch_size, self.trainer.num_input_channels, *self.patch), generator=generator)

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
            gradients = {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
            self._steps[batch_size] = Step([output.detach() for output in outputs], gradients, seconds)
            network.zero_grad(set_to_none=True)
        return self._steps[batch_size]

    # --- targets

    def labels(self, batch_size: int = 2) -> torch.Tensor:
        """Label map (B, 1, *patch) of float label values with a ball and a box; half is ignored where that is possible.

        Only the second half of the first axis is ignored, so that objects lie on both sides.
        """
        from nnplug.testing.made_up_data import made_up_labels

        samples = [torch.from_numpy(made_up_labels(self.patch, _generator(index))) for index in range(batch_size)]
        return torch.stack(samples)[:, None].float()

    def target(self, labels: torch.Tensor) -> torch.Tensor:
        """What the loaders make of a label map (B, 1, *): the same, or one channel a region and the ignored voxels."""
        manager = self.trainer.label_manager
        if not manager.has_regions:
            return labels
        channels = [torch.isin(labels, torch.tensor(region).float()) for region in manager.foreground_regions]
        if manager.has_ignore_label:
            channels.append(labels == IGNORE_LABEL)
        return torch.cat(channels, 1).float()

    def scaled(self, target: torch.Tensor) -> list[torch.Tensor]:
        """A target at the resolutions of the outputs, by the transform with which nnU-Net makes them."""
        scales = self.trainer._get_deep_supervision_scales()
        if scales is None:
            return [target]
        transform = DownsampleSegForDSTransform(scales)
        samples = [transform(segmentation=sample)["segmentation"] for sample in target]
        return [torch.stack(level) for level in zip(*samples, strict=True)]

    # --- where to look

    def where(self, field: str) -> str | None:
        """File and line of the code of a field."""
        value = getattr(self.resolved.config, field)
        value = self.resolved.config.base_trainer if value is None else value
        return None if value is None else location(loaded(value))


def _generator(seed: int) -> Any:
    import numpy as np

    return np.random.default_rng(seed)


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
