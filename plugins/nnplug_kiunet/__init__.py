"""KiU-Net as trainer configs: ``kiunet``, ``kiunet_conv``, ``kiunet_minimal`` and ``kiunet_large``.

Valanarasu, Sindagi, Hacihaliloglu, Patel: "KiU-Net: Towards Accurate Segmentation of Biomedical Images using
Over-complete Representations", MICCAI 2020, https://arxiv.org/abs/2006.04878; in 3D: "KiU-Net: Overcomplete
Convolutional Architectures for Biomedical Image and Volumetric Segmentation", https://arxiv.org/abs/2010.01663. Written
from the papers. What differs from them is in ``docs/kiunet.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nnplug import Component, TrainerConfig, hookimpl

NNPLUG_API = 1

# name -> (what it is, settings of the network)
_TRAINERS: dict[str, tuple[str, dict[str, Any]]] = {
    "kiunet": ("KiU-Net: a second branch works at twice the resolution; max-pooling", {}),
    "kiunet_conv": ("KiU-Net with strided convolutions instead of max-pooling", {"pool": "conv"}),
    "kiunet_minimal": (
        "KiU-Net for a GPU with 24 GB (counted): narrower, with one convolution a stage",
        {
            "pool": "conv",
            "n_conv_per_stage": 1,
            "n_conv_per_stage_decoder": 1,
            "num_ki_stages": 2,
            "max_ki_memory": 24,
        },
    ),
    "kiunet_large": ("KiU-Net for a GPU with 48 GB (counted): a wider second branch", {"max_ki_memory": 128}),
}


@hookimpl
def register_trainers(register: Callable[[TrainerConfig], None]) -> None:
    """All set the network only; they train nnU-Net's full length."""
    for name, (description, settings) in _TRAINERS.items():
        register(
            TrainerConfig(
                name=name,
                description=description,
                source="Valanarasu et al., KiU-Net, MICCAI 2020, arXiv:2006.04878, arXiv:2010.01663; written from the "
                "papers, Apache-2.0",
                network_builder=Component("nnplug_kiunet.network:KiUNet", **settings),
            )
        )
