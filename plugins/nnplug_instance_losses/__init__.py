"""Losses that count every object alike: ``blob_dice_loss``, ``region_dice_loss`` and the same with cross-entropy.

They set ``loss_fn`` and nothing else, so they combine with every network. What they compute and their settings are in
``docs/instance_losses.md``. Listing them imports neither torch nor connected-components-3d.
"""

from __future__ import annotations

from collections.abc import Callable

from nnplug import TrainerConfig, hookimpl

NNPLUG_API = 1

_BLOB = "Kofler et al. 2022, arXiv:2205.08209"
_REGION = "Jaus et al. 2024, arXiv:2410.18684; Bouteille et al. 2025, arXiv:2511.17146"

# name -> (class, what it is, papers)
_LOSSES = {
    "blob_dice_loss": ("BlobDiceLoss", "nnU-Net's loss + Dice of every component", _BLOB),
    "blob_dice_ce_loss": ("BlobDiceCELoss", "nnU-Net's loss + Dice and cross-entropy of every component", _BLOB),
    "region_dice_loss": ("RegionDiceLoss", "nnU-Net's loss + Dice in every component's Voronoi cell", _REGION),
    "region_dice_ce_loss": (
        "RegionDiceCELoss",
        "nnU-Net's loss + Dice and cross-entropy in every component's Voronoi cell",
        _REGION,
    ),
}


@hookimpl
def register_trainers(register: Callable[[TrainerConfig], None]) -> None:
    """One part a loss."""
    for name, (loss, description, source) in _LOSSES.items():
        loss_fn = f"nnplug_instance_losses.losses:{loss}"
        register(TrainerConfig(name=name, description=description, source=source, loss_fn=loss_fn))
