"""(B, C, *) stands for batch, channels and two or three spatial axes."""

from torch import nn


class DilatedNet(nn.Sequential):
    """Convolutions of growing dilation at full resolution: (B, input_channels, *) to logits (B, num_classes, *).

    One output, so it is trained without deep supervision, which it only has to accept.
    """

    def __init__(self, input_channels, num_classes, conv_op, norm_op, deep_supervision, width, dilations):  # noqa: ARG002
        channels = [input_channels] + [width] * len(dilations)
        super().__init__(
            *(
                nn.Sequential(
                    conv_op(before, after, 3, padding=dilation, dilation=dilation),
                    norm_op(after, affine=True),
                    nn.LeakyReLU(),
                )
                for before, after, dilation in zip(channels, channels[1:], dilations, strict=False)
            ),
            conv_op(width, num_classes, 1),
        )
