"""From the values of an nnU-Net plan to what MONAI's constructors take."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from nnplug import NnplugError
from torch import nn

# MONAI's description of a layer: its name, or its name and its arguments; a list where it comes from JSON
Layer = str | list[Any] | tuple[Any, ...]

_NORMS = {
    nn.InstanceNorm2d: "instance",
    nn.InstanceNorm3d: "instance",
    nn.BatchNorm2d: "batch",
    nn.BatchNorm3d: "batch",
    nn.SyncBatchNorm: "syncbatch",
}


def spatial_dims(conv_op: type[nn.Module]) -> int:
    """2 or 3, by the convolution that the plan names."""
    for dims, convolution in ((2, nn.Conv2d), (3, nn.Conv3d)):
        if issubclass(conv_op, convolution):
            return dims
    raise NnplugError(f"works with the conv_op Conv2d or Conv3d; the plan has {conv_op.__name__}.")


def layer(value: Layer) -> Layer:
    """A layer description that MONAI may keep: it writes defaults into the mappings it is given."""
    return value if isinstance(value, str) else tuple(deepcopy(list(value)))


def norm_layer(norm_op: type[nn.Module], norm_op_kwargs: Mapping[str, Any] | None) -> Layer:
    """The plan's normalisation as MONAI writes it."""
    if norm_op not in _NORMS:
        raise NnplugError(
            f"can not take the plan's norm_op {norm_op.__name__}. Name MONAI's layer: network_builder.norm_name=batch"
        )
    return _NORMS[norm_op], dict(norm_op_kwargs or {})


def activation_layer(nonlin: type[nn.Module], nonlin_kwargs: Mapping[str, Any] | None) -> Layer:
    """The plan's activation as MONAI writes it; MONAI knows torch's activations by their class names."""
    return nonlin.__name__.lower(), dict(nonlin_kwargs or {})


def require_single_output(network: str, deep_supervision: bool) -> None:
    """Refuse deep supervision for a network that has one output."""
    if deep_supervision:
        raise NnplugError(f"has no deep supervision: {network} has one output. Use enable_deep_supervision=false.")
