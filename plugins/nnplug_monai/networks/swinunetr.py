"""Swin UNETR.

Paper: Hatamizadeh et al., Swin UNETR: Swin Transformers for Semantic Segmentation of Brain Tumors in MRI Images, 2022,
https://arxiv.org/abs/2201.01266. Code: MONAI, Apache-2.0. Unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import SwinUNETR
from torch import nn

from nnplug_monai.patch_rule import PatchRule, with_patch_rule
from nnplug_monai.plan_values import Layer, layer, require_single_output, spatial_dims


def build_swinunetr(
    input_channels: int,
    num_classes: int,
    deep_supervision: bool = False,
    *,
    conv_op: type[nn.Module],
    feature_size: int = 24,
    depths: Sequence[int] = (2, 2, 2, 2),
    num_heads: Sequence[int] = (3, 6, 12, 24),
    window_size: Sequence[int] | int = 7,
    qkv_bias: bool = True,
    mlp_ratio: float = 4.0,
    norm_name: Layer = "instance",
    drop_rate: float = 0.0,
    attn_drop_rate: float = 0.0,
    dropout_path_rate: float = 0.0,
    normalize: bool = True,
    patch_norm: bool = False,
    use_checkpoint: bool = False,
    downsample: str = "merging",
    use_v2: bool = False,
) -> nn.Module:
    """MONAI's SwinUNETR; only the dimension comes from the plan.

    Args:
        input_channels: channels of the image.
        num_classes: channels of the logits.
        deep_supervision: must be False, there is one output.
        conv_op: the plan's convolution; tells 2D from 3D.
        feature_size: channels of the first level, a multiple of 12; the paper uses 48.
        depths: transformer blocks at each of the four levels.
        num_heads: attention heads at each level; each divides ``feature_size * 2 ** level``.
        window_size: attention window in tokens.
        qkv_bias: bias of query, key and value.
        mlp_ratio: hidden channels of the perceptrons relative to the level's channels.
        norm_name: MONAI's normalisation layer of the convolutional part.
        drop_rate: dropout of the embedding and of the projections, 0..1.
        attn_drop_rate: dropout of the attention, 0..1.
        dropout_path_rate: largest stochastic depth rate, 0..1.
        normalize: layer norm on the features that leave the encoder.
        patch_norm: layer norm after the patch embedding.
        use_checkpoint: recompute in the backward pass to save memory.
        downsample: ``merging`` or ``mergingv2``.
        use_v2: a residual convolution block before each level (Swin UNETR v2).

    Returns:
        A network from (B, input_channels, *patch) to (B, num_classes, *patch). Sides must be multiples of 32, one of
        them 64 or more.
    """
    require_single_output("SwinUNETR", deep_supervision)
    dims = spatial_dims(conv_op)
    device = torch.get_default_device()
    # the constructor reads the stochastic depth rates back from a tensor, which a meta tensor does not allow
    with torch.device("cpu" if device.type == "meta" else device):
        network = SwinUNETR(
            in_channels=input_channels,
            out_channels=num_classes,
            spatial_dims=dims,
            feature_size=feature_size,
            depths=tuple(depths),
            num_heads=tuple(num_heads),
            window_size=window_size if isinstance(window_size, int) else tuple(window_size),
            qkv_bias=qkv_bias,
            mlp_ratio=mlp_ratio,
            norm_name=layer(norm_name),
            drop_rate=drop_rate,
            attn_drop_rate=attn_drop_rate,
            dropout_path_rate=dropout_path_rate,
            normalize=normalize,
            patch_norm=patch_norm,
            use_checkpoint=use_checkpoint,
            downsample=downsample,
            use_v2=use_v2,
        )
    return with_patch_rule(network.to(device), PatchRule("SwinUNETR", (32,) * dims, min_coarse_voxels=2))
