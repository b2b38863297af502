"""``SamplingLoader``: where patches are cut, against nnU-Net's own loader and its own cropping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from hypothesis import given, settings
from hypothesis import strategies as st
from nnplug_sampling.loader import SamplingLoader
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from scipy.stats import chisquare

WITH_IGNORE = LabelManager({"background": 0, "one": 1, "ignore": 2}, None)
WITHOUT_IGNORE = LabelManager({"background": 0, "one": 1}, None)
ANNOTATED = (-1, 0, 1)

pytestmark = pytest.mark.filterwarnings("ignore:Warning! No annotated pixels")


class Cases:
    """What a loader asks of a data set before it loads a case."""

    source_folder = "unused"

    def __init__(self, *identifiers: str) -> None:
        self.identifiers = list(identifiers)


def make(
    loader: type[nnUNetDataLoader],
    initial: Sequence[int],
    final: Sequence[int],
    labels: LabelManager = WITH_IGNORE,
    **settings: Any,
) -> Any:
    if loader is SamplingLoader:
        settings = {"better_ignore": True, "log": lambda _: None, **settings}
    return loader(Cases("a"), 2, initial, final, labels, oversample_foreground_percent=0.33, **settings)


def locations(*voxels: Sequence[int], foreground: Sequence[Sequence[int]] = ()) -> dict[Any, np.ndarray]:
    """Class locations as nnU-Net's preprocessing keeps them, with the channel in front, that can not be written to."""
    found = {}
    for key, listed in ((ANNOTATED, voxels), (1, foreground)):
        found[key] = np.array([(0, *voxel) for voxel in listed], np.int64).reshape(-1, 4)
        found[key].setflags(write=False)
    return found


def voxel_in_final_patch(loader: Any, shape: Sequence[int], voxel: Sequence[int]) -> np.ndarray:
    """Where a voxel is in the final patch, by nnU-Net's own cropping and padding: one row, none if it is outside."""
    lower, upper = loader.get_bbox(shape, False, locations(voxel))
    volume = np.zeros((1, *shape), np.float32)
    volume[(0, *voxel)] = 1
    patch = torch.from_numpy(crop_and_pad_nd(volume, [list(sides) for sides in zip(lower, upper, strict=True)], 0))
    final = tuple(loader.final_patch_size)
    if loader.patch_size_was_2d:
        patch, final = patch[:, 0], final[1:]
    assert patch.shape[1:] == tuple(loader.patch_size)[-len(final) :]
    cropped = SpatialTransform(final, 0, False, p_elastic_deform=0, p_rotation=0, p_scaling=0)(image=patch)["image"]
    return torch.nonzero(cropped[0]).numpy()


@st.composite
def geometries(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Initial and final patch in 2D or 3D, shape of a case, a voxel of it. Patches may be larger than the case."""
    dims = draw(st.sampled_from((2, 3)))
    final = tuple(draw(st.integers(1, 12)) for _ in range(dims))
    initial = tuple(side + draw(st.integers(0, 9)) for side in final)
    shape = tuple(draw(st.integers(1, 24)) for _ in range(3))
    return initial, final, shape, tuple(draw(st.integers(0, side - 1)) for side in shape)


seeds = st.integers(0, 2**32 - 1)


@given(geometries(), seeds)
@settings(max_examples=400)
def test_the_voxel_is_always_in_the_final_patch(geometry: Any, seed: int) -> None:
    initial, final, shape, voxel = geometry
    np.random.seed(seed)
    assert len(voxel_in_final_patch(make(SamplingLoader, initial, final), shape, voxel)) == 1


@given(geometries(), seeds)
def test_patches_stay_where_nnunet_lets_them_be(geometry: Any, seed: int) -> None:
    initial, final, shape, voxel = geometry
    stock, ours = make(nnUNetDataLoader, initial, final, WITHOUT_IGNORE), make(SamplingLoader, initial, final)
    np.random.seed(seed)
    start, _ = ours.get_bbox(shape, False, locations(voxel))
    # the random patches of the stock loader reach every place that it allows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.random, "randint", lambda *limits: limits[0])
        first, _ = stock.get_bbox(shape, False, None)
        patch.setattr(np.random, "randint", lambda *limits: limits[1] - 1)
        last, _ = stock.get_bbox(shape, False, None)
    assert all(low <= begin <= high for low, begin, high in zip(first, start, last, strict=True))


@pytest.mark.parametrize(
    ("initial", "final"),
    [((9, 8, 7), (3, 4, 5)), ((8, 9, 5), (3, 4, 5)), ((3, 4, 5), (3, 4, 5)), ((11, 12), (5, 8))],
    ids=lambda size: "x".join(map(str, size)),
)
def test_every_place_in_the_final_patch_is_as_likely(initial: tuple[int, ...], final: tuple[int, ...]) -> None:
    loader = make(SamplingLoader, initial, final)
    np.random.seed(1)
    counts = np.zeros(final)
    for _ in range(60 * counts.size):
        lower, _ = loader.get_bbox((40, 40, 40), False, locations((20, 20, 20)))
        start = np.array(lower) + np.array(loader.patch_size) // 2 - np.array(loader.final_patch_size) // 2
        counts[tuple((20 - start)[-len(final) :])] += 1
    assert chisquare(counts.ravel()).pvalue > 0.001
    assert counts.sum() == 60 * counts.size


def test_stock_keeps_the_voxel_in_the_middle_and_this_does_not() -> None:
    np.random.seed(0)
    places = [voxel_in_final_patch(make(SamplingLoader, (7, 7, 7), (4, 4, 4)), (30,) * 3, (15,) * 3) for _ in range(40)]
    assert {int(place) for place in np.concatenate(places).ravel()} == {0, 1, 2, 3}
    stock = make(nnUNetDataLoader, (7, 7, 7), (4, 4, 4))
    assert len({tuple(stock.get_bbox((30,) * 3, False, locations((15,) * 3))[0]) for _ in range(40)}) == 1


def both(seed: int, labels: LabelManager, geometry: Any, force_fg: bool, given: Any, **more: Any) -> list[Any]:
    """The patch of the stock loader and of this one from the same state of the random numbers, and the state after."""
    initial, final, shape, _ = geometry
    found = []
    for loader in (nnUNetDataLoader, SamplingLoader):
        np.random.seed(seed)
        bbox = make(loader, initial, final, labels).get_bbox(shape, force_fg, given, **more)
        found.append(([[int(side) for side in sides] for sides in bbox], np.random.randint(2**31)))
    return found


@given(geometries(), seeds, st.booleans())
def test_forced_draws_are_those_of_stock(geometry: Any, seed: int, has_foreground: bool) -> None:
    voxel = geometry[-1]
    stock, ours = both(seed, WITH_IGNORE, geometry, True, locations(voxel, foreground=[voxel] * has_foreground))
    assert ours == stock


@given(geometries(), seeds, st.booleans())
def test_without_ignore_label_all_draws_are_those_of_stock(geometry: Any, seed: int, force_fg: bool) -> None:
    stock, ours = both(seed, WITHOUT_IGNORE, geometry, force_fg, {1: locations(geometry[-1])[ANNOTATED]})
    assert ours == stock


@given(geometries(), seeds)
def test_a_case_without_annotation_gets_the_random_patch_of_stock(geometry: Any, seed: int) -> None:
    stock, ours = both(seed, WITH_IGNORE, geometry, False, locations())
    assert ours == stock


@given(st.lists(st.tuples(*[st.integers(0, 9)] * 3), min_size=1, max_size=20), seeds)
def test_the_voxel_is_the_one_that_stock_picks(voxels: list[tuple[int, int, int]], seed: int) -> None:
    starts = []
    for loader in (nnUNetDataLoader, SamplingLoader):
        np.random.seed(seed)
        starts.append(list(make(loader, (1, 1, 1), (1, 1, 1)).get_bbox((10, 10, 10), False, locations(*voxels))[0]))
    assert starts[0] == starts[1]


def test_class_locations_stay_as_they_are() -> None:
    given = locations((3, 4, 5), (6, 7, 8), foreground=[(3, 4, 5)])
    before = {key: value.copy() for key, value in given.items()}
    loader = make(SamplingLoader, (8, 8, 8), (5, 5, 5))
    for force_fg in (False, True) * 20:
        loader.get_bbox((20, 20, 20), force_fg, given)
    assert all(np.array_equal(given[key], before[key]) for key in before)


def test_data_without_ignore_label_is_said_once() -> None:
    said: list[str] = []
    make(SamplingLoader, (8, 8), (5, 5), WITHOUT_IGNORE, log=said.append)
    make(SamplingLoader, (8, 8), (5, 5), WITHOUT_IGNORE, log=said.append, better_ignore=False)
    make(SamplingLoader, (8, 8), (5, 5), WITH_IGNORE, log=said.append)
    assert said == [
        "better_ignore_sampling changes nothing: this data set has no ignore label. Patches are as in nnU-Net."
    ]


def test_not_asked_for_it_is_the_stock_loader() -> None:
    np.random.seed(3)
    stock = make(nnUNetDataLoader, (9, 9, 9), (5, 5, 5)).get_bbox((30,) * 3, False, locations((15,) * 3))
    np.random.seed(3)
    loader = make(SamplingLoader, (9, 9, 9), (5, 5, 5), better_ignore=False)
    assert loader.get_bbox((30,) * 3, False, locations((15,) * 3)) == stock
    assert loader.sampling_probabilities is None
