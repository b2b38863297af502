"""The blocks of UIU-Net: residual U-block (RSU) and interactive-cross attention (IC-A).

RSU: Qin et al., "U2-Net: Going Deeper with Nested U-Structure for Salient Object Detection", 2020, arXiv:2005.09007,
section 3.1. IC-A: Wu et al., UIU-Net, 2023, arXiv:2212.00968, section III-C.

Axis letters: B batch, C channels; the spatial axes are two or three, sizes in voxels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.helper import convert_conv_op_to_dim, get_matching_pool_op
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU
from torch import nn
from torch.nn import functional

Size = tuple[int, ...]


@dataclass(frozen=True)
class Grid:
    """One resolution of the network.

    Attributes:
        stride: per axis, from the next finer resolution to this one.
        kernel_size: per axis, odd.
        size: of the feature map in voxels; None where it is not known.
    """

    stride: Size
    kernel_size: Size
    size: Size | None = None


@dataclass(frozen=True)
class Layers:
    """The plan's kind of convolution, normalisation and activation."""

    conv_op: type[nn.Module]
    conv_bias: bool
    norm_op: type[nn.Module] | None
    norm_op_kwargs: dict[str, Any] | None
    dropout_op: type[nn.Module] | None
    dropout_op_kwargs: dict[str, Any] | None
    nonlin: type[nn.Module] | None
    nonlin_kwargs: dict[str, Any] | None

    def conv(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        size: Size | None,
        dilation: int = 1,
        activate: bool = True,
    ) -> ConvDropoutNormReLU:
        """Convolution, normalisation and activation that keep the size of the feature map.

        Args:
            in_channels, out_channels: of the feature map.
            kernel_size: per axis, odd.
            size: of the feature map. A map of one voxel is normalised over its channels: the plan's norm would take
                the statistics of a single value, or with batch norm of one value a sample.
            dilation: of the kernel; on axes of less than twice that many voxels as much less.
            activate: whether the activation follows.
        """
        norm_op: Callable[..., nn.Module] | None = self.norm_op
        norm_op_kwargs = self.norm_op_kwargs
        if norm_op is not None and size is not None and math.prod(size) == 1:
            norm_op, norm_op_kwargs = partial(nn.GroupNorm, 1), None
        block = ConvDropoutNormReLU(
            self.conv_op,
            in_channels,
            out_channels,
            kernel_size,
            1,
            self.conv_bias,
            norm_op,
            norm_op_kwargs,
            self.dropout_op,
            self.dropout_op_kwargs,
            self.nonlin if activate else None,
            self.nonlin_kwargs,
        )
        if dilation > 1:  # the library's block has none
            sides = size or [2 * dilation] * len(kernel_size)
            block.conv.dilation = tuple(min(dilation, max(1, side // 2)) for side in sides)
            block.conv.padding = tuple(d * (k // 2) for d, k in zip(block.conv.dilation, kernel_size, strict=True))
        return block


def max_pool(conv_op: type[nn.Module], stride: Size) -> nn.Module:
    """Max-pooling to the size that a strided convolution gives: odd sides are rounded up."""
    return get_matching_pool_op(conv_op, pool_type="max")(stride, stride, ceil_mode=True)


def resize(x_BC: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Linear interpolation."""
    if x_BC.shape[2:] == torch.Size(size):
        return x_BC
    return functional.interpolate(x_BC, size=tuple(size), mode="bilinear" if len(size) == 2 else "trilinear")


class ResidualUBlock(nn.Module):
    """RSU: a convolution, and a U-Net on its result that is added to it.

    With n >= 2 grids below its own it is the paper's RSU-(n+2): it pools n times, and its bottom convolution has
    dilation 2. With fewer it is RSU-4F: nothing is pooled, dilations 1, 2, 4, 8 and back.

    Args:
        layers: the plan's.
        in_channels, inner_channels, out_channels: of the input, inside the U-Net, and of the output.
        grids: of the block itself, then of the pooled maps inside it.
    """

    def __init__(
        self, layers: Layers, in_channels: int, inner_channels: int, out_channels: int, grids: Sequence[Grid]
    ) -> None:
        super().__init__()
        is_pooled = len(grids) > 2
        own, *pooled = grids if is_pooled else [grids[0]] * 3
        levels = list(zip([own, *pooled], (1,) * len(grids) if is_pooled else (1, 2, 4), strict=True))

        def conv(in_channels: int, out_channels: int, grid: Grid, dilation: int = 1) -> ConvDropoutNormReLU:
            return layers.conv(in_channels, out_channels, grid.kernel_size, grid.size, dilation)

        self.project = conv(in_channels, out_channels, own)
        self.pools = nn.ModuleList(max_pool(layers.conv_op, g.stride) if is_pooled else nn.Identity() for g in pooled)
        down = [out_channels] + [inner_channels] * len(pooled)
        self.encoder = nn.ModuleList(conv(c, inner_channels, *level) for c, level in zip(down, levels, strict=True))
        self.bottom = conv(inner_channels, inner_channels, levels[-1][0], 2 if is_pooled else 8)
        up = [inner_channels] * len(pooled) + [out_channels]
        self.decoder = nn.ModuleList(
            conv(2 * inner_channels, c, *level) for c, level in zip(up, reversed(levels), strict=True)
        )

    def forward(self, x_BC: torch.Tensor) -> torch.Tensor:
        projected_BC = self.project(x_BC)
        x_BC = self.encoder[0](projected_BC)
        skips = [x_BC]
        for pool, conv in zip(self.pools, self.encoder[1:], strict=True):
            x_BC = conv(pool(x_BC))
            skips.append(x_BC)
        x_BC = self.bottom(x_BC)
        for conv in self.decoder:
            skip_BC = skips.pop()
            x_BC = conv(torch.cat([resize(x_BC, skip_BC.shape[2:]), skip_BC], 1))
        return x_BC + projected_BC


class InteractiveCrossAttention(nn.Module):
    """IC-A: the deeper feature says which channels of the skip count, the skip says which places of the deeper one.

    Args:
        layers: the plan's.
        high_channels: of the deeper decoder feature.
        low_channels: of the encoder's skip.
        grid: of the skip.
    """

    def __init__(self, layers: Layers, high_channels: int, low_channels: int, grid: Grid) -> None:
        super().__init__()
        dims = convert_conv_op_to_dim(layers.conv_op)
        point, channels = (1,) * dims, low_channels
        squeezed = max(2, channels // 4)  # one value could not be normalised
        self.align = layers.conv(high_channels, channels, point, grid.size)
        self.channel_weights = nn.Sequential(
            layers.conv(channels, squeezed, point, size=point),
            layers.conv(squeezed, channels, point, size=point, activate=False),
            nn.Sigmoid(),
        )
        self.squeeze = layers.conv(channels, squeezed, point, grid.size)
        padding = tuple(k // 2 for k in grid.kernel_size)
        self.spatial_weights = nn.Sequential(
            layers.conv_op(2, 1, grid.kernel_size, padding=padding, bias=False), nn.Sigmoid()
        )
        self.post = layers.conv(channels, channels, grid.kernel_size, grid.size)

    def forward(self, high_BC: torch.Tensor, low_BC: torch.Tensor) -> torch.Tensor:
        """Both at the size of the skip; returns (B, 2 * low_channels, *size)."""
        high_BC = self.align(high_BC)
        spatial = tuple(range(2, high_BC.ndim))
        channel_weights_BC = self.channel_weights(high_BC.mean(spatial, keepdim=True))
        weighted_BC = low_BC * channel_weights_BC
        squeezed_BC = self.squeeze(weighted_BC)
        pooled_B2 = torch.cat([squeezed_BC.mean(1, keepdim=True), squeezed_BC.amax(1, keepdim=True)], 1)
        spatial_weights_B1 = self.spatial_weights(pooled_B2)
        return torch.cat([self.post(high_BC * (2 * spatial_weights_B1)), self.post(2 * weighted_BC)], 1)
