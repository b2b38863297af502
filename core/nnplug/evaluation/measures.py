"""Measures of one case. Overlap is nnU-Net's own function, surfaces are MONAI's.

A class that neither segmentation has is NaN everywhere, as in nnU-Net. A class that only one has is 0, but for the
Hausdorff distance, which has no value then: NaN.

Voxels that the truth marks as ignored count nowhere. For surfaces they are taken to be as predicted, and only the
surface that touches an annotated voxel is measured: otherwise the rim of the annotation itself would be a surface.

Axes: D H W voxels; a case of one slice is measured in its plane.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cc3d
import numpy as np
import torch
from monai.metrics.utils import get_mask_edges, get_surface_distance
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, region_or_label_to_mask

from nnplug.inventory.case_check import label_problems
from nnplug.processes.case_pool import CaseFailure

Mask = np.ndarray
_IOU_OF_A_MATCH = 0.5  # above it, an object can match only one other: no assignment is needed


@dataclass(frozen=True)
class MeasureSettings:
    """What is measured.

    Attributes:
        reader: nnU-Net's class.
        classes: labels, or regions as tuples of labels.
        values: that images may hold, sorted.
        ignore_label: its value, None without one.
        tolerance_mm: distance up to which a surface counts as right; None leaves surfaces out.
        instances: whether connected components are compared too.
    """

    reader: type[Any]
    classes: Sequence[int | tuple[int, ...]]
    values: Sequence[int]
    ignore_label: int | None
    tolerance_mm: float | None
    instances: bool


class _Loaded:
    """Hands nnU-Net's function images that are read already."""

    def __init__(self, images: Mapping[str, np.ndarray]) -> None:
        self.images = images

    def read_seg(self, path: str) -> tuple[np.ndarray, dict[str, Any]]:
        return self.images[path], {}


def measure_case(settings: MeasureSettings, name: str, files: tuple[Path, Path]) -> dict[str, Any]:
    """The entry of ``metric_per_case`` in nnU-Net's ``summary.json``, with more measures.

    Args:
        settings: what is measured.
        files: truth and prediction.

    Raises:
        CaseFailure: their voxels or spacing differ, or they hold values that are no labels.
    """
    truth, prediction = map(str, files)
    reference, properties = settings.reader().read_seg(truth)
    predicted, other = settings.reader().read_seg(prediction)
    # a reader of one's own has no header that is known, and the spacing of a TIFF is in a file beside it
    for what, here, there in (
        ("shape", predicted.shape[1:], reference.shape[1:]),
        ("spacing", other["spacing"], properties["spacing"]),
    ):
        if not np.allclose(here, there, rtol=1e-4):
            shown = [" x ".join(f"{value:.6g}" for value in values) for values in (here, there)]
            raise CaseFailure(f"its {what} is {shown[0]}, the truth's {shown[1]} (in the order of the array's axes)")
    wrong = [
        problem.found.replace("the label", f"the {what}", 1)
        for what, file, voxels in (("truth", files[0], reference), ("prediction", files[1], predicted))
        for problem in label_problems(name, file, voxels, settings.values)
    ]
    if wrong:
        raise CaseFailure(", and ".join(wrong))
    loaded = _Loaded({truth: reference, prediction: predicted})
    result = compute_metrics(truth, prediction, loaded, settings.classes, settings.ignore_label)
    ignored = None if settings.ignore_label is None else reference[0] == settings.ignore_label
    for one, values in result["metrics"].items():
        truly = region_or_label_to_mask(reference[0], one)
        found = region_or_label_to_mask(predicted[0], one)
        if settings.tolerance_mm is not None:
            values.update(surface_measures(truly, found, properties["spacing"], settings.tolerance_mm, ignored))
        if settings.instances:
            values.update(instance_measures(truly, found, ignored))
    return result


def surface_measures(
    reference: Mask, prediction: Mask, spacing: Sequence[float], tolerance_mm: float, ignored: Mask | None = None
) -> dict[str, float]:
    """Surface Dice and the 95th percentile of the Hausdorff distance.

    Args:
        reference, prediction: boolean, D H W.
        spacing: of these axes, in mm.
        tolerance_mm: distance up to which surfaces agree.
        ignored: voxels that count nowhere.

    Returns:
        ``surface_dice``, 0 to 1: share of both surfaces, by area, that is within the tolerance of the other (Nikolov
        et al., 2018, arXiv:1809.04430; surfaces between voxels).
        ``HD95_mm``: the larger of the two 95th percentiles of distances between border voxels.
    """
    annotated = np.ones_like(reference) if ignored is None else ~ignored
    has_reference, has_prediction = np.any(reference & annotated), np.any(prediction & annotated)
    if not (has_reference and has_prediction):
        return {"surface_dice": 0.0 if has_reference or has_prediction else np.nan, "HD95_mm": np.nan}
    reference = np.where(annotated, reference, prediction)
    if reference.shape[0] == 1:
        reference, prediction, annotated, spacing = reference[0], prediction[0], annotated[0], spacing[1:]
    surfaces = _crop(reference, prediction, annotated)
    spacing = [float(value) for value in spacing]
    return {"surface_dice": _surface_dice(*surfaces, spacing, tolerance_mm), "HD95_mm": _hd95(*surfaces, spacing)}


def _crop(reference: Mask, prediction: Mask, annotated: Mask) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """To both objects and one voxel around them."""
    box = tuple(slice(part.start, part.stop + 2) for part in _bounding_box(reference | prediction))
    reference, prediction, annotated = (np.pad(image, 1)[box] for image in (reference, prediction, annotated))
    return torch.from_numpy(reference), torch.from_numpy(prediction), torch.from_numpy(annotated)


def _bounding_box(mask: Mask) -> tuple[slice, ...]:
    found = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        where = np.flatnonzero(mask.any(axis=others))
        found.append(slice(where[0], where[-1] + 1))
    return tuple(found)


def _surface_dice(
    reference: torch.Tensor,
    prediction: torch.Tensor,
    annotated: torch.Tensor,
    spacing: Sequence[float],
    tolerance_mm: float,
) -> float:
    on_prediction, on_reference, *areas = get_mask_edges(prediction, reference, crop=False, spacing=spacing)
    # surface elements lie between the voxels of a 2x2x2 block, one less along each axis
    blocks = np.lib.stride_tricks.sliding_window_view(annotated.numpy(), (2,) * annotated.ndim)
    counted = torch.from_numpy(blocks.any(axis=tuple(range(-annotated.ndim, 0))))
    within = total = 0.0
    sides = ((on_prediction, on_reference), (on_reference, on_prediction))
    for (own, other), area in zip(sides, areas, strict=True):
        counted_area = area[own & counted]
        within += float(counted_area[_distances(own & counted, other & counted, spacing) <= tolerance_mm].sum())
        total += float(counted_area.sum())
    return within / total if total else np.nan


def _hd95(
    reference: torch.Tensor, prediction: torch.Tensor, annotated: torch.Tensor, spacing: Sequence[float]
) -> float:
    one, other = (edge & annotated for edge in get_mask_edges(prediction, reference, crop=False))
    if not (one.any() and other.any()):
        return np.nan
    pairs = ((one, other), (other, one))
    return max(float(np.percentile(_distances(*pair, spacing), 95)) for pair in pairs)


def _distances(own: torch.Tensor, other: torch.Tensor, spacing: Sequence[float]) -> torch.Tensor:
    """From every element of ``own`` to the nearest one of ``other``, in mm."""
    if not (own.any() and other.any()):
        return torch.full((int(own.sum()),), torch.inf)
    distances = torch.zeros(int(own.sum()))
    # the search takes the time, and elements of both need none
    only = own & ~other
    if only.any():
        distances[~other[own]] = torch.as_tensor(get_surface_distance(only, other, spacing=spacing))
    return distances


def instance_measures(reference: Mask, prediction: Mask, ignored: Mask | None = None) -> dict[str, float]:
    """Compare connected components (26 neighbours, 8 in a plane) as objects; a pair matches with an IoU above 0.5.

    Returns:
        ``PQ``: panoptic quality (Kirillov et al., 2019, arXiv:1801.00868, equation 1). ``instance_F1``: of detected
        objects. ``instances_ref``, ``instances_pred``, ``instances_matched``: how many there are.
    """
    annotated = True if ignored is None else ~ignored
    objects = [cc3d.connected_components(mask & annotated, connectivity=26) for mask in (reference, prediction)]
    sizes = [np.bincount(image.ravel())[1:] for image in objects]
    both = (objects[0] > 0) & (objects[1] > 0)
    pairs, overlaps = np.unique(np.stack([image[both] for image in objects]), axis=1, return_counts=True)
    iou = overlaps / (sizes[0][pairs[0] - 1] + sizes[1][pairs[1] - 1] - overlaps)
    matched = iou[iou > _IOU_OF_A_MATCH]
    counts = {"instances_ref": len(sizes[0]), "instances_pred": len(sizes[1]), "instances_matched": len(matched)}
    total = (len(sizes[0]) + len(sizes[1])) / 2
    if total == 0:
        return {"PQ": np.nan, "instance_F1": np.nan, **counts}
    return {"PQ": float(matched.sum()) / total, "instance_F1": len(matched) / total, **counts}
