"""UIU-Net as trainer configs: ``uiunet`` and ``uiunet_minimal``.

Wu, Hong, Chanussot: "UIU-Net: U-Net in U-Net for Infrared Small Object Detection", IEEE Transactions on Image
Processing 32, 2023, https://arxiv.org/abs/2212.00968. Written from the paper: none of the authors' code, which is
GPL-3.0, is here. What differs from the paper is in ``docs/uiunet.md``.
"""

from __future__ import annotations

from collections.abc import Callable

from nnplug import Component, TrainerConfig, hookimpl

NNPLUG_API = 1

_NETWORK = "nnplug_uiunet.network:UIUNet"
_SOURCE = "Wu, Hong, Chanussot: UIU-Net, IEEE TIP 2023, arXiv:2212.00968; written from the paper, Apache-2.0"


@hookimpl
def register_trainers(register: Callable[[TrainerConfig], None]) -> None:
    """Both set the network only; they train nnU-Net's full length."""
    register(
        TrainerConfig(
            name="uiunet",
            description="UIU-Net: every stage of the U-Net is a U-Net, cross attention at the skips",
            source=_SOURCE,
            network_builder=_NETWORK,
        )
    )
    register(
        TrainerConfig(
            name="uiunet_minimal",
            description="UIU-Net with half of the plan's widths",
            source=_SOURCE,
            network_builder=Component(_NETWORK, width=0.5),
        )
    )
