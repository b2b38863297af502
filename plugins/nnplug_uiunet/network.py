"""UIU-Net in the shape of an nnU-Net plan, 2D and 3D.

Wu, Hong, Chanussot: "UIU-Net: U-Net in U-Net for Infrared Small Object Detection", IEEE TIP 2023, arXiv:2212.00968.

Axis letters: B batch, C channels, K classes; the spatial axes are two or three, sizes in voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from numbers import Integral
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.helper import maybe_convert_scalar_to_list
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from nnplug import NnplugError
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from nnplug_uiunet.blocks import Grid, InteractiveCrossAttention, Layers, ResidualUBlock, Size, max_pool, resize

#: Voxels that an axis keeps when it is pooled inside a block; nnU-Net's planner keeps as many at the bottleneck.
MIN_POOLED_SIDE = 4


class UIUNet(nn.Module):
    """A U-Net whose stages are U-Nets (RSU), with cross attention (IC-A) where the decoder meets the skips.

    Args:
        input_channels: C of the input.
        num_classes: K, channels of the output.
        n_stages: resolutions of the network, 2 or more.
        features_per_stage: channels of the encoder's stages. A decoder stage has those of the stage above it.
        conv_op: ``nn.Conv2d`` or ``nn.Conv3d``.
        kernel_sizes: per stage, odd.
        strides: per stage; the first is 1.
        conv_bias, norm_op, norm_op_kwargs, dropout_op, dropout_op_kwargs, nonlin, nonlin_kwargs: as in the plan.
        deep_supervision: return a list, one output for every stage but the last; ``decoder.deep_supervision`` switches
            it at any time.
        patch_size: of the training. It limits how often the blocks pool and how far they dilate, so it is part of the
            network. None: no limit.
        width: multiplies ``features_per_stage``.
        encoder_inner_features, decoder_inner_features: channels inside the blocks, full resolution first; None is half
            of the block's output.

    Returns (forward):
        Logits (B, K, *patch) fused from the side outputs of all stages. With deep supervision a list: that, then the
        side outputs of the decoder's stages 2, 3, ..., each at its own resolution.

    Raises:
        NnplugError: a plan with one stage, a first stride, even kernels; settings of the wrong length or size.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        n_stages: int,
        features_per_stage: int | Sequence[int],
        conv_op: type[nn.Module],
        kernel_sizes: int | Sequence[int | Sequence[int]],
        strides: int | Sequence[int | Sequence[int]],
        deep_supervision: bool = False,
        conv_bias: bool = True,
        norm_op: type[nn.Module] | None = None,
        norm_op_kwargs: dict[str, Any] | None = None,
        dropout_op: type[nn.Module] | None = None,
        dropout_op_kwargs: dict[str, Any] | None = None,
        nonlin: type[nn.Module] | None = nn.ReLU,
        nonlin_kwargs: dict[str, Any] | None = None,
        patch_size: Sequence[int] | None = None,
        width: float = 1.0,
        encoder_inner_features: Sequence[int] | None = None,
        decoder_inner_features: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        layers = Layers(
            conv_op, conv_bias, norm_op, norm_op_kwargs, dropout_op, dropout_op_kwargs, nonlin, nonlin_kwargs
        )
        if n_stages < 2:
            raise NnplugError(f"needs a plan with two stages or more; this one has {n_stages}.")
        if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width < math.inf:
            raise NnplugError(f"needs a width above 0, not {width!r}.")
        grids = _grids(conv_op, n_stages, kernel_sizes, strides, patch_size)
        counts = _per_stage("features_per_stage", features_per_stage, n_stages)
        features = [max(1, round(width * count)) for count in counts]
        decoded = [features[max(stage - 1, 0)] for stage in range(n_stages - 1)]
        inner = _inner_features("encoder_inner_features", encoder_inner_features, features)
        self.encoder = UIUNetEncoder(layers, input_channels, features, inner, grids)
        inner = _inner_features("decoder_inner_features", decoder_inner_features, decoded)
        self.decoder = UIUNetDecoder(layers, features, decoded, inner, grids, num_classes, deep_supervision)
        self.input_channels = input_channels

    def forward(self, x_BC: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        return self.decoder(self.encoder(x_BC), x_BC.shape[2:])

    def extra_repr(self) -> str:
        poolings = [sum(not isinstance(p, nn.Identity) for p in block.pools) for block in self.encoder.stages]
        return f"poolings inside the blocks by stage: {', '.join(map(str, poolings))}"

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Values that the convolutions and interpolations put out for one sample; nnU-Net's measure of memory.

        Args:
            input_size: of the patch in voxels, without batch and channels.
        """
        patch = torch.empty(1, self.input_channels, *input_size, device="meta")
        with torch.no_grad(), _OutputCounter() as counter:
            deepcopy(self).to("meta")(patch)
        return counter.count

    @staticmethod
    def initialize(module: nn.Module) -> None:
        InitWeights_He(1e-2)(module)


class UIUNetEncoder(nn.Module):
    """RSU blocks with max-pooling between them; returns the feature map of every stage, full resolution first."""

    def __init__(
        self, layers: Layers, input_channels: int, features: Sequence[int], inner: Sequence[int], grids: Sequence[Grid]
    ) -> None:
        super().__init__()
        self.pools = nn.ModuleList(max_pool(layers.conv_op, grid.stride) for grid in grids[1:])
        self.stages = nn.ModuleList(
            ResidualUBlock(layers, in_channels, inner[stage], features[stage], _block_grids(grids, stage))
            for stage, in_channels in enumerate([input_channels, *features[:-1]])
        )

    def forward(self, x_BC: torch.Tensor) -> list[torch.Tensor]:
        maps = [self.stages[0](x_BC)]
        for pool, stage in zip(self.pools, self.stages[1:], strict=True):
            maps.append(stage(pool(maps[-1])))
        return maps


class UIUNetDecoder(nn.Module):
    """IC-A and RSU blocks, a side head for every decoder stage and for the bottleneck, and their fusion.

    All lists have full resolution first. ``side_heads`` has one entry more than ``stages``, the bottleneck's.
    """

    def __init__(
        self,
        layers: Layers,
        features: Sequence[int],
        decoded: Sequence[int],
        inner: Sequence[int],
        grids: Sequence[Grid],
        num_classes: int,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.num_classes = num_classes
        high = [*decoded[1:], features[-1]]
        self.attentions = nn.ModuleList(
            InteractiveCrossAttention(layers, high[stage], features[stage], grids[stage])
            for stage in range(1, len(decoded))
        )
        inputs = [high[0] + features[0], *(2 * count for count in features[1:-1])]
        self.stages = nn.ModuleList(
            ResidualUBlock(layers, inputs[stage], inner[stage], count, _block_grids(grids, stage))
            for stage, count in enumerate(decoded)
        )
        self.side_heads = nn.ModuleList(
            layers.conv_op(count, num_classes, grid.kernel_size, padding=tuple(k // 2 for k in grid.kernel_size))
            for count, grid in zip([*decoded, features[-1]], grids, strict=True)
        )
        self.fuse = layers.conv_op(len(grids) * num_classes, num_classes, 1)

    def forward(self, maps: list[torch.Tensor], patch: Sequence[int]) -> torch.Tensor | list[torch.Tensor]:
        """``maps`` as the encoder returns them; ``patch``: size of the input."""
        x_BC = maps[-1]
        sides = [self.side_heads[-1](x_BC)]
        for stage in reversed(range(len(self.stages))):
            low_BC = maps[stage]
            high_BC = resize(x_BC, low_BC.shape[2:])
            joined_BC = self.attentions[stage - 1](high_BC, low_BC) if stage else torch.cat([high_BC, low_BC], 1)
            x_BC = self.stages[stage](joined_BC)
            sides.insert(0, self.side_heads[stage](x_BC))
        fused_BK = self._fused(sides, patch)
        return [fused_BK, *sides[1:-1]] if self.deep_supervision else fused_BK

    def _fused(self, sides: list[torch.Tensor], patch: Sequence[int]) -> torch.Tensor:
        """The 1x1 convolution of the sides' interpolations, stacked as channels.

        It commutes with the interpolation, so it is done on each side at its own size and their sum is the same,
        without a stack of all sides at full resolution.
        """
        convolve = functional.conv3d if len(patch) == 3 else functional.conv2d
        weights = self.fuse.weight.split(self.num_classes, 1)
        fused_BK = convolve(sides[0], weights[0], self.fuse.bias)
        for side_BK, weight in zip(sides[1:], weights[1:], strict=True):
            fused_BK = fused_BK + resize(convolve(side_BK, weight), patch)
        return fused_BK


# --- from the plan ---------------------------------------------------------------------------------------------------


def _grids(
    conv_op: type[nn.Module],
    n_stages: int,
    kernel_sizes: int | Sequence[int | Sequence[int]],
    strides: int | Sequence[int | Sequence[int]],
    patch_size: Sequence[int] | None,
) -> list[Grid]:
    """The resolutions of the plan's stages."""

    def by_axis(name: str, values: int | Sequence[int | Sequence[int]]) -> list[Size]:
        return [tuple(maybe_convert_scalar_to_list(conv_op, v)) for v in _per_stage(name, values, n_stages)]

    kernels, steps = by_axis("kernel_sizes", kernel_sizes), by_axis("strides", strides)
    if any(side != 1 for side in steps[0]):
        raise NnplugError(f"needs a plan whose first stride is 1, not {steps[0]}: its output has the patch's size.")
    if any(side % 2 == 0 for kernel in kernels for side in kernel):
        raise NnplugError(f"needs odd kernel sizes; the plan has {kernels}.")
    sizes: list[Size | None] = [None if patch_size is None else tuple(patch_size)]
    for step in steps[1:]:
        size = sizes[-1]
        sizes.append(size and tuple(-(-side // s) for side, s in zip(size, step, strict=True)))
    return [Grid(*values) for values in zip(steps, kernels, sizes, strict=True)]


def _per_stage(name: str, values: Any, n_stages: int) -> list[Any]:
    """One value a stage; a single one stands for all."""
    values = list(values) if isinstance(values, Sequence) else [values] * n_stages
    if not all(_is_count(count) for value in values for count in (value if isinstance(value, Sequence) else [value])):
        raise NnplugError(f"needs {name} of whole numbers from 1 on; the plan has {values}.")
    if len(values) != n_stages:
        raise NnplugError(f"needs one of {name} for each of the plan's {n_stages} stages, not {len(values)}.")
    return values


def _block_grids(grids: Sequence[Grid], stage: int) -> list[Grid]:
    """The grid of a stage and those below it that its block may pool to."""
    usable = [grids[stage]]
    for grid in grids[stage + 1 :]:
        if grid.size and any(s > 1 and side < MIN_POOLED_SIDE for s, side in zip(grid.stride, grid.size, strict=True)):
            break
        usable.append(grid)
    return usable


def _inner_features(name: str, given: Sequence[int] | None, outputs: Sequence[int]) -> list[int]:
    if given is None:
        return [max(1, count // 2) for count in outputs]
    values = list(given) if isinstance(given, Sequence) else [given]
    if len(values) != len(outputs) or not all(map(_is_count, values)):
        raise NnplugError(f"needs {len(outputs)} whole numbers from 1 on as {name} for this plan, not {values}.")
    return values


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= 1


class _OutputCounter(TorchDispatchMode):
    """Counts the values that convolutions and interpolations return."""

    _counted = (
        torch.ops.aten.convolution.default,
        torch.ops.aten.upsample_bilinear2d.default,
        torch.ops.aten.upsample_trilinear3d.default,
    )

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        output = func(*args, **(kwargs or {}))
        if func in self._counted:
            self.count += output.numel()
        return output
