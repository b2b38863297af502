"""Made-up objects, and the instance losses written out as their papers define them: one object at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from nnplug import LossContext
from scipy import ndimage
from torch.nn import functional

IGNORE = 3
KINDS = ("labels", "ignore", "regions", "regions+ignore")
SMOOTH = 1e-5


def context_for(kind: str, dims: int = 2, *, num_classes: int = 3, **more: Any) -> LossContext:
    """Labels 0, 1, 2, or the regions {1, 2} and {2}; 3 is the ignore label."""
    return LossContext(
        num_classes=2 if "regions" in kind else num_classes,
        spatial_dims=dims,
        ignore_label=IGNORE if "ignore" in kind else None,
        has_regions="regions" in kind,
        **more,
    )


def blobs(dims: int = 2, *, num_samples: int = 2, num_labels: int = 2, seed: int = 0) -> torch.Tensor:
    """(B, 1, *) int16: some boxes of every label, which may touch."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((num_samples, 1, *(18, 15, 12)[:dims]), np.int16)
    for sample in labels[:, 0]:
        for _ in range(4):
            for label in range(1, num_labels + 1):
                box = tuple(slice(start, start + rng.integers(1, 5)) for start in rng.integers(0, 11, dims))
                sample[box] = label
    return torch.from_numpy(labels)


def target_of(labels: torch.Tensor, kind: str, *, seed: int = 0) -> torch.Tensor:
    """What nnU-Net's loader gives; with an ignore label a tenth of the voxels and a corner are ignored."""
    labels = labels.clone()
    if "ignore" in kind:
        generator = torch.Generator().manual_seed(seed)
        labels[torch.rand(labels.shape, generator=generator) < 0.1] = IGNORE
        labels[:, :, :4, :6] = IGNORE
    if "regions" not in kind:
        return labels
    channels = [(labels == 1) | (labels == 2), labels == 2]
    return torch.cat(channels + [labels == IGNORE] * ("ignore" in kind), dim=1)


def noise(context: LossContext, target: torch.Tensor, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn((target.shape[0], context.num_classes, *target.shape[2:]), generator=generator)


def instance_term(
    context: LossContext, logits: torch.Tensor, target: torch.Tensor, *, cells: bool, ce: bool, connectivity: str
) -> torch.Tensor:
    """The mean over the components, with one mask and one distance transform a component."""
    structure = ndimage.generate_binary_structure(context.spatial_dims, 1 if connectivity == "face" else 99)
    probabilities = logits.sigmoid() if context.has_regions else logits.softmax(1)
    of_classes = []
    for c in range(0 if context.has_regions else 1, context.num_classes):
        certainty = logits[:, c]
        if not context.has_regions:
            certainty = certainty - torch.cat([logits[:, :c], logits[:, c + 1 :]], 1).logsumexp(1)
        of_samples = []
        for b in range(len(target)):
            truth, valid = _truth(context, target[b], c)
            ids, _ = ndimage.label(truth & valid, structure)
            of_components = [
                _of_component(probabilities[b, c], certainty[b], ids == k, area & valid, ce)
                for k, area in _areas(ids, cells=cells)
            ]
            of_samples += [torch.stack(of_components).mean()] if of_components else []
        of_classes += [torch.stack(of_samples).mean()] if of_samples else []
    return torch.stack(of_classes).mean() if of_classes else logits.sum() * 0


def _truth(context: LossContext, target: torch.Tensor, c: int) -> tuple[np.ndarray, np.ndarray]:
    values = target.numpy()
    truth = values[c] > 0 if context.has_regions else values[0] == c
    if context.ignore_label is None:
        return truth, np.ones_like(truth)
    return truth, values[-1] == 0 if context.has_regions else values[0] != context.ignore_label


def _areas(ids: np.ndarray, *, cells: bool) -> list[tuple[int, np.ndarray]]:
    """Each component's number and the voxels that count for it."""
    numbers = range(1, ids.max() + 1)
    if not cells:
        return [(k, (ids == 0) | (ids == k)) for k in numbers]
    if not numbers:
        return []
    nearest = squared_distances(ids).argmin(0) + 1
    return [(k, nearest == k) for k in numbers]


def squared_distances(ids: np.ndarray) -> np.ndarray:
    """(K, *) of every voxel to every component."""
    return np.stack([np.rint(ndimage.distance_transform_edt(ids != k) ** 2) for k in range(1, ids.max() + 1)])


def _of_component(
    probability: torch.Tensor, certainty: torch.Tensor, inside: np.ndarray, counted: np.ndarray, ce: bool
) -> torch.Tensor:
    overlap, size = probability[inside].sum(), int(inside.sum())
    value = 1 - (2 * overlap + SMOOTH) / (probability[counted].sum() + size + SMOOTH)
    if not ce:
        return value
    truth = torch.from_numpy(inside[counted]).to(certainty)
    return value + functional.binary_cross_entropy_with_logits(certainty[counted], truth)
