"""Images whose voxels say where they are, to see which patches a sampler cuts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnplug.testing.made_up_data import IGNORE_LABEL
from nnplug.testing.plan_cases import CASES
from nnplug.testing.subject import Subject

#: An image's side relative to the patch's, so that a patch drawn anywhere, or in the middle, rarely holds the objects.
IMAGE_FACTOR = 3
#: What a voxel's number is divided by for its two channels: float32 holds every integer up to 2^24 only.
_RADIX = 2**20
#: Voxels along each axis by which patches are cut larger than the network's, as they are before augmentation.
MARGIN = 8


@dataclass(frozen=True)
class Draw:
    """The part of a drawn patch that reaches the network.

    Attributes:
        codes: index of each voxel in the image, counted from 1 in C order; 0 outside of it.
        segmentation: the labels that the sampler gave, of the same shape.
        labels: of the whole image (D, H, W).
        case: that it is from, where the loader says so.
    """

    codes: np.ndarray
    segmentation: np.ndarray
    labels: np.ndarray
    case: str | None


def draws(subject: Subject, number: int) -> list[Draw]:
    """Patches that the trainer's sampler cuts, without augmentation; cut once for a subject."""
    if "draws" not in subject.kept:
        subject.kept["draws"] = list(_draw(subject, number))
    return subject.kept["draws"]


def _loader(subject: Subject) -> tuple[Any, np.ndarray]:
    """The trainer's loader without augmentation, and the labels of each of its cases."""
    trainer = subject.trainer
    folder = Path(trainer.preprocessed_dataset_folder_base, f"positions_{subject.case.name}_{_text(subject.patch)}")
    labels = _write_cases(subject, folder, _image_shape(subject.patch))
    initial = [side + MARGIN for side in subject.patch]
    cases = nnUNetDatasetBlosc2(str(folder), list(CASES))
    return trainer._loader(trainer._sampler(), cases, initial, None), labels


def _draw(subject: Subject, number: int) -> Iterator[Draw]:
    loader, labels = _loader(subject)
    subject.kept["forced"] = _watch_forced(loader, labels, len(subject.patch))
    middle = tuple(slice(MARGIN // 2, -MARGIN // 2) for _ in subject.patch)
    for _ in range(-(-number // subject.trainer.batch_size)):
        batch = next(loader)
        high, low = batch["data"].numpy().astype(np.int64).swapaxes(0, 1)
        codes, cases = high * _RADIX + low, batch.get("keys", [None] * len(high))
        for one, segmentation, case in zip(codes, batch["target"][:, 0], cases, strict=True):
            yield Draw(one[middle], segmentation.numpy()[middle], labels, case)


def _watch_forced(loader: Any, labels: np.ndarray, dims: int) -> list[bool]:
    """Whether each patch holds foreground that nnU-Net's loader is told to take with it, as they are drawn.

    In 2D these are boxes of one slice, (1, H, W).
    """
    found: list[bool] = []
    margins = [0] * (3 - dims) + [MARGIN // 2] * dims
    get_bbox = getattr(loader, "get_bbox", None)
    if get_bbox is None:
        return found

    def watched(data_shape: Any, force_fg: bool, *args: Any, **kwargs: Any) -> Any:
        lower, upper = get_bbox(data_shape, force_fg, *args, **kwargs)
        if force_fg:
            sides = zip(lower, upper, margins, strict=True)  # what reaches the network is the middle
            part = labels[tuple(slice(max(0, a + margin), max(0, b - margin)) for a, b, margin in sides)]
            found.append(bool(np.isin(part, (1, 2)).any()))
        return lower, upper

    loader.get_bbox = watched
    return found


def _image_shape(patch: tuple[int, ...]) -> tuple[int, ...]:
    sides = tuple(side * IMAGE_FACTOR for side in patch)
    return sides if len(sides) == 3 else (20, *sides)


def _write_cases(subject: Subject, folder: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Write preprocessed cases, all with the same labels, which are returned."""
    labels = _labels(shape, subject.case.has_ignore_label)
    if folder.is_dir():
        return labels
    folder.mkdir()
    manager = subject.trainer.label_manager
    collected = list(manager.foreground_regions if manager.has_regions else manager.foreground_labels)
    if manager.has_ignore_label:
        collected.append([-1, *manager.all_labels])
    properties = {"class_locations": DefaultPreprocessor._sample_foreground_locations(labels[None], collected)}
    codes = np.stack(np.divmod(np.arange(1, labels.size + 1), _RADIX)).astype(np.float32).reshape(2, *shape)
    for name in CASES:
        nnUNetDatasetBlosc2.save_case(codes, labels[None], properties, str(folder / name))
    return labels


@cache
def _labels(shape: tuple[int, ...], has_ignore_label: bool) -> np.ndarray:
    """Two small objects a quarter in; with an ignore label only they and a few voxels beside them are annotated."""
    corner = [side // 4 for side in shape]
    labels = np.full(shape, IGNORE_LABEL if has_ignore_label else 0, np.int8)
    if has_ignore_label:
        labels[tuple(slice(max(0, c - 4), c + 6) for c in corner)] = 0
    labels[tuple(slice(c, c + 2) for c in corner)] = 1
    labels[tuple(slice(c + 3, c + 5) for c in corner)] = 2
    return labels


def _text(size: Any) -> str:
    return "x".join(map(str, size))
