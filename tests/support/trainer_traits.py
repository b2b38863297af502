"""What a trainer object does, as plain values: to compare two trainers, and to name what differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

#: nnU-Net's own attributes that a trainer class may set.
ATTRIBUTES = (
    "initial_lr",
    "weight_decay",
    "num_epochs",
    "num_iterations_per_epoch",
    "num_val_iterations_per_epoch",
    "enable_deep_supervision",
    "probabilistic_oversampling",
    "save_every",
)


def traits_of_trainer(trainer: Any) -> dict[str, Any]:
    """Settings, augmentation, optimiser, learning rates, loss and network of a trainer that is not yet initialised.

    The loss is its value on made-up logits at the resolutions of the trainer's network; the network is its text, built
    on the meta device; learning rates are those that nnU-Net's loop would have set in every epoch.
    """
    traits: dict[str, Any] = {name: getattr(trainer, name) for name in ATTRIBUTES}
    trainer._set_batch_size_and_oversample()
    traits["batch_size"] = trainer.batch_size
    traits["patch_size"] = list(trainer.configuration_manager.patch_size)
    traits["oversample_foreground_percent"] = trainer.oversample_foreground_percent
    traits.update(_augmentation(trainer))
    traits["network"] = str(_network(trainer))
    traits["loss"] = _loss(trainer)
    traits.update(_optimisation(trainer))
    return traits


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> set[str]:
    """The traits in which two trainers differ; numbers are compared to a relative 1e-6."""
    assert one.keys() == other.keys()
    return {key for key in one if not _equal(one[key], other[key])}


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float | np.ndarray):
        return np.shape(one) == np.shape(other) and np.allclose(one, other, rtol=1e-6, atol=0)
    return bool(one == other)


def _augmentation(trainer: Any) -> dict[str, Any]:
    rotation, dummy_2d, initial_patch_size, axes = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    labels = trainer.label_manager
    transforms = trainer.get_training_transforms(
        trainer.configuration_manager.patch_size,
        rotation,
        trainer._get_deep_supervision_scales(),
        axes,
        dummy_2d,
        use_mask_for_norm=trainer.configuration_manager.use_mask_for_norm,
        is_cascaded=trainer.is_cascaded,
        foreground_labels=labels.foreground_labels,
        regions=labels.foreground_regions if labels.has_regions else None,
        ignore_label=labels.ignore_label,
    )
    return {
        "rotation": rotation,
        "dummy_2d": dummy_2d,
        "initial_patch_size": [int(side) for side in initial_patch_size],
        "mirror_axes": axes,
        "mirror_axes_in_prediction": trainer.inference_allowed_mirroring_axes,
        "transforms": spell(transforms),
    }


def _network(trainer: Any) -> nn.Module:
    with torch.device("meta"):
        return trainer.build_network_architecture(
            trainer.plans_manager,
            trainer.configuration_manager,
            1,
            trainer.label_manager.num_segmentation_heads,
            trainer.enable_deep_supervision,
        )


def _loss(trainer: Any) -> np.ndarray:
    """The loss on random logits and labels, and on background predicted as such: Dice is nothing but smoothing."""
    patch_size = trainer.configuration_manager.patch_size
    num_classes = trainer.label_manager.num_segmentation_heads
    scales = trainer._get_deep_supervision_scales() or [[1.0] * len(patch_size)]
    sizes = [[round(side * factor) for side, factor in zip(patch_size, scale, strict=True)] for scale in scales]
    generator = torch.Generator().manual_seed(0)
    random = [torch.randn((2, num_classes, *size), generator=generator) for size in sizes]
    labels = [torch.randint(0, num_classes, (2, 1, *size), generator=generator) for size in sizes]
    confident = [torch.full((2, num_classes, *size), -9.0).index_fill_(1, torch.tensor(0), 9.0) for size in sizes]
    background = [torch.zeros((2, 1, *size), dtype=torch.long) for size in sizes]
    loss = trainer._build_loss()
    pairs = [(random, labels), (confident, background)]
    if not trainer.enable_deep_supervision:
        pairs = [(output[0], target[0]) for output, target in pairs]
    return np.array([loss(output, target).item() for output, target in pairs])


def _optimisation(trainer: Any) -> dict[str, Any]:
    trainer.network = nn.Linear(1, 1)
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    settings = {
        key: value
        for key, value in trainer.optimizer.param_groups[0].items()
        if key not in ("params", "lr", "initial_lr")
    }
    trainer.print_to_log_file = lambda *_, **__: None
    rates = []
    for epoch in range(trainer.num_epochs):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()  # nnU-Net's warm-up trainers change their schedule there
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    return {"optimizer": (type(trainer.optimizer), settings), "learning_rates": np.array(rates)}


def spell(value: Any) -> str:
    """An object and everything in it as text, without the addresses that its repr may hold."""
    if isinstance(value, list | tuple | set):
        return f"[{', '.join(spell(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {spell(item)}' for key, item in value.items())}}}"
    if isinstance(value, np.ndarray | torch.Tensor):
        return str(value.tolist())
    is_function_or_class = hasattr(value, "__qualname__")
    if hasattr(value, "__dict__") and not is_function_or_class:
        return f"{type(value).__name__}({spell(vars(value))})"
    return repr(value)
