"""The layers of KiU-Net: convolutions that change the resolution before their norm, and the cross residual fusion.

Features are (B batch, C channels, *size); sizes are in voxels, in the plan's axis order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.helper import convert_conv_op_to_dim, get_matching_pool_op
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU, StackedConvBlocks
from torch import nn

Size = tuple[int, ...]


@dataclass(frozen=True)
class Layers:
    """What all convolutions of a network share, by the names of nnU-Net's plans."""

    conv_op: type[nn.Module]
    conv_bias: bool
    norm_op: type[nn.Module] | None
    norm_op_kwargs: dict[str, Any] | None
    dropout_op: type[nn.Module] | None
    dropout_op_kwargs: dict[str, Any] | None
    nonlin: type[nn.Module] | None
    nonlin_kwargs: dict[str, Any] | None

    @property
    def dims(self) -> int:
        return convert_conv_op_to_dim(self.conv_op)

    @property
    def linear_mode(self) -> str:
        """The name that torch has for linear interpolation in this dimension."""
        return {2: "bilinear", 3: "trilinear"}[self.dims]

    def conv(self, channels: tuple[int, int], kernel_size: Size, stride: Size | int = 1) -> nn.Module:
        """Convolution, dropout, norm, activation. ``channels``: in and out."""
        return ConvDropoutNormReLU(
            input_channels=channels[0],
            output_channels=channels[1],
            kernel_size=kernel_size,
            stride=stride,
            **asdict(self),
        )

    def stacked(self, num_convs: int, channels: int, kernel_size: Size) -> nn.Module:
        """Several of them that keep channels and size; none is nothing."""
        if num_convs == 0:
            return nn.Identity()
        return StackedConvBlocks(
            num_convs,
            input_channels=channels,
            output_channels=channels,
            kernel_size=kernel_size,
            initial_stride=1,
            **asdict(self),
        )

    def shrinking(self, channels: tuple[int, int], kernel_size: Size, stride: Size, pool: str) -> nn.Module:
        """A convolution whose output is smaller by ``stride``, rounded up. With ``pool="max"`` max-pooling does it."""
        if pool == "conv" or math.prod(stride) == 1:
            return self.conv(channels, kernel_size, stride)
        max_pool = get_matching_pool_op(self.conv_op, pool_type="max")
        return self._resizing(channels, kernel_size, max_pool(stride, stride, ceil_mode=True))

    def growing(self, channels: tuple[int, int], kernel_size: Size, factor: Size) -> nn.Module:
        """A convolution whose output is larger by ``factor``, interpolated."""
        if math.prod(factor) == 1:
            return self.conv(channels, kernel_size)
        upsample = nn.Upsample(scale_factor=tuple(map(float, factor)), mode=self.linear_mode, align_corners=False)
        return self._resizing(channels, kernel_size, upsample)

    def _resizing(self, channels: tuple[int, int], kernel_size: Size, resize: nn.Module) -> nn.Module:
        """Convolution, pooling or interpolation, norm, activation: the order of a stage in the paper."""
        block = self.conv(channels, kernel_size)
        block.all_modules.insert(1, resize)
        return block

    def match(self, input_channels: int, output_channels: int) -> nn.Module:
        """A 1x1 convolution where the numbers of channels differ, nothing where they agree."""
        return nn.Identity() if input_channels == output_channels else self.conv_op(input_channels, output_channels, 1)


def fast_if_narrow(block: nn.Module) -> nn.Module:
    """Lay out the weights of convolutions with few channels so that a CPU is faster with them.

    Measured on CPUs only, with float32: 3 channels take 0.4 of the time in this layout, 8 take 0.6 to 0.8, 16 and more
    do not gain. What it does on a GPU was not measured. The values are the same.
    """
    for module in block.modules():
        # of one input channel both layouts are the same, but the gradient's strides are not, of which DDP warns
        if not isinstance(module, nn.Conv2d | nn.Conv3d) or module.out_channels >= 16 or module.in_channels == 1:
            continue
        is_2d = isinstance(module, nn.Conv2d)
        module.to(memory_format=torch.channels_last if is_2d else torch.channels_last_3d)
    return block


class CrossResidualFusion(nn.Module):
    """CRFB: each branch adds what the other has, refined by a convolution where it is and then interpolated.

    Both directions read the features as they come in. Where the branches differ in channels, those of the Ki branch
    are widened after they have become small, so that no wide map has the Ki branch's size.

    Args:
        layers: the convolutions of this network.
        u_channels, ki_channels: of the branches.
        u_kernel_size, ki_kernel_size: of the convolutions.
    """

    def __init__(
        self, layers: Layers, u_channels: int, ki_channels: int, u_kernel_size: Size, ki_kernel_size: Size
    ) -> None:
        super().__init__()
        self.from_u = layers.conv((u_channels, ki_channels), u_kernel_size)
        self.from_ki = fast_if_narrow(layers.conv((ki_channels, ki_channels), ki_kernel_size))
        self.widen = layers.match(ki_channels, u_channels)
        self.mode = layers.linear_mode

    def forward(self, u: torch.Tensor, ki: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of both branches, (B, C, *size) each with its own C and size; returned likewise."""
        to_ki = self._resize(self.from_u(u), ki.shape[2:])
        to_u = self._resize(self.from_ki(ki), u.shape[2:])
        # in place, because maps of the Ki branch are what takes the memory
        return u + self.widen(to_u), to_ki.add_(ki)

    def _resize(self, x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        return nn.functional.interpolate(x, size, mode=self.mode, align_corners=False)


def crop(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """The first voxels of each axis: what a side that was rounded up when it was pooled has too many."""
    for axis, side in enumerate(size, start=2):
        x = x.narrow(axis, 0, side)
    return x
