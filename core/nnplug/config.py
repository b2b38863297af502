"""`TrainerConfig`: what a trainer changes of nnU-Net."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nnplug.composition.checks import did_you_mean
from nnplug.composition.component import Component
from nnplug.composition.fields import FIELDS, check_fields
from nnplug.errors import NnplugError

__all__ = ["Component", "TrainerConfig"]


# Given as a callable, a reference or a Component; held as a Component, or for loss_fn as the finished object.
Code = Any


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """What a trainer changes of nnU-Net. A field that is None leaves what nnU-Net does.

    A config can be whole (a paper's recipe) or a part (only a loss, only a number of epochs); parts compose on the
    command line with ``+``. Code fields take a callable, ``"package.module:attribute"`` or a `Component`.

    Args:
        name: letters, digits, ``.``, ``-`` and single ``_``; begins with a letter. The name of the results folder.
        description: one line for ``nnplug trainers``.
        source: where it comes from: paper, link, code, licence.
        extends: what this config starts from, spelled as after ``-tr``.
        unset: inherited fields to drop.
        base_trainer: subclass of ``nnUNetTrainer`` to build on.
        network_builder: ``(input_channels, num_classes, deep_supervision, **arch_kwargs)``, a module with raw logits.
        enable_deep_supervision: losses on several resolutions.
        spatial_dims: the dimensions it works in, out of (2, 3).
        loss_fn: class, factory or finished loss, ``loss(logits, target)``.
        sampler: called as ``nnUNetDataLoader`` is, for the training loader.
        training_transforms: called as ``nnUNetTrainer.get_training_transforms``.
        mirror_axes: axes to mirror in training and prediction; ``()`` is none.
        optimizer: ``(params, lr, weight_decay, **kwargs)``.
        lr_scheduler: ``(optimizer, initial_lr, num_epochs, **kwargs)`` with ``step(epoch)``.
        initial_lr: > 0.
        weight_decay: >= 0.
        num_epochs, num_iterations_per_epoch, num_val_iterations_per_epoch, batch_size, save_every: >= 1.
        patch_size: 2 or 3 sides in voxels, in the plan's axis order.
        oversample_foreground_percent: 0 to 1, the share of patches that hold foreground.
        probabilistic_oversampling: draw that share at random and not by position in the batch.
        compile: torch.compile the network.
        amp: mixed precision.
        seed: of initialisation and loader workers, 0 to 2**32 - 1. No bitwise promise.
        plans: deep-merged into the plan's configuration.

    Raises:
        NnplugError: with the path to the value that is wrong.
    """

    name: str
    description: str | None = None
    source: str | None = None
    extends: str | None = None
    unset: tuple[str, ...] = ()
    base_trainer: Code | None = None
    network_builder: Code | None = None
    enable_deep_supervision: bool | None = None
    spatial_dims: tuple[int, ...] | None = None
    loss_fn: Code | None = None
    sampler: Code | None = None
    training_transforms: Code | None = None
    mirror_axes: tuple[int, ...] | None = None
    optimizer: Code | None = None
    lr_scheduler: Code | None = None
    initial_lr: float | None = None
    weight_decay: float | None = None
    num_epochs: int | None = None
    num_iterations_per_epoch: int | None = None
    num_val_iterations_per_epoch: int | None = None
    batch_size: int | None = None
    patch_size: tuple[int, ...] | None = None
    oversample_foreground_percent: float | None = None
    probabilistic_oversampling: bool | None = None
    save_every: int | None = None
    compile: bool | None = None
    amp: bool | None = None
    seed: int | None = None
    plans: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, value in check_fields(self.set_fields(), f"trainer {self.name!r}").items():
            object.__setattr__(self, name, value)

    def set_fields(self) -> dict[str, Any]:
        """The fields that are set: name to value."""
        fields = {name: getattr(self, name) for name in FIELDS}
        return {name: value for name, value in fields.items() if value is not None and (name != "unset" or value)}

    def copy(self, **overrides: Any) -> TrainerConfig:
        """A config with other values for some fields. None takes a field back to what nnU-Net does.

        Raises:
            NnplugError: no such field, or a value it does not take.
        """
        for name in overrides:
            if name not in FIELDS:
                raise NnplugError(f"trainer {self.name!r}: {name}: no such field{did_you_mean(name, FIELDS)}.")
        return dataclasses.replace(self, **overrides)
