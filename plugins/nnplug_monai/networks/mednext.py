"""MedNeXt.

Paper: Roy et al., MedNeXt: Transformer-driven Scaling of ConvNets for Medical Image Segmentation, 2023,
https://arxiv.org/abs/2303.09975. Code: MONAI, Apache-2.0. Changed: the flag and not ``training`` decides about the
extra outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.nets import MedNeXt
from nnplug import NnplugError
from torch import nn

from nnplug_monai.patch_rule import PatchRule, with_patch_rule
from nnplug_monai.plan_values import spatial_dims
from nnplug_monai.supervised import Supervised

# the four sizes of the paper, table 1: expansion ratios of encoder (the decoder mirrors it) and bottleneck, blocks
_SIZES: dict[str, dict[str, Any]] = {
    "S": {"ratios": (2, 2, 2, 2), "bottleneck_ratio": 2, "blocks": (2, 2, 2, 2), "bottleneck_blocks": 2},
    "B": {"ratios": (2, 3, 4, 4), "bottleneck_ratio": 4, "blocks": (2, 2, 2, 2), "bottleneck_blocks": 2},
    "M": {"ratios": (2, 3, 4, 4), "bottleneck_ratio": 4, "blocks": (3, 4, 4, 4), "bottleneck_blocks": 4},
    "L": {"ratios": (3, 4, 8, 8), "bottleneck_ratio": 8, "blocks": (3, 4, 8, 8), "bottleneck_blocks": 8},
}


class SupervisedMedNeXt(Supervised, MedNeXt):
    """MedNeXt with a deep-supervision switch; state dict as MONAI's class with ``deep_supervision=True``."""

    def extra_heads(self) -> list[nn.Module]:
        return list(self.out_blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        x = self.stem(x)
        skips = []
        for stage, down in zip(self.enc_stages, self.down_blocks, strict=True):
            x = stage(x)
            skips.append(x)
            x = down(x)
        x = self.bottleneck(x)
        outputs: list[torch.Tensor] = []
        for head, up, stage in zip(self.out_blocks, self.up_blocks, self.dec_stages, strict=True):
            if self.deep_supervision:
                outputs.insert(0, head(x))
            x = stage(up(x) + skips.pop())
        full = self.out_0(x)
        return [full, *outputs] if self.deep_supervision else full


def build_mednext(
    input_channels: int,
    num_classes: int,
    deep_supervision: bool = False,
    *,
    conv_op: type[nn.Module],
    variant: str = "S",
    kernel_size: int = 3,
    init_filters: int = 32,
    encoder_expansion_ratio: Sequence[int] | int | None = None,
    decoder_expansion_ratio: Sequence[int] | int | None = None,
    bottleneck_expansion_ratio: int | None = None,
    blocks_down: Sequence[int] | None = None,
    blocks_bottleneck: int | None = None,
    blocks_up: Sequence[int] | None = None,
    use_residual_connection: bool = True,
    global_resp_norm: bool = False,
) -> nn.Module:
    """MONAI's MedNeXt in one of the paper's sizes; only the dimension comes from the plan.

    Args:
        input_channels: channels of the image.
        num_classes: channels of the logits.
        deep_supervision: return the outputs of every level, the bottleneck's too.
        conv_op: the plan's convolution; tells 2D from 3D.
        variant: ``S``, ``B``, ``M`` or ``L``; the arguments below that are None come from it.
        kernel_size: odd size of the depthwise convolutions; the paper uses 3 and 5.
        init_filters: channels at full resolution, doubled at every level.
        encoder_expansion_ratio: hidden channels of a block relative to its channels, one value or one a level.
        decoder_expansion_ratio: the same for the decoder, coarsest level first.
        bottleneck_expansion_ratio: the same for the bottleneck.
        blocks_down: blocks at each level.
        blocks_bottleneck: blocks in the bottleneck.
        blocks_up: blocks at each level of the decoder, coarsest first, as many levels as ``blocks_down``.
        use_residual_connection: residual blocks, as in the paper.
        global_resp_norm: global response normalisation in the blocks.

    Returns:
        A network from (B, input_channels, *patch) to logits (B, num_classes, *patch), with deep supervision a list:
        full resolution, then half of it, down to the bottleneck. Sides must be multiples of
        2 ** (number of levels): 16 by default, one of them 32 or more.
    """
    if variant.upper() not in _SIZES:
        raise NnplugError(f"comes in the sizes S, B, M and L; network_builder.variant is '{variant}'.")
    if kernel_size % 2 == 0:
        raise NnplugError(f"needs an odd kernel; network_builder.kernel_size is {kernel_size}.")
    size = _SIZES[variant.upper()]
    blocks_down = size["blocks"] if blocks_down is None else tuple(blocks_down)
    blocks_up = blocks_down[::-1] if blocks_up is None else tuple(blocks_up)
    if len(blocks_up) != len(blocks_down):
        raise NnplugError(
            f"needs as many levels up as down; network_builder.blocks_up has {len(blocks_up)} entries, "
            f"blocks_down {len(blocks_down)}."
        )
    dims = spatial_dims(conv_op)
    ratios = size["ratios"]
    network = SupervisedMedNeXt(
        spatial_dims=dims,
        in_channels=input_channels,
        out_channels=num_classes,
        deep_supervision=True,
        kernel_size=kernel_size,
        init_filters=init_filters,
        encoder_expansion_ratio=ratios if encoder_expansion_ratio is None else encoder_expansion_ratio,
        decoder_expansion_ratio=ratios[::-1] if decoder_expansion_ratio is None else decoder_expansion_ratio,
        bottleneck_expansion_ratio=bottleneck_expansion_ratio or size["bottleneck_ratio"],
        blocks_down=blocks_down,
        blocks_bottleneck=blocks_bottleneck or size["bottleneck_blocks"],
        blocks_up=blocks_up,
        use_residual_connection=use_residual_connection,
        global_resp_norm=global_resp_norm,
    )
    network.deep_supervision = deep_supervision
    return with_patch_rule(network, PatchRule("MedNeXt", (2 ** len(blocks_down),) * dims, min_coarse_voxels=2))
