"""The loss of a config: built with what the data set needs, given the target it asks for.

Axis letters: B batch, C classes or regions; ``*`` stands for the spatial axes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import nn

from nnplug.composition.component import Component
from nnplug.composition.references import describe, load
from nnplug.composition.settings import explain
from nnplug.errors import NnplugError
from nnplug.loss_contract import LossContext, LossTraits, traits_of
from nnplug.networks.network import call_accepted


def build_loss(loss_fn: Component | Callable[..., Any], context: LossContext, weights: list[float] | None) -> nn.Module:
    """Make the loss that the trainer calls as ``loss(output, target)``.

    Args:
        loss_fn: the config's field: a class or factory with its arguments, or a finished loss.
        context: the data set and the run.
        weights: one weight an output with deep supervision, None without.

    Returns:
        A module that takes nnU-Net's outputs and targets (lists of them with deep supervision).

    Raises:
        NnplugError: the loss can not be made, or does not support what the data set needs.
    """
    loss, traits = make_loss(loss_fn, context)
    name = _describe(loss_fn)
    if context.ignore_label is not None and not traits.supports_ignore_label:
        raise NnplugError(
            f"loss_fn {name} does not support an ignore label, and the data set has one ({context.ignore_label}). "
            "Choose a loss that declares supports_ignore_label."
        )
    if context.has_regions and not traits.supports_regions:
        raise NnplugError(
            f"loss_fn {name} does not support region-based training, and the data set has regions. "
            "Choose a loss that declares supports_regions."
        )
    adapted = TargetAdapter(loss, traits, context)
    if traits.handles_deep_supervision or weights is None:
        return adapted
    return DeepSupervisionWrapper(adapted, weights)


def target_transform_of(loss: Any) -> Callable[[], Any] | None:
    """The trait of that name of a loss made by :func:`build_loss`; None for any other."""
    adapter = loss.loss if isinstance(loss, DeepSupervisionWrapper) else loss
    return adapter.target_transform if isinstance(adapter, TargetAdapter) else None


def add_target_transform(transforms: Any, added: Any, *, deep_supervision: bool) -> Any | None:
    """Put a transform behind all that change a segmentation and before the one that scales it for deep supervision.

    Args:
        transforms: the training transforms of nnU-Net or a config.
        added: appends channels to the segmentation, which are then scaled with it.
        deep_supervision: the transforms make a list of targets.

    Returns:
        The transforms together; None where it is not known which of them makes the list.
    """
    steps = transforms.transforms if isinstance(transforms, ComposeTransforms) else [transforms]
    scaling = [number for number, step in enumerate(steps) if isinstance(step, DownsampleSegForDSTransform)]
    if deep_supervision and not scaling:
        return None
    place = scaling[0] if scaling else len(steps)
    return ComposeTransforms([*steps[:place], added, *steps[place:]])


def _describe(loss_fn: Component | Callable[..., Any]) -> str:
    return describe(loss_fn.target if isinstance(loss_fn, Component) else loss_fn)


def make_loss(loss_fn: Component | Callable[..., Any], context: LossContext) -> tuple[Callable[..., Any], LossTraits]:
    """Make the author's own loss, without what nnplug adds, and read what it declares.

    Raises:
        NnplugError: it can not be made.
    """
    if not isinstance(loss_fn, Component):
        return loss_fn, traits_of(loss_fn)
    target = load(loss_fn.target, trusted=True) if isinstance(loss_fn.target, str) else loss_fn.target
    if isinstance(target, nn.Module):
        return target, traits_of(target)
    try:
        if _is_loss_function(target, loss_fn.kwargs):
            loss = partial(target, **loss_fn.kwargs) if loss_fn.kwargs else target
        else:
            # a module without an __init__ of its own only seems to take everything
            takes_nothing = getattr(target, "__init__", None) is nn.Module.__init__
            offered = {} if takes_nothing else {"context": context}
            loss = call_accepted(target, offered=offered, **loss_fn.kwargs)
    except TypeError as error:
        raise explain("loss_fn", loss_fn, error) from error
    if not callable(loss):
        raise NnplugError(f"loss_fn {_describe(loss_fn)} returned {type(loss).__name__}; expected a callable loss.")
    return loss, traits_of(loss, target)


def _is_loss_function(target: Callable[..., Any], settings: Mapping[str, Any]) -> bool:
    """A plain function of (output, target) is the loss itself; one that asks for a context is a factory."""
    if not inspect.isfunction(target):
        return False
    parameters = inspect.signature(target).parameters
    required = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in settings
    ]
    return "context" not in parameters and len(required) == 2


def supervision_weights(num_outputs: int, *, last: float = 0.0) -> list[float]:
    """nnU-Net's weights of the outputs: 1, 1/2, 1/4, ..., the lowest resolution ``last``; they sum to 1.

    ``last`` is not 0 where every output must have a gradient (DDP without torch.compile).
    """
    weights = [2.0**-i for i in range(num_outputs)]
    if num_outputs > 1:
        weights[-1] = last
    total = sum(weights)
    return [w / total for w in weights]


class TargetAdapter(nn.Module):
    """Gives a loss the target format that it declares.

    nnU-Net's targets are (B, 1, *) label values, or (B, C, *) with one channel a region (ignore channel last). What the
    loss's ``target_transform`` has appended comes after that, and is handed on as it is.
    """

    def __init__(self, loss: Callable[..., Any], traits: LossTraits, context: LossContext) -> None:
        super().__init__()
        self.loss = loss
        self.context = context
        self.as_one_hot = traits.target_format == "one_hot"
        self.target_transform = traits.target_transform
        self.num_channels = 1
        if context.has_regions:
            self.num_channels = context.num_classes + (context.ignore_label is not None)

    def forward(self, output: Any, target: Any) -> torch.Tensor:
        if self.target_transform is None:
            return self.loss(output, _each(self._convert, target))
        is_extended = (target[0] if isinstance(target, list | tuple) else target).shape[1] > self.num_channels
        extra = _each(lambda t: t[:, self.num_channels :], target) if is_extended else None
        return self.loss(output, _each(lambda t: self._convert(t[:, : self.num_channels]), target), extra)

    def _convert(self, target: torch.Tensor) -> torch.Tensor:
        if self.context.has_regions:
            return target.float()
        if not self.as_one_hot:
            return target
        labels = target.long()
        shape = (labels.shape[0], self.context.num_classes, *labels.shape[2:])
        one_hot = torch.zeros(shape, dtype=torch.float32, device=labels.device)
        if self.context.ignore_label is None:
            return one_hot.scatter_(1, labels, 1)
        ignored = labels == self.context.ignore_label
        one_hot.scatter_(1, labels.masked_fill(ignored, 0), 1)
        return torch.cat([one_hot.masked_fill(ignored, 0), ignored.float()], dim=1)


def _each(function: Callable[[torch.Tensor], torch.Tensor], target: Any) -> Any:
    """Apply to a target, or with deep supervision to each of the list."""
    return [function(t) for t in target] if isinstance(target, list | tuple) else function(target)
