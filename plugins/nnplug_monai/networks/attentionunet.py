"""Attention U-Net.

Paper: Oktay et al., Attention U-Net: Learning Where to Look for the Pancreas, 2018, https://arxiv.org/abs/1804.03999.
Code: MONAI, Apache-2.0. Unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets import AttentionUnet
from nnplug import NnplugError
from torch import nn

from nnplug_monai.patch_rule import PatchRule, product_of_strides, with_patch_rule
from nnplug_monai.plan_values import require_single_output, spatial_dims


def build_attentionunet(
    input_channels: int,
    num_classes: int,
    deep_supervision: bool = False,
    *,
    conv_op: type[nn.Module],
    features_per_stage: Sequence[int],
    strides: Sequence[Sequence[int] | int],
    kernel_size: Sequence[int] | int = 3,
    up_kernel_size: Sequence[int] | int = 3,
    dropout: float = 0.0,
) -> nn.Module:
    """MONAI's AttentionUnet with the plan's channels and strides.

    Args:
        input_channels: channels of the image.
        num_classes: channels of the logits.
        deep_supervision: must be False, there is one output.
        conv_op: the plan's convolution; tells 2D from 3D.
        features_per_stage: the plan's channels, at least two stages.
        strides: the plan's strides, full resolution first.
        kernel_size: one size for all convolutions (MONAI's class does not take one a stage).
        up_kernel_size: size of the transposed convolutions.
        dropout: dropout, 0..1.

    Returns:
        A network from (B, input_channels, *patch) to (B, num_classes, *patch). Sides must be multiples of the product
        of the strides.
    """
    require_single_output("AttentionUnet", deep_supervision)
    dims = spatial_dims(conv_op)
    divisor = product_of_strides(strides, dims)
    if product_of_strides(strides[:1], dims) != (1,) * dims:
        raise NnplugError(f"works at full resolution first; the plan's first stride is {strides[0]}, not 1.")
    if len(features_per_stage) < 2:
        raise NnplugError("needs a plan with at least two stages; this one has one.")
    network = AttentionUnet(
        spatial_dims=dims,
        in_channels=input_channels,
        out_channels=num_classes,
        channels=tuple(features_per_stage),
        strides=[s if isinstance(s, int) else tuple(s) for s in strides[1:]],
        kernel_size=kernel_size,
        up_kernel_size=up_kernel_size,
        dropout=dropout,
    )
    return with_patch_rule(network, PatchRule("AttentionUnet", divisor))
