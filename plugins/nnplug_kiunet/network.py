"""KiU-Net in the shape of an nnU-Net plan, 2D and 3D.

Valanarasu et al., MICCAI 2020, arXiv:2006.04878, and arXiv:2010.01663.

Features are (B batch, C channels, *size); sizes are in voxels, in the plan's axis order. Levels are the resolutions of
the U branch: level 0 is the patch's, level n is that of the plan's stage n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.helper import maybe_convert_scalar_to_list
from dynamic_network_architectures.initialization.weight_init import InitWeights_He
from nnplug import NnplugError
from torch import nn

from nnplug_kiunet.blocks import CrossResidualFusion, Layers, Size, crop, fast_if_narrow
from nnplug_kiunet.ki_branch import KiBranch, is_count, plan_ki_branch

Features = list[torch.Tensor]


class KiUNet(nn.Module):
    """Two branches, one that shrinks (U) and one that grows (Ki), which exchange features at every level.

    Args:
        input_channels: of the image.
        num_classes: channels of the logits.
        n_stages: levels of the U branch, 2 or more.
        features_per_stage: channels of the U branch by level.
        conv_op: ``nn.Conv2d`` or ``nn.Conv3d``.
        kernel_sizes: by level, odd. The Ki branch has that of the first.
        strides: by level; the first is 1.
        n_conv_per_stage: convolutions of the U branch's encoder by level; the first number is not used. The first
            convolution of a stage changes the resolution.
        n_conv_per_stage_decoder: likewise in the decoder, the coarsest level first as in nnU-Net.
        deep_supervision: return a list of outputs; ``decoder.deep_supervision`` switches it at any time.
        conv_bias, norm_op, norm_op_kwargs, dropout_op, dropout_op_kwargs, nonlin, nonlin_kwargs: as in the plan.
        pool: ``max`` for max-pooling, ``conv`` for strided convolutions.
        num_ki_stages: stages of the Ki branch in the encoder, as many in the decoder; levels below are the U branch's.
        max_ki_growth: how much finer than the patch the Ki branch may become on an axis, 2 or more.
        max_ki_memory: size of the Ki branch's largest feature map, in channels of the patch's size. The branch has as
            many channels as that leaves it, at most ``features_per_stage[0]``.
        ki_features: channels of the Ki branch instead, by level or one number, still within ``max_ki_memory``.
        num_outputs: outputs with deep supervision; None for one at every level but the coarsest, as in nnU-Net.

    Returns (forward):
        Logits (B, num_classes, *patch). With deep supervision a list: that, then those of levels 1, 2, ... at their own
        resolutions. Odd sides are rounded up.

    Raises:
        NnplugError: plans and settings that it can not take.
        ValueError: in forward, a patch of which one voxel would be left at the coarsest level.
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
        n_conv_per_stage: int | Sequence[int] = 2,
        n_conv_per_stage_decoder: int | Sequence[int] = 2,
        deep_supervision: bool = False,
        conv_bias: bool = True,
        norm_op: type[nn.Module] | None = None,
        norm_op_kwargs: dict[str, Any] | None = None,
        dropout_op: type[nn.Module] | None = None,
        dropout_op_kwargs: dict[str, Any] | None = None,
        nonlin: type[nn.Module] | None = nn.ReLU,
        nonlin_kwargs: dict[str, Any] | None = None,
        pool: str = "max",
        num_ki_stages: int = 3,
        max_ki_growth: int = 2,
        max_ki_memory: float = 32,
        ki_features: int | Sequence[int] | None = None,
        num_outputs: int | None = None,
    ) -> None:
        super().__init__()
        _check_settings(n_stages, pool, num_ki_stages, max_ki_growth, num_outputs)
        layers = Layers(
            conv_op, conv_bias, norm_op, norm_op_kwargs, dropout_op, dropout_op_kwargs, nonlin, nonlin_kwargs
        )
        features = _per_level("features_per_stage", features_per_stage, n_stages)
        kernels = [_by_axis(conv_op, k) for k in _per_level("kernel_sizes", kernel_sizes, n_stages)]
        steps = [_by_axis(conv_op, s) for s in _per_level("strides", strides, n_stages)]
        _check_plan(kernels, steps)
        branch = plan_ki_branch(
            steps,
            features[0],
            num_ki_stages=num_ki_stages,
            max_ki_growth=max_ki_growth,
            max_ki_memory=max_ki_memory,
            ki_features=ki_features,
        )
        down = _per_level("n_conv_per_stage", n_conv_per_stage, n_stages)
        up = _per_level("n_conv_per_stage_decoder", n_conv_per_stage_decoder, n_stages - 1)[::-1]
        shape = Shape(layers, features, kernels, steps, branch, pool)
        self.encoder = KiUNetEncoder(shape, input_channels, down)
        self.decoder = KiUNetDecoder(shape, num_classes, up, num_outputs, deep_supervision)
        self.input_channels = input_channels
        self.strides = steps
        self.ki_branch = branch
        self.max_ki_memory = max_ki_memory

    def extra_repr(self) -> str:
        size = "x".join(map(str, self.ki_branch.resolution))
        return (
            f"Ki branch: {size} times the patch, {max(self.ki_branch.features)} channels, "
            f"largest map {self.ki_branch.largest_map} channels of the patch's size, cap {self.max_ki_memory}"
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor | Features:
        self._check_size(x.shape[2:])
        return self.decoder(*self.encoder(x))

    def _check_size(self, patch: Sequence[int]) -> None:
        coarsest = patch
        for stride in self.strides:
            coarsest = [-(-side // s) for side, s in zip(coarsest, stride, strict=True)]
        if math.prod(coarsest) == 1:
            factor = "x".join(str(math.prod(axis)) for axis in zip(*self.strides, strict=True))
            raise ValueError(f"KiU-Net needs a side that is larger: {factor} voxels become one at its coarsest level")

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Values that the convolutions put out for one sample, and the interpolations before a norm: nnU-Net's measure.

        Args:
            input_size: of the patch in voxels, without batch and channels.
        """
        replica, counts = deepcopy(self).to("meta"), []
        for module in replica.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Upsample):
                module.register_forward_hook(lambda _module, _inputs, output: counts.append(output.numel()))
        with torch.no_grad():
            replica(torch.empty(1, self.input_channels, *input_size, device="meta"))
        return sum(counts)

    @staticmethod
    def initialize(module: nn.Module) -> None:
        InitWeights_He(1e-2)(module)


@dataclass(frozen=True)
class Shape:
    """What encoder and decoder have in common: the plan by level, the Ki branch, ``pool`` (max or conv)."""

    layers: Layers
    features: Sequence[int]
    kernels: Sequence[Size]
    strides: Sequence[Size]
    branch: KiBranch
    pool: str


class KiUNetEncoder(nn.Module):
    """The U branch shrinks from level to level, the Ki branch grows, and they exchange features after each step."""

    def __init__(self, shape: Shape, input_channels: int, num_convs: Sequence[int]) -> None:
        super().__init__()
        layers, features, kernels, branch = shape.layers, shape.features, shape.kernels, shape.branch
        u_channels = (input_channels, *features[1:])
        self.u_stages = nn.ModuleList(
            nn.Sequential(
                layers.shrinking(u_channels[level - 1 : level + 1], kernels[level], shape.strides[level], shape.pool),
                layers.stacked(num_convs[level] - 1, u_channels[level], kernels[level]),
            )
            for level in range(1, len(features))
        )
        ki_channels = [input_channels, *branch.features[1:]]
        self.ki_stages = nn.ModuleList(
            fast_if_narrow(layers.growing((ki_channels[stage], ki_channels[stage + 1]), kernels[0], factor))
            for stage, factor in enumerate(branch.growth)
        )
        self.fusions = nn.ModuleList(
            CrossResidualFusion(layers, features[level], branch.features[level], kernels[level], kernels[0])
            for level in range(1, len(branch.features))
        )

    def forward(self, x: torch.Tensor) -> tuple[Features, Features]:
        """Features of the U and of the Ki branch by level; ``x`` itself at level 0."""
        u_levels, ki_levels = [x], [x]
        for index, stage in enumerate(self.u_stages):
            u = stage(u_levels[-1])
            if index < len(self.ki_stages):
                u, ki = self.fusions[index](u, self.ki_stages[index](ki_levels[-1]))
                ki_levels.append(ki)
            u_levels.append(u)
        return u_levels, ki_levels


class KiUNetDecoder(nn.Module):
    """The U branch grows back, the Ki branch shrinks back; at level 0 they are added. All lists are by level."""

    def __init__(
        self, shape: Shape, num_classes: int, num_convs: Sequence[int], num_outputs: int | None, deep_supervision: bool
    ) -> None:
        super().__init__()
        layers, features, kernels, branch = shape.layers, shape.features, shape.kernels, shape.branch
        levels = range(len(features) - 1)
        self.u_stages = nn.ModuleList(
            layers.growing((features[level + 1], features[level]), kernels[level + 1], shape.strides[level + 1])
            for level in levels
        )
        self.refinements = nn.ModuleList(
            layers.stacked(num_convs[level] - 1, features[level], kernels[level]) for level in levels
        )
        ki = branch.features
        self.ki_stages = nn.ModuleList(
            fast_if_narrow(layers.shrinking((ki[level + 1], ki[level]), kernels[0], factor, shape.pool))
            for level, factor in enumerate(branch.growth)
        )
        self.fusions = nn.ModuleList(
            CrossResidualFusion(layers, features[level], ki[level], kernels[level], kernels[0])
            for level in range(1, len(branch.growth))
        )
        self.widen = layers.match(ki[0], features[0])
        self.seg_layers = nn.ModuleList(
            layers.conv_op(features[level], num_classes, 1) for level in levels[:num_outputs]
        )
        self.deep_supervision = deep_supervision

    @property
    def deep_supervision(self) -> bool:
        """Whether ``forward`` returns every output. The other heads are frozen without it: they would get no gradient,
        and DDP stops at a trainable parameter without one."""
        return self._is_supervised

    @deep_supervision.setter
    def deep_supervision(self, enabled: bool) -> None:
        self._is_supervised = bool(enabled)
        for head in self.seg_layers[1:]:
            head.requires_grad_(self._is_supervised)

    def forward(self, u_levels: Features, ki_levels: Features) -> torch.Tensor | Features:
        """``u_levels``, ``ki_levels`` as the encoder returns them."""
        u, ki = u_levels[-1], ki_levels[-1]
        outputs: Features = []
        for level in reversed(range(len(self.u_stages))):
            u = crop(self.u_stages[level](u), u_levels[level].shape[2:])
            if level < len(self.ki_stages):
                ki = self.ki_stages[level](ki)
                u, ki = self._joined(level, u, ki, ki_levels[level])
            if level > 0:
                u = u + u_levels[level]
            u = self.refinements[level](u)
            if level == 0 or (self.deep_supervision and level < len(self.seg_layers)):
                outputs.insert(0, self.seg_layers[level](u))
        return outputs if self.deep_supervision else outputs[0]

    def _joined(
        self, level: int, u: torch.Tensor, ki: torch.Tensor, ki_skip: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both branches after the exchange; at level 0, where the Ki branch ends, it is added to the U branch."""
        if level == 0:
            return u + self.widen(ki), ki
        u, ki = self.fusions[level - 1](u, ki)
        return u, ki + ki_skip


# --- from the plan ---------------------------------------------------------------------------------------------------


def _per_level(name: str, values: Any, num: int) -> list[Any]:
    """One value a level; a single one stands for all."""
    values = list(values) if isinstance(values, Sequence) else [values] * num
    if not all(is_count(count) for value in values for count in (value if isinstance(value, Sequence) else [value])):
        raise NnplugError(f"needs {name} of whole numbers from 1 on; the plan has {values}.")
    if len(values) != num:
        raise NnplugError(f"needs {num} {name} for this plan, or one for all; got {len(values)}.")
    return values


def _by_axis(conv_op: type[nn.Module], value: int | Sequence[int]) -> Size:
    return tuple(maybe_convert_scalar_to_list(conv_op, value))


def _check_plan(kernels: Sequence[Size], strides: Sequence[Size]) -> None:
    if math.prod(strides[0]) != 1:
        raise NnplugError(f"works at full resolution first; the plan's first stride is {list(strides[0])}, not 1.")
    if any(side % 2 == 0 for kernel in kernels for side in kernel):
        raise NnplugError(f"needs odd kernel sizes; the plan has {[list(kernel) for kernel in kernels]}.")


def _check_settings(n_stages: int, pool: str, num_ki_stages: int, max_ki_growth: int, num_outputs: int | None) -> None:
    if n_stages < 2:
        raise NnplugError(f"needs a plan with two stages or more; this one has {n_stages}.")
    if pool not in ("max", "conv"):
        raise NnplugError(f"has no pool={pool}. It takes: max, conv.")
    if not is_count(num_ki_stages):
        raise NnplugError(f"needs num_ki_stages of 1 or more, not {num_ki_stages!r}.")
    if not is_count(max_ki_growth, 2):
        raise NnplugError(f"needs a max_ki_growth of 2 or more, not {max_ki_growth!r}: the Ki branch is the finer one.")
    if num_outputs is not None and not (is_count(num_outputs) and num_outputs < n_stages):
        raise NnplugError(f"has 1 to {n_stages - 1} outputs with this plan; num_outputs is {num_outputs}.")
