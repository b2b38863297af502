"""DynUNet: MONAI's own U-Net in the shape of an nnU-Net plan.

Paper: Isensee et al., nnU-Net, 2019, https://arxiv.org/abs/1904.08128; Futrega et al. 2021,
https://arxiv.org/abs/2110.03352. Code: MONAI, Apache-2.0. Changed: the extra outputs come at their own resolution
(MONAI interpolates them to the patch and stacks them), the flag and not ``training`` decides about them, and the second
registration of every layer under ``skip_layers`` is left out of the state dict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.networks.nets import DynUNet
from nnplug import NnplugError
from torch import nn

from nnplug_monai.patch_rule import PatchRule, product_of_strides, with_patch_rule
from nnplug_monai.plan_values import Layer, activation_layer, layer, norm_layer, spatial_dims
from nnplug_monai.supervised import Supervised


class SupervisedDynUNet(Supervised, DynUNet):
    """DynUNet with a deep-supervision switch and outputs at their own resolution."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(deep_supervision=True, **kwargs)
        # MONAI keeps its outputs there between calls: such a network can not be copied after a forward pass
        del self.skip_layers, self.heads

    def extra_heads(self) -> list[nn.Module]:
        return list(getattr(self, "deep_supervision_heads", ()))

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        skips = []
        for block in (self.input_block, *self.downsamples):
            x = block(x)
            skips.append(x)
        x = self.bottleneck(x)
        outputs: list[torch.Tensor] = []
        for upsample in self.upsamples:
            x = upsample(x, skips.pop())
            level = len(skips)
            if self.deep_supervision and 1 <= level <= len(self.deep_supervision_heads):
                outputs.insert(0, self.deep_supervision_heads[level - 1](x))
        full = self.output_block(x)
        return [full, *outputs] if self.deep_supervision else full


def build_dynunet(
    input_channels: int,
    num_classes: int,
    deep_supervision: bool = False,
    *,
    conv_op: type[nn.Module],
    features_per_stage: Sequence[int],
    kernel_sizes: Sequence[Sequence[int] | int],
    strides: Sequence[Sequence[int] | int],
    norm_op: type[nn.Module] | None = None,
    norm_op_kwargs: Mapping[str, Any] | None = None,
    nonlin: type[nn.Module] | None = None,
    nonlin_kwargs: Mapping[str, Any] | None = None,
    norm_name: Layer | None = None,
    act_name: Layer | None = None,
    dropout: float | None = None,
    deep_supr_num: int | None = None,
    res_block: bool = False,
    trans_bias: bool = False,
) -> nn.Module:
    """MONAI's DynUNet with the plan's stages, channels, kernels, strides, normalisation and activation.

    Args:
        input_channels: channels of the image.
        num_classes: channels of the logits.
        deep_supervision: return the outputs of every supervised level.
        conv_op: the plan's convolution; tells 2D from 3D.
        features_per_stage: the plan's channels, at least three stages.
        kernel_sizes: the plan's kernel of each stage.
        strides: the plan's stride of each stage, full resolution first.
        norm_op: the plan's normalisation (instance or batch norm); None for MONAI's default, affine instance norm.
        norm_op_kwargs: its arguments.
        nonlin: the plan's activation; None for MONAI's default, leaky ReLU.
        nonlin_kwargs: its arguments.
        norm_name: MONAI's normalisation layer instead of the plan's.
        act_name: MONAI's activation layer instead of the plan's.
        dropout: dropout after every convolution, 0..1, None for none.
        deep_supr_num: outputs besides the full resolution; None for every level above the bottleneck, as in nnU-Net.
        res_block: residual blocks in the encoder.
        trans_bias: bias of the transposed convolutions.

    Returns:
        A network from (B, input_channels, *patch) to logits (B, num_classes, *patch), with deep supervision a list:
        the full resolution, then that of every following stage. Sides must be multiples of the product of the strides.
    """
    dims = spatial_dims(conv_op)
    num_stages = len(strides)
    if num_stages < 3:
        raise NnplugError(f"needs a plan with at least three stages; this one has {num_stages}.")
    if product_of_strides(strides[:1], dims) != (1,) * dims:
        raise NnplugError(f"works at full resolution first; the plan's first stride is {strides[0]}, not 1.")
    if deep_supr_num is not None and not 1 <= deep_supr_num <= num_stages - 2:
        raise NnplugError(
            f"has {num_stages} stages and so 1 to {num_stages - 2} extra outputs; "
            f"network_builder.deep_supr_num is {deep_supr_num}."
        )
    if norm_name is None:
        norm_name = ("instance", {"affine": True}) if norm_op is None else norm_layer(norm_op, norm_op_kwargs)
    if act_name is None:
        act_name = "leakyrelu" if nonlin is None else activation_layer(nonlin, nonlin_kwargs)
    network = SupervisedDynUNet(
        spatial_dims=dims,
        in_channels=input_channels,
        out_channels=num_classes,
        kernel_size=kernel_sizes,
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=list(features_per_stage),
        norm_name=layer(norm_name),
        act_name=layer(act_name),
        dropout=dropout,
        deep_supr_num=num_stages - 2 if deep_supr_num is None else deep_supr_num,
        res_block=res_block,
        trans_bias=trans_bias,
    )
    network.deep_supervision = deep_supervision
    min_coarse_voxels = 2 if "instance" in str(norm_name).lower() else 1
    return with_patch_rule(network, PatchRule("DynUNet", product_of_strides(strides, dims), True, min_coarse_voxels))
