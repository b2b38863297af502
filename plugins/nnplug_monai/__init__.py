"""Networks and losses of MONAI (https://monai.io) as trainer configs: ``monai_segresnet``, ``monai_tversky``, ...

Everything is named by import string, so that listing the trainers imports neither torch nor MONAI. The rules of each
network and loss are in ``docs/monai.md``.
"""

from __future__ import annotations

from collections.abc import Callable

from nnplug import TrainerConfig, hookimpl

NNPLUG_API = 1

# name -> (what it is, paper, whether it has supervision heads)
_NETWORKS = {
    "segresnet": ("SegResNet: residual encoder, light decoder", "Myronenko 2018, arXiv:1810.11654", False),
    "segresnetds": ("SegResNet with deep supervision", "Myronenko 2018, arXiv:1810.11654", True),
    "swinunetr": ("Swin UNETR: shifted-window transformer encoder", "Hatamizadeh et al. 2022, arXiv:2201.01266", False),
    "unetr": ("UNETR: vision transformer encoder", "Hatamizadeh et al. 2021, arXiv:2103.10504", False),
    "attentionunet": ("Attention U-Net: gated skip connections", "Oktay et al. 2018, arXiv:1804.03999", False),
    "dynunet": ("DynUNet: MONAI's U-Net in the shape of the plan", "Isensee et al. 2019, arXiv:1904.08128", True),
    "mednext": ("MedNeXt: ConvNeXt blocks, sizes S, B, M, L", "Roy et al. 2023, arXiv:2303.09975", True),
    "basicunetplusplus": ("U-Net++: nested dense skip connections", "Zhou et al. 2018, arXiv:1807.10165", True),
    "vnet": ("V-Net: residual blocks of 5x5x5 convolutions", "Milletari et al. 2016, arXiv:1606.04797", False),
}

#: Networks that torch.compile fails on.
_NOT_COMPILED = ("basicunetplusplus",)

# name -> (class, what it is, paper)
_LOSSES = {
    "generalized_dice": ("GeneralizedDiceLoss", "Dice weighted by class volume", "Sudre et al. 2017, arXiv:1707.03237"),
    "dice_focal": ("DiceFocalLoss", "Dice + focal loss", "Lin et al. 2017, arXiv:1708.02002"),
    "tversky": ("TverskyLoss", "Dice that weighs misses and false alarms", "Salehi et al. 2017, arXiv:1706.05721"),
    "soft_cldice": ("SoftClDiceLoss", "Dice + centreline Dice for tubes", "Shit et al. 2021, arXiv:2003.07311"),
    "hausdorff_dt": (
        "HausdorffDTLoss",
        "Dice + cross entropy + distance-map Hausdorff",
        "Karimi et al. 2019, arXiv:1904.10030",
    ),
}


@hookimpl
def register_trainers(register: Callable[[TrainerConfig], None]) -> None:
    """One config a network and a loss; a loss sets nothing but ``loss_fn`` and so combines with every network."""
    for name, (description, source, has_heads) in _NETWORKS.items():
        register(
            TrainerConfig(
                name=f"monai_{name}",
                description=description,
                source=source,
                network_builder=f"nnplug_monai.networks.{name}:build_{name}",
                enable_deep_supervision=None if has_heads else False,
                compile=False if name in _NOT_COMPILED else None,
            )
        )
    for name, (loss, description, source) in _LOSSES.items():
        register(
            TrainerConfig(
                name=f"monai_{name}", description=description, source=source, loss_fn=f"nnplug_monai.losses:{loss}"
            )
        )
