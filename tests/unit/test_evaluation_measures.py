"""Measures of one case against values that other programs or a formula give."""

from __future__ import annotations

import math

import cc3d
import numpy as np
import pytest
import torch
from monai.metrics import compute_panoptic_quality
from nnplug.evaluation.measures import instance_measures, surface_measures

SHAPE = (20, 30, 30)
RNG = np.random.default_rng(5)


def cube(*start: int) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(first, first + length) for first, length in zip(start, (8, 15, 15), strict=True))] = True
    return mask


def spots(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Many small objects that touch neither each other nor the rim."""
    mask = np.zeros(shape, bool)
    mask[tuple(slice(2, -2, 4) for _ in shape)] = RNG.random([len(range(2, side - 2, 4)) for side in shape]) < 0.5
    return mask | np.roll(mask, 1, 1)


def border_voxels(mask: np.ndarray) -> np.ndarray:
    padded = np.pad(mask, 1)
    inner = mask.copy()
    for axis in range(3):
        for step in (-1, 1):
            inner &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
    return np.argwhere(mask & ~inner)


@pytest.mark.parametrize(
    ("spacing", "surface_dice"),
    # made with DeepMind's surface-distance 0.1, the program of Nikolov et al.
    [((1, 1, 1), 0.7187752257454627), ((5, 1, 1), 0.44635979727354486), ((2.5, 0.7, 0.7), 0.43045073843877096)],
)
def test_shifted_cubes(spacing: tuple[float, ...], surface_dice: float) -> None:
    one, other = cube(4, 5, 5), cube(5, 8, 5)
    measured = surface_measures(one, other, spacing, tolerance_mm=1.0)
    assert measured["surface_dice"] == pytest.approx(surface_dice, abs=1e-6)
    points = [border_voxels(mask) * spacing for mask in (one, other)]
    distances = np.linalg.norm(points[0][:, None] - points[1][None], axis=-1)
    expected = max(np.percentile(distances.min(axis=axis), 95) for axis in (0, 1))
    assert measured["HD95_mm"] == pytest.approx(expected, rel=1e-6)
    assert surface_measures(other, one, spacing, 1.0) == pytest.approx(measured)


def test_a_slice_is_measured_in_its_plane() -> None:
    one, other = np.zeros((2, 1, 30, 30), bool)
    one[0, 5:15, 5:15] = other[0, 5:15, 8:18] = True
    measured = surface_measures(one, other, (999, 2, 1), 1.0)
    assert measured == pytest.approx({"surface_dice": 0.31187620701139346, "HD95_mm": 3.0})  # DeepMind's program again


def test_an_object_at_the_rim_of_the_image_has_its_surface_there() -> None:
    whole = np.ones((5, 6, 7), bool)
    assert surface_measures(whole, whole, (1, 1, 1), 0.0) == {"surface_dice": 1.0, "HD95_mm": 0.0}
    shorter = whole.copy()
    shorter[-2:] = False
    assert surface_measures(whole, shorter, (1, 1, 1), 0.0)["HD95_mm"] == 2


def test_what_only_one_has_is_no_match_and_what_neither_has_is_no_value() -> None:
    one, nothing = cube(4, 5, 5), np.zeros(SHAPE, bool)
    for pair in ((one, nothing), (nothing, one)):
        measured = surface_measures(*pair, (1, 1, 1), 100.0)
        assert measured["surface_dice"] == 0
        assert math.isnan(measured["HD95_mm"])
        assert instance_measures(*pair)["PQ"] == 0
    assert all(map(math.isnan, surface_measures(nothing, nothing, (1, 1, 1), 1.0).values()))
    neither = instance_measures(nothing, nothing)
    assert math.isnan(neither["PQ"])
    assert math.isnan(neither["instance_F1"])


def test_ignored_voxels_count_nowhere() -> None:
    """Slices annotated here and there, as in sparse annotation: what lies between them may be anything."""
    one, other = cube(4, 5, 5), cube(4, 8, 5)
    ignored = np.ones(SHAPE, bool)
    ignored[[6, 9]] = False
    measured = [surface_measures(one, other, (1, 1, 1), 1.0, ignored)]
    noise = RNG.random(SHAPE) < 0.5
    measured.append(surface_measures(np.where(ignored, noise, one), other, (1, 1, 1), 1.0, ignored))
    at_the_rim = other.copy()
    at_the_rim[:3] = True
    measured.append(surface_measures(one, at_the_rim, (1, 1, 1), 1.0, ignored))
    assert measured[0] == measured[1] == measured[2]
    assert measured[0]["HD95_mm"] == 3
    assert surface_measures(one, one, (1, 1, 1), 0.0, ignored) == {"surface_dice": 1.0, "HD95_mm": 0.0}
    outside = np.where(ignored, one, False)
    assert all(map(math.isnan, surface_measures(outside, outside, (1, 1, 1), 1.0, ignored).values()))


def test_a_surface_that_lies_in_ignored_voxels() -> None:
    """Annotated are some voxels inside of the object, and of a larger one its rim."""
    large, ignored = np.pad(np.ones((16, 26, 26), bool), 2), np.ones(SHAPE, bool)
    ignored[9:11, 14:16, 14:16] = False
    assert all(map(math.isnan, surface_measures(large, large, (1, 1, 1), 1.0, ignored).values()))
    hollow = large.copy()
    hollow[9, 14, 14] = False
    measured = surface_measures(hollow, large, (1, 1, 1), 0.0, ignored)
    assert measured["surface_dice"] == 0
    assert math.isnan(measured["HD95_mm"])


@pytest.mark.parametrize("shape", [SHAPE, (1, 30, 30)])
def test_instances_agree_with_monai(shape: tuple[int, ...]) -> None:
    one = spots(shape if shape[0] > 1 else SHAPE)[2 : 2 + shape[0]]
    other = one & (RNG.random(one.shape) < 0.9) | (spots()[2 : 2 + shape[0]] & (RNG.random(one.shape) < 0.1))
    labelled = [cc3d.connected_components(mask, connectivity=26) for mask in (one, other)]
    images = [torch.from_numpy(image.astype(np.int32)) for image in labelled]
    measured = instance_measures(one, other)
    assert 0 < measured["PQ"] < 1
    assert measured["PQ"] == pytest.approx(float(compute_panoptic_quality(images[1], images[0])), abs=1e-5)
    f1 = float(compute_panoptic_quality(images[1], images[0], metric_name="rq"))
    assert measured["instance_F1"] == pytest.approx(f1, abs=1e-5)
    assert [measured["instances_ref"], measured["instances_pred"]] == [image.max() for image in labelled]


def test_ignored_voxels_are_no_objects() -> None:
    one, ignored = cube(4, 5, 5), np.ones(SHAPE, bool)
    ignored[:5] = False
    assert instance_measures(one, cube(4, 5, 5), ignored)["PQ"] == 1
    assert instance_measures(cube(10, 5, 5), one, ignored)["instances_ref"] == 0
