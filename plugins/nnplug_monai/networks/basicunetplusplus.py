"""U-Net++.

Paper: Zhou et al., UNet++: A Nested U-Net Architecture for Medical Image Segmentation, 2018,
https://arxiv.org/abs/1807.10165. Code: MONAI, Apache-2.0. Changed: one tensor and not a list of one without deep
supervision; with it the deepest output comes first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import BasicUNetPlusPlus
from nnplug.testing import exempt
from torch import nn

from nnplug_monai.patch_rule import PatchRule, with_patch_rule
from nnplug_monai.plan_values import Layer, layer, spatial_dims
from nnplug_monai.supervised import Supervised


class SupervisedUNetPlusPlus(Supervised, BasicUNetPlusPlus):
    """BasicUNetPlusPlus with a deep-supervision switch; state dict as in MONAI.

    Its four outputs all have full resolution: they belong to U-Nets of growing depth, X^{0,1} to X^{0,4} in the paper.
    They are returned deepest first, so that nnU-Net's falling weights favour the output that is used for prediction.
    """

    def extra_heads(self) -> list[nn.Module]:
        names = ("final_conv_0_3", "final_conv_0_2", "final_conv_0_1")
        return [getattr(self, name) for name in names if hasattr(self, name)]

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        outputs = super().forward(x)[::-1]
        return outputs if self.deep_supervision else outputs[0]


@exempt(
    "torch_compile",
    reason="torch 2.13 compiles MONAI's code in pieces, and fails on some of them; trained with compile=false",
)
def build_basicunetplusplus(
    input_channels: int,
    num_classes: int,
    deep_supervision: bool = False,
    *,
    conv_op: type[nn.Module],
    features: Sequence[int] = (32, 32, 64, 128, 256, 32),
    act: Layer = ("LeakyReLU", {"negative_slope": 0.1, "inplace": True}),
    norm: Layer = ("instance", {"affine": True}),
    bias: bool = True,
    dropout: float = 0.0,
    upsample: str = "deconv",
) -> nn.Module:
    """MONAI's BasicUNetPlusPlus; only the dimension comes from the plan.

    Args:
        input_channels: channels of the image.
        num_classes: channels of the logits.
        deep_supervision: return four outputs, all of full resolution.
        conv_op: the plan's convolution; tells 2D from 3D.
        features: channels of the five levels, then those before the last output.
        act: MONAI's activation layer.
        norm: MONAI's normalisation layer.
        bias: bias of the convolutions.
        dropout: dropout, 0..1.
        upsample: ``deconv``, ``nontrainable`` (linear) or ``pixelshuffle``.

    Returns:
        A network from (B, input_channels, *patch) to logits (B, num_classes, *patch), with deep supervision a list of
        four such tensors. Sides must be at least 16, one of them 32 or more; odd sides are padded inside.
    """
    dims = spatial_dims(conv_op)
    network = SupervisedUNetPlusPlus(
        spatial_dims=dims,
        in_channels=input_channels,
        out_channels=num_classes,
        features=tuple(features),
        act=layer(act),
        norm=layer(norm),
        bias=bias,
        dropout=dropout,
        upsample=upsample,
    )
    network.deep_supervision = deep_supervision
    rule = PatchRule("BasicUNetPlusPlus", (16,) * dims, must_divide=False, min_coarse_voxels=2)
    return with_patch_rule(network, rule)
