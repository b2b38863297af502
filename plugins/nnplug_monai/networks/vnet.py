"""V-Net.

Paper: Milletari et al., V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image Segmentation, 2016,
https://arxiv.org/abs/1606.04797. Code: MONAI, Apache-2.0. Changed: in 2D the dropout takes whole channels. MONAI's
class applies 3D dropout there, which takes the samples of a 2D batch for channels and drops all of a sample at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets import VNet
from nnplug import NnplugError
from torch import nn

from nnplug_monai.patch_rule import PatchRule, with_patch_rule
from nnplug_monai.plan_values import Layer, layer, require_single_output, spatial_dims

FIRST_FEATURES = 16  # fixed in MONAI's class; the image is repeated to as many channels and added


def build_vnet(
    input_channels: int,
    num_classes: int,
    deep_supervision: bool = False,
    *,
    conv_op: type[nn.Module],
    act: Layer = ("elu", {"inplace": True}),
    dropout_prob_down: float | None = 0.5,
    dropout_prob_up: Sequence[float | None] = (0.5, 0.5),
    bias: bool = False,
) -> nn.Module:
    """MONAI's VNet; only the dimension comes from the plan.

    Args:
        input_channels: channels of the image: 1, 2, 4, 8 or 16.
        num_classes: channels of the logits.
        deep_supervision: must be False, there is one output.
        conv_op: the plan's convolution; tells 2D from 3D.
        act: MONAI's activation layer.
        dropout_prob_down: dropout in the two coarsest levels of the encoder, 0..1, None for none.
        dropout_prob_up: dropout of the features and of the skip connection in the two coarsest levels of the decoder.
        bias: bias of the convolutions.

    Returns:
        A network from (B, input_channels, *patch) to (B, num_classes, *patch). Sides must be multiples of 16.
    """
    require_single_output("VNet", deep_supervision)
    if FIRST_FEATURES % input_channels:
        raise NnplugError(
            f"can not have {input_channels} input channels: VNet repeats the image to 16 and takes 1, 2, 4, 8 or 16."
        )
    dims = spatial_dims(conv_op)
    network = VNet(
        spatial_dims=dims,
        in_channels=input_channels,
        out_channels=num_classes,
        act=layer(act),
        dropout_prob_down=dropout_prob_down,
        dropout_prob_up=tuple(dropout_prob_up),
        bias=bias,
    )
    if dims == 2:
        _use_channel_dropout(network)
    return with_patch_rule(network, PatchRule("VNet", (16,) * dims))


def _use_channel_dropout(network: nn.Module) -> None:
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout3d):
                setattr(module, name, nn.Dropout2d(child.p))
