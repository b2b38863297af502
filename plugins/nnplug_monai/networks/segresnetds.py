"""SegResNetDS: SegResNet with transposed convolutions, batch norm and supervision heads, as Auto3DSeg uses it.

Paper: Myronenko, 3D MRI Brain Tumor Segmentation Using Autoencoder Regularization, 2018, https://arxiv.org/abs/1810.11654.
Code: MONAI, Apache-2.0. Changed: the flag and not ``training`` decides about the extra outputs, and heads that are
switched off are not computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import SegResNetDS
from nnplug import NnplugError
from torch import nn

from nnplug_monai.patch_rule import PatchRule, with_patch_rule
from nnplug_monai.plan_values import Layer, layer, spatial_dims
from nnplug_monai.supervised import Supervised


class SupervisedSegResNetDS(Supervised, SegResNetDS):
    """SegResNetDS with a deep-supervision switch; state dict as in MONAI."""

    def extra_heads(self) -> list[nn.Module]:
        return [level["head"] for level in self.up_layers[:-1]]

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        skips = self.encoder(x)
        x = skips.pop()
        outputs: list[torch.Tensor] = []
        for index, level in enumerate(self.up_layers, start=1):
            x = level["blocks"](level["upsample"](x) + skips.pop())
            is_last = index == len(self.up_layers)
            if is_last or (self.deep_supervision and len(self.up_layers) - index < self.dsdepth):
                outputs.insert(0, level["head"](x))
        return outputs if self.deep_supervision else outputs[0]


def build_segresnetds(
    input_channels: int,
    num_classes: int,
    deep_supervision: bool = False,
    *,
    conv_op: type[nn.Module],
    init_filters: int = 32,
    blocks_down: Sequence[int] = (1, 2, 2, 4),
    blocks_up: Sequence[int] | None = None,
    dsdepth: int | None = None,
    act: Layer = "relu",
    norm: Layer = "batch",
    upsample_mode: str = "deconv",
    resolution: Sequence[float] | None = None,
) -> nn.Module:
    """MONAI's SegResNetDS; only the dimension comes from the plan.

    Args:
        input_channels: channels of the image.
        num_classes: channels of the logits.
        deep_supervision: return the outputs of ``dsdepth`` levels.
        conv_op: the plan's convolution; tells 2D from 3D.
        init_filters: channels at full resolution, doubled at every level.
        blocks_down: residual blocks at each level, two levels or more.
        blocks_up: residual blocks at each level of the decoder; None for one each.
        dsdepth: number of outputs with deep supervision; None for one a level of the decoder.
        act: MONAI's activation layer.
        norm: MONAI's normalisation layer.
        upsample_mode: ``deconv``, ``nontrainable`` (linear) or ``pixelshuffle``.
        resolution: voxel spacing in mm, in the plan's axis order; coarse axes are then pooled later. None: isotropic.

    Returns:
        A network from (B, input_channels, *patch) to logits (B, num_classes, *patch), with deep supervision a list:
        full resolution, then half of it, and so on. Sides must be multiples of 8 by default
        (``network.patch_rule.divisor``).
    """
    if len(blocks_down) < 2:
        raise NnplugError("needs at least two levels: network_builder.blocks_down has one entry.")
    dims = spatial_dims(conv_op)
    num_levels = len(blocks_down) - 1
    if dsdepth is not None and not 1 <= dsdepth <= num_levels:
        raise NnplugError(f"can have 1 to {num_levels} outputs; network_builder.dsdepth is {dsdepth}.")
    network = SupervisedSegResNetDS(
        spatial_dims=dims,
        in_channels=input_channels,
        out_channels=num_classes,
        init_filters=init_filters,
        blocks_down=tuple(blocks_down),
        blocks_up=None if blocks_up is None else tuple(blocks_up),
        dsdepth=num_levels if dsdepth is None else dsdepth,
        act=layer(act),
        norm=layer(norm),
        upsample_mode=upsample_mode,
        resolution=None if resolution is None else tuple(resolution),
    )
    network.deep_supervision = deep_supervision
    return with_patch_rule(network, PatchRule("SegResNetDS", tuple(int(d) for d in network.shape_factor())))
