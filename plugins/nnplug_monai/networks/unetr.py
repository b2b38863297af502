"""UNETR.

Paper: Hatamizadeh et al., UNETR: Transformers for 3D Medical Image Segmentation, 2021, https://arxiv.org/abs/2103.10504.
Code: MONAI, Apache-2.0. Changed: the layer norms of a cross attention that UNETR does not have are left out. They
would be parameters without a gradient, which DDP refuses.
"""

from __future__ import annotations

from collections.abc import Sequence

from monai.networks.nets import UNETR
from nnplug import NnplugError
from torch import nn

from nnplug_monai.patch_rule import PatchRule, with_patch_rule
from nnplug_monai.plan_values import Layer, layer, require_single_output, spatial_dims

TOKEN_SIDE = 16  # voxels of one token along every axis; fixed in MONAI's class


def build_unetr(
    input_channels: int,
    num_classes: int,
    deep_supervision: bool = False,
    *,
    conv_op: type[nn.Module],
    patch_size: Sequence[int] | None = None,
    feature_size: int = 16,
    hidden_size: int = 768,
    mlp_dim: int = 3072,
    num_heads: int = 12,
    proj_type: str = "conv",
    norm_name: Layer = "instance",
    conv_block: bool = True,
    res_block: bool = True,
    dropout_rate: float = 0.0,
    qkv_bias: bool = False,
) -> nn.Module:
    """MONAI's UNETR for one patch size; the dimension and the patch size come from the plan.

    Args:
        input_channels: channels of the image.
        num_classes: channels of the logits.
        deep_supervision: must be False, there is one output.
        conv_op: the plan's convolution; tells 2D from 3D.
        patch_size: the plan's patch in voxels: the position embedding has one entry a token of 16 voxels a side.
        feature_size: channels at full resolution.
        hidden_size: channels of a token, a multiple of ``num_heads``.
        mlp_dim: hidden channels of the perceptrons.
        num_heads: attention heads.
        proj_type: ``conv`` or ``perceptron`` patch embedding.
        norm_name: MONAI's normalisation layer of the convolutional part.
        conv_block: convolutions on the way from the tokens to the decoder.
        res_block: residual blocks in the decoder.
        dropout_rate: dropout of the transformer, 0..1.
        qkv_bias: bias of query, key and value.

    Returns:
        A network from (B, input_channels, *patch_size) to (B, num_classes, *patch_size). Sides must be multiples of 16.

    Raises:
        ValueError: the patch size does not fit.
    """
    require_single_output("UNETR", deep_supervision)
    if patch_size is None:
        raise NnplugError("needs to know the patch size, and the plan's arch_kwargs do not hold patch_size.")
    dims = spatial_dims(conv_op)
    size = tuple(int(side) for side in patch_size)
    rule = PatchRule("UNETR", (TOKEN_SIDE,) * dims, only=size)
    rule.check(size)
    network = UNETR(
        in_channels=input_channels,
        out_channels=num_classes,
        img_size=size,
        spatial_dims=dims,
        feature_size=feature_size,
        hidden_size=hidden_size,
        mlp_dim=mlp_dim,
        num_heads=num_heads,
        proj_type=proj_type,
        norm_name=layer(norm_name),
        conv_block=conv_block,
        res_block=res_block,
        dropout_rate=dropout_rate,
        qkv_bias=qkv_bias,
    )
    for block in network.vit.blocks:
        block.norm_cross_attn = nn.Identity()
    return with_patch_rule(network, rule)
