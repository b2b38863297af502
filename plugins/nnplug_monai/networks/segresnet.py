"""SegResNet.

Paper: Myronenko, 3D MRI Brain Tumor Segmentation Using Autoencoder Regularization, 2018, https://arxiv.org/abs/1810.11654
(without the autoencoder branch). Code: MONAI, Apache-2.0. Unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets import SegResNet
from torch import nn

from nnplug_monai.patch_rule import PatchRule, with_patch_rule
from nnplug_monai.plan_values import Layer, layer, require_single_output, spatial_dims


def build_segresnet(
    input_channels: int,
    num_classes: int,
    deep_supervision: bool = False,
    *,
    conv_op: type[nn.Module],
    init_filters: int = 8,
    blocks_down: Sequence[int] = (1, 2, 2, 4),
    blocks_up: Sequence[int] = (1, 1, 1),
    dropout_prob: float | None = None,
    act: Layer = ("RELU", {"inplace": True}),
    norm: Layer = ("GROUP", {"num_groups": 8}),
    upsample_mode: str = "nontrainable",
) -> nn.Module:
    """MONAI's SegResNet; only the dimension comes from the plan.

    Args:
        input_channels: channels of the image.
        num_classes: channels of the logits.
        deep_supervision: must be False, there is one output.
        conv_op: the plan's convolution; tells 2D from 3D.
        init_filters: channels at full resolution, doubled at every level; a multiple of the norm's groups.
        blocks_down: residual blocks at each level; their number is the number of levels.
        blocks_up: residual blocks at each level of the decoder, one entry less than ``blocks_down``.
        dropout_prob: dropout after the first convolution, 0..1, None for none.
        act: MONAI's activation layer.
        norm: MONAI's normalisation layer.
        upsample_mode: ``nontrainable`` (linear), ``deconv`` or ``pixelshuffle``.

    Returns:
        A network from (B, input_channels, *patch) to (B, num_classes, *patch). Sides must be multiples of
        2 ** (number of levels - 1): 8 by default.
    """
    require_single_output("SegResNet", deep_supervision)
    dims = spatial_dims(conv_op)
    network = SegResNet(
        spatial_dims=dims,
        in_channels=input_channels,
        out_channels=num_classes,
        init_filters=init_filters,
        blocks_down=tuple(blocks_down),
        blocks_up=tuple(blocks_up),
        dropout_prob=dropout_prob,
        act=layer(act),
        norm=layer(norm),
        upsample_mode=upsample_mode,
    )
    return with_patch_rule(network, PatchRule("SegResNet", (2 ** (len(blocks_down) - 1),) * dims))
