"""Checks of the loss, alone: whether what it rewards is a better segmentation.

Axis letters: B batch, C classes or regions; ``*`` stands for the spatial axes. Predictions are logits (B, C, *) made
from label maps (B, 1, *).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch

from nnplug.testing.made_up_data import IGNORE_LABEL
from nnplug.testing.outcomes import CheckFailed
from nnplug.testing.subject import Subject
from nnplug.training.losses import target_transform_of

#: Logits of a sure prediction; surer ones would punish losses with label smoothing.
SURE = 5.0
#: How much two values must differ to count as different, relative to the larger.
RESOLUTION = 1e-6
AUTOCAST_TOLERANCE = 0.05
_CORNER = "in a corner of the second sample"
_PLACES = ("inside the first sample", _CORNER)
TRANSFORM_TOLERANCE = 1e-4


def perfect_is_best(subject: Subject) -> None:
    """The right segmentation has a lower loss than any other."""
    loss, labels = _loss(subject), subject.labels()
    best = _value(subject, loss, _logits(subject, labels), labels)
    for description, logits in _worse(subject, labels):
        value = _value(subject, loss, logits, labels)
        if not _is_higher(value, best):
            raise CheckFailed(
                f"a higher loss for '{description}' than for the right segmentation ({best:.6g})",
                f"{value:.6g}",
                subject.where("loss_fn"),
            )


def false_positive(subject: Subject) -> None:
    """An object where there is none makes the loss higher, beside right objects and beside missed ones."""
    loss, labels = _loss(subject), subject.labels()
    missed = labels.masked_fill(labels == 2, 0)
    for beside, predicted in (("the right segmentation", labels), ("one that misses the box", missed)):
        without = _value(subject, loss, _logits(subject, predicted), labels)
        for label in (1, 2):
            for place in _PLACES:
                added = predicted.clone()
                added[_block(subject, place)] = label
                value = _value(subject, loss, _logits(subject, added), labels)
                if not _is_higher(value, without):
                    raise CheckFailed(
                        f"a higher loss than {without:.6g} when a false object of label {label} is added {place} to "
                        f"{beside}",
                        f"{value:.6g}: false positives cost nothing there",
                        subject.where("loss_fn"),
                    )


def background_gradient(subject: Subject) -> None:
    """The gradient reaches background voxels: less probability of a false object there makes the loss lower."""
    loss, labels = _loss(subject), subject.labels()
    for (channel, label), place in itertools.product(_foreground_channels(subject), _PLACES):
        predicted = labels.clone()
        predicted[_block(subject, place)] = label
        logits = (_logits(subject, predicted) * 0.3).requires_grad_()
        _call(subject, loss, logits, labels).backward()
        gradient = logits.grad
        if gradient is None:
            raise CheckFailed("a gradient of the loss", "none", subject.where("loss_fn"))
        there = gradient[_block(subject, place, channel)]
        if not subject.case.has_regions:
            # by the chain rule of the softmax: what moving probability from the label to the background changes
            probability = logits.detach().softmax(1)
            background = _block(subject, place)
            there = there / probability[_block(subject, place, channel)]
            there = there - gradient[background] / probability[background]
        share = (there != 0).float().mean().item()
        if share < 0.5 or there.mean() <= 0:
            raise CheckFailed(
                f"a gradient against label {label} where it is predicted in the background, {place}",
                f"{there.mean():.3g} on average (above 0 is against it), other than 0 in {share:.0%} of these voxels",
                subject.where("loss_fn"),
            )


def ignored_voxels(subject: Subject) -> None:
    """What is predicted in ignored voxels changes neither the loss nor its gradient."""
    loss, labels = _loss(subject), subject.labels()
    is_ignored = (labels == IGNORE_LABEL).expand(-1, subject.num_classes, *subject.patch)
    noise = torch.randn(is_ignored.shape)
    logits = _logits(subject, labels) * 0.3 + noise
    changed = torch.where(is_ignored, -3 * logits.flip(0), logits)
    values = [_value(subject, loss, one, labels) for one in (logits, changed)]
    if abs(values[0] - values[1]) > RESOLUTION * max(map(abs, values)):
        found = f"{values[0]:.8g} and {values[1]:.8g}"
        raise CheckFailed("the same loss for other logits in ignored voxels", found, subject.where("loss_fn"))
    logits = logits.requires_grad_()
    _call(subject, loss, logits, labels).backward()
    assert logits.grad is not None
    if (logits.grad[is_ignored] != 0).any():
        found = f"up to {logits.grad[is_ignored].abs().max():.3g}"
        raise CheckFailed("a gradient of 0 in ignored voxels", found, subject.where("loss_fn"))


def target_transform(subject: Subject) -> None:
    """The loss is the same with the channels that the data workers append as without them."""
    loss, labels = _loss(subject), subject.labels()
    make = target_transform_of(loss)
    assert make is not None, "chosen for losses that have one"
    transform, targets = make(), subject.targets(labels)[0]
    extended = torch.stack([transform(segmentation=sample)["segmentation"] for sample in targets])
    logits = _logits(subject, labels) * 0.3 + torch.randn(_shape(subject))
    with torch.no_grad():
        without, given = float(loss(logits, targets)), float(loss(logits, extended))
    if abs(given - without) > TRANSFORM_TOLERANCE * max(abs(given), abs(without)):
        raise CheckFailed(f"the loss {without:.6g} that it has without them", f"{given:.6g}", subject.where("loss_fn"))


def finite_loss(subject: Subject) -> None:
    """Loss and gradient are finite: for samples without foreground, without annotation, for sure and wrong logits."""
    loss, labels = _loss(subject), subject.labels()
    empty = torch.zeros_like(labels)
    one_empty = labels.clone()
    one_empty[0] = 0
    cases = {"no foreground in a sample": one_empty, "no foreground at all": empty}
    if subject.case.has_ignore_label:
        ignored = labels.clone()
        ignored[0] = IGNORE_LABEL
        cases["a sample that is ignored altogether"] = ignored
        cases["everything ignored"] = torch.full_like(labels, IGNORE_LABEL)
    for description, target in cases.items():
        for name, logits in (("noise", torch.randn(_shape(subject))), ("sure and wrong", _wrong(subject, target))):
            logits = logits.requires_grad_()
            value = _call(subject, loss, logits, target)
            if not value.requires_grad:
                found = "a number without a graph: backward fails"
                raise CheckFailed(f"a loss that training can go on from, with {description}", found, _hint(subject))
            value.backward()
            gradient = torch.zeros(()) if logits.grad is None else logits.grad
            if not torch.isfinite(value) or not torch.isfinite(gradient).all():
                share = torch.isfinite(gradient).float().mean().item()
                raise CheckFailed(
                    f"a finite loss and gradient with {description}, logits: {name}",
                    f"loss {value.item():.4g}, gradient {share:.0%} finite",
                    _hint(subject),
                )


def loss_autocast(subject: Subject) -> None:
    """Logits in bfloat16 under autocast give about the loss that they give in float32, and a finite gradient."""
    loss, labels = _loss(subject), subject.labels()
    logits = (_logits(subject, labels) * 0.3 + torch.randn(_shape(subject))).bfloat16()
    full = _value(subject, loss, logits.float(), labels)
    logits = logits.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = _call(subject, loss, logits, labels)
    half.backward()
    is_finite = logits.grad is not None and bool(torch.isfinite(logits.grad).all())
    if not is_finite or abs(half.item() - full) > AUTOCAST_TOLERANCE * max(1.0, abs(full)):
        raise CheckFailed(
            f"{full:.4g} within {AUTOCAST_TOLERANCE:.0%} and a finite gradient from logits in bfloat16",
            f"{half.item():.4g}, gradient {'finite' if is_finite else 'not finite'}. Compute sums in float32",
            _hint(subject),
        )


def loss_deep_supervision(subject: Subject) -> None:
    """With several outputs the loss is lower where each of them is right, and its gradient reaches the first."""
    trainer, labels = subject.planned, subject.labels()
    if not trainer.enable_deep_supervision:
        return
    loss, targets = trainer._build_loss(), subject.targets(labels)
    outputs = [_at_size(subject, labels, target) for target in targets]
    empty = [_at_size(subject, torch.zeros_like(labels), target) for target in targets]
    right, wrong = loss(outputs, targets), loss(empty, targets)
    if not _is_higher(wrong.item(), right.item()):
        raise CheckFailed(
            f"a higher loss when every output is background than when every one is right ({right.item():.6g})",
            f"{wrong.item():.6g}",
            _hint(subject),
        )
    leaves = [output.requires_grad_() for output in empty]
    loss(leaves, targets).backward()
    if leaves[0].grad is None or not (leaves[0].grad != 0).any():
        raise CheckFailed("a gradient for the first output", "none", _hint(subject))


ON_EVERY_PLAN = {
    "loss_perfect_is_best": perfect_is_best,
    "loss_false_positive": false_positive,
    "loss_background_gradient": background_gradient,
    "loss_finite": finite_loss,
    "loss_deep_supervision": loss_deep_supervision,
}
WITH_IGNORE_LABEL = {"loss_ignored_voxels": ignored_voxels}
WITH_TARGET_TRANSFORM = {"loss_target_transform": target_transform}
ON_ONE_PLAN = {"loss_autocast": loss_autocast}


# --- predictions -----------------------------------------------------------------------------------------------------


def _worse(subject: Subject, labels: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Predictions that are worse than the right one: (what it is, logits)."""
    yield "background everywhere", _logits(subject, torch.zeros_like(labels))
    for _, label in _foreground_channels(subject):
        yield f"label {label} everywhere", _logits(subject, torch.full_like(labels, label))
    for missed in (1, 2):
        yield f"label {missed} missed", _logits(subject, labels.masked_fill(labels == missed, 0))
    for sample in range(len(labels)):
        missing = labels.clone()
        missing[sample] = missing[sample].masked_fill(missing[sample] != IGNORE_LABEL, 0)
        yield f"every object of sample {sample + 1} missed", _logits(subject, missing)
    yield "every object grown by two voxels", _logits(subject, _grown(labels))
    kept = labels == IGNORE_LABEL
    shifted = torch.roll(labels.masked_fill(kept, 0), 2, 2).masked_fill(kept, IGNORE_LABEL)
    yield "shifted by two voxels", _logits(subject, shifted)
    swapped = torch.where((labels == 1) | (labels == 2), 3 - labels, labels)
    if not subject.case.has_regions:
        yield "labels 1 and 2 swapped", _logits(subject, swapped)
    yield "undecided", torch.zeros(_shape(subject))
    yield "noise", torch.randn(_shape(subject)) * SURE


def _grown(labels: torch.Tensor) -> torch.Tensor:
    pool = torch.nn.functional.max_pool2d if labels.ndim == 4 else torch.nn.functional.max_pool3d
    foreground = labels.masked_fill(labels == IGNORE_LABEL, 0).float()
    return torch.where(labels == 0, pool(foreground, 5, 1, 2).short(), labels)


def _logits(subject: Subject, labels: torch.Tensor) -> torch.Tensor:
    """Sure logits (B, C, *) of a label map (B, 1, *); undecided where it is ignored."""
    signs = [torch.where(torch.isin(labels, torch.tensor(values)), 1.0, -1.0) for values in _channels(subject)]
    return SURE * torch.cat(signs, 1).masked_fill(labels == IGNORE_LABEL, 0.0)


def _wrong(subject: Subject, labels: torch.Tensor) -> torch.Tensor:
    return _logits(subject, torch.where(labels == 0, 1, 0)) * 4


def _at_size(subject: Subject, labels: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Logits of a label map at the resolution of a target."""
    scaled = torch.nn.functional.interpolate(labels.float(), target.shape[2:], mode="nearest-exact")
    return _logits(subject, scaled.short())


def _channels(subject: Subject) -> list[list[int]]:
    """The label values that each output channel stands for."""
    manager = subject.planned.label_manager
    if manager.has_regions:
        return [list(region) if isinstance(region, tuple | list) else [region] for region in manager.foreground_regions]
    return [[label] for label in range(subject.num_classes)]


def _foreground_channels(subject: Subject) -> list[tuple[int, int]]:
    """(output channel, a label value that belongs to it) of every foreground class or region."""
    channels = [(channel, values[-1]) for channel, values in enumerate(_channels(subject))]
    return channels if subject.case.has_regions else channels[1:]


def _block(subject: Subject, place: str, channel: int = 0) -> tuple[Any, ...]:
    """A block of background voxels, far from every object: 2 voxels or a tenth along each axis, or 2 in a corner."""
    if place == _CORNER:
        return (1, channel, *[slice(2)] * len(subject.patch))
    starts = [0.8, *([0.1] * (len(subject.patch) - 1))]
    sizes = [max(2, side // 10) for side in subject.patch]
    slices = [
        slice(int(start * side), int(start * side) + size)
        for start, side, size in zip(starts, subject.patch, sizes, strict=True)
    ]
    return (0, channel, *slices)


# --- calls -----------------------------------------------------------------------------------------------------------


def _loss(subject: Subject) -> Any:
    """The trainer's loss for one output."""
    trainer = subject.planned
    enabled = trainer.enable_deep_supervision
    trainer.enable_deep_supervision = False
    try:
        return trainer._build_loss()
    finally:
        trainer.enable_deep_supervision = enabled


def _call(subject: Subject, loss: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return loss(logits, subject.targets(labels)[0])


def _value(subject: Subject, loss: Any, logits: torch.Tensor, labels: torch.Tensor) -> float:
    with torch.no_grad():
        return float(_call(subject, loss, logits, labels))


def _is_higher(value: float, other: float) -> bool:
    return value - other > RESOLUTION * max(abs(value), abs(other))


def _shape(subject: Subject) -> tuple[int, ...]:
    return (2, subject.num_classes, *subject.patch)


def _hint(subject: Subject) -> str | None:
    return subject.where("loss_fn")
