"""Checks of everything around network and loss: batches, sampler, learning rates, a step of the whole trainer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from nnplug.testing.made_up_data import IGNORE_LABEL
from nnplug.testing.outcomes import CheckFailed, CheckSkipped
from nnplug.testing.positions import Draw, draws
from nnplug.testing.subject import Subject, as_list

NUM_DRAWS = 120
#: Standard deviations below the expected share at which a sampler is said to draw too little foreground.
NUM_DEVIATIONS = 4


def trains(subject: Subject) -> None:
    """The whole trainer makes a step on a batch of its loader: the loss is finite, weights change, validation runs."""
    trainer = subject.trainer
    before = [parameter.detach().clone() for parameter in trainer.network.parameters()]
    loss = train_step(subject)
    if not math.isfinite(loss):
        raise CheckFailed("a finite loss in the first step", f"{loss}", subject.where("loss_fn"))
    after = list(trainer.network.parameters())
    if all(torch.equal(old, new) for old, new in zip(before, after, strict=True)):
        raise CheckFailed("weights that change in a step", "none did", subject.where("optimizer"))
    if not all(torch.isfinite(parameter).all() for parameter in after):
        raise CheckFailed("finite weights after a step", "NaN or infinite ones", subject.where("optimizer"))
    trainer.on_validation_epoch_start()
    value = float(trainer.validation_step(next(trainer.dataloader_val))["loss"])
    if not math.isfinite(value):
        raise CheckFailed("a finite loss in validation", f"{value}", subject.where("loss_fn"))


def train_step(subject: Subject) -> float:
    """Start an epoch and make its first step; returns the loss."""
    trainer = subject.trainer
    trainer.dataloader_train, trainer.dataloader_val = trainer.get_dataloaders()
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    trainer.on_train_epoch_start()
    return float(trainer.train_step(next(trainer.dataloader_train))["loss"])


def batches(subject: Subject) -> None:
    """The loaders give images of the patch's size, one target an output, and labels that the data set has."""
    trainer = subject.trainer
    loaders = dict(zip(("training", "validation"), trainer.get_dataloaders(), strict=True))
    sizes = [tuple(target.shape[2:]) for target in subject.targets(subject.labels(1))]
    for name, loader in loaders.items():
        batch = next(loader)
        images, targets = batch["data"], as_list(batch["target"])
        expected = (trainer.batch_size, subject.case.num_channels, *subject.patch)
        if tuple(images.shape) != expected:
            raise CheckFailed(f"images of shape {expected} for {name}", f"{tuple(images.shape)}", _hint(subject))
        if not torch.isfinite(images).all():
            raise CheckFailed(f"finite images for {name}", "NaN or infinite values", _hint(subject))
        given = [tuple(target.shape[2:]) for target in targets]
        if given != sizes:
            raise CheckFailed(f"targets of the sizes {sizes} for {name}", f"{given}", _hint(subject))
        unknown = set(targets[0][:, :1].unique().tolist()) - _allowed(subject)
        if unknown:
            found = f"other values: {sorted(unknown)}"
            raise CheckFailed(f"targets with the values {sorted(_allowed(subject))} for {name}", found, _hint(subject))


def draws_inside(subject: Subject) -> None:
    """Patches lie inside the image where it is larger, and hold its voxels with their labels unchanged."""
    for draw in draws(subject, NUM_DRAWS):
        if (draw.codes == 0).any():
            raise CheckFailed(
                f"a patch of {_text(draw.codes.shape)} inside the image of {_text(draw.labels.shape)}",
                f"{(draw.codes == 0).mean():.0%} of its voxels outside",
                subject.where("sampler"),
            )
        if not _is_crop(draw):
            raise CheckFailed("a connected part of the image", "other voxels", subject.where("sampler"))
        expected = draw.labels.ravel()[draw.codes - 1]
        if not np.array_equal(expected, draw.segmentation):
            raise CheckFailed("the labels of the same voxels", "others", subject.where("sampler"))


def foreground_share(subject: Subject) -> str:
    """As many patches hold foreground as the trainer's oversampling demands, and every one that is forced to."""
    trainer = subject.trainer
    forced = trainer.oversample_foreground_percent
    if not trainer.probabilistic_oversampling:
        forced = 1 - round(trainer.batch_size * (1 - forced)) / trainer.batch_size
    has_foreground = [np.isin(draw.segmentation, (1, 2)).any() for draw in draws(subject, NUM_DRAWS)]
    share = float(np.mean(has_foreground))
    least = forced - NUM_DEVIATIONS * math.sqrt(forced * (1 - forced) / len(has_foreground))
    if share < least:
        raise CheckFailed(
            f"foreground in {forced:.0%} of the patches, at least {least:.0%} of {len(has_foreground)}",
            f"{share:.0%}",
            subject.where("sampler"),
        )
    held = subject.kept["forced"]
    if not all(held):
        found = f"none in {1 - np.mean(held):.0%} of {len(held)}"
        raise CheckFailed("foreground in every patch that is drawn with force_fg=True", found, subject.where("sampler"))
    and_all = f", and all {len(held)} that are forced to" if held else ""
    return f"{share:.0%} of {len(has_foreground)} patches hold foreground{and_all}"


def several_cases(subject: Subject) -> None:
    """More than one case is drawn."""
    cases = {draw.case for draw in draws(subject, NUM_DRAWS)}
    if None in cases:
        raise CheckSkipped("the loader's batches do not say of which cases they are ('keys')")
    if len(cases) == 1:
        found = f"{cases.pop()} in all of {len(draws(subject, NUM_DRAWS))} patches"
        raise CheckFailed("patches of several cases", found, subject.where("sampler"))


def annotated_voxels(subject: Subject) -> None:
    """With an ignore label every patch holds annotated voxels, so that no step is wasted."""
    without = [draw for draw in draws(subject, NUM_DRAWS) if (draw.segmentation == IGNORE_LABEL).all()]
    if without:
        share = len(without) / len(draws(subject, NUM_DRAWS))
        raise CheckFailed("annotated voxels in every patch", f"none in {share:.0%}", subject.where("sampler"))


def learning_rates(subject: Subject) -> None:
    """The learning rate of every epoch is a finite number from 0 on and follows from the epoch alone."""
    trainer = subject.trainer
    optimizer, schedule = trainer.configure_optimizers()
    rates = []
    for epoch in range(trainer.num_epochs):
        schedule.step(epoch)
        rates.append(float(optimizer.param_groups[0]["lr"]))
    if not all(math.isfinite(rate) and rate >= 0 for rate in rates):
        bad = next(epoch for epoch, rate in enumerate(rates) if not (math.isfinite(rate) and rate >= 0))
        raise CheckFailed("finite rates >= 0", f"{rates[bad]} in epoch {bad}", subject.where("lr_scheduler"))
    middle = trainer.num_epochs // 2
    optimizer, schedule = trainer.configure_optimizers()
    schedule.step(middle)
    resumed = float(optimizer.param_groups[0]["lr"])
    if not math.isclose(resumed, rates[middle], rel_tol=1e-6, abs_tol=1e-12):
        raise CheckFailed(
            f"the rate {rates[middle]:.6g} in epoch {middle}, also of a training that is resumed there",
            f"{resumed:.6g}",
            subject.where("lr_scheduler"),
        )


ON_EVERY_PLAN = {"batches": batches, "trains": trains}
OF_SCHEDULE = {"learning_rates": learning_rates}
OF_SAMPLER = {
    "sampler_inside": draws_inside,
    "sampler_foreground": foreground_share,
    "sampler_cases": several_cases,
}
OF_SAMPLER_WITH_IGNORE_LABEL = {"sampler_annotated": annotated_voxels}


def _allowed(subject: Subject) -> set[float]:
    if subject.case.has_regions:
        return {0, 1}
    return {0, 1, 2, IGNORE_LABEL} if subject.case.has_ignore_label else {0, 1, 2}


def _is_crop(draw: Draw) -> bool:
    """Whether the voxels follow each other as in the image; a code is the voxel's index in it, counted from 1."""
    strides = np.cumprod([1, *draw.labels.shape[:0:-1]])[::-1][-draw.codes.ndim :]
    offsets = sum(axis * stride for axis, stride in zip(np.indices(draw.codes.shape), strides, strict=True))
    return bool((draw.codes == draw.codes.ravel()[0] + offsets).all())


def _text(size: Any) -> str:
    return "x".join(map(str, size))


def _hint(subject: Subject) -> str | None:
    return subject.where("training_transforms") or subject.where("sampler")
