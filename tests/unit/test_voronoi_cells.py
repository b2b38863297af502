"""Voronoi cells: exact distances, the lowest id at a tie."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnplug_instance_losses.voronoi import voronoi_cells
from support.instances import squared_distances


def scattered(shape: tuple[int, ...], num_ids: int, seed: int) -> np.ndarray:
    """Ids in an order that has nothing to do with their places; some of several voxels."""
    rng = np.random.default_rng(seed)
    ids = np.zeros(shape, np.int32)
    for number in range(1, num_ids + 1):
        for _ in range(rng.integers(1, 4)):
            ids[tuple(rng.integers(0, side) for side in shape)] = number
    present = np.unique(ids[ids > 0])
    return np.searchsorted(present, ids).astype(np.int32) + (ids > 0)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.one_of(st.tuples(*[st.integers(1, 40)] * 2), st.tuples(*[st.integers(1, 24)] * 3)),
    num_ids=st.one_of(st.integers(1, 12), st.just(50)),
    seed=st.integers(0, 2**32 - 1),
)
def test_cells_are_those_of_one_distance_transform_an_id(shape: tuple[int, ...], num_ids: int, seed: int) -> None:
    ids = scattered(shape, num_ids, seed)
    cells = voronoi_cells(ids)
    assert cells.dtype == np.int32
    np.testing.assert_array_equal(cells, squared_distances(ids).argmin(0) + 1)


def test_ties_go_to_the_lowest_id() -> None:
    ids = np.array([[3, 0, 0, 0, 1], [0, 0, 0, 0, 0], [2, 0, 0, 0, 4]], np.int32)
    expected = np.array([[3, 3, 1, 1, 1], [2, 2, 1, 1, 1], [2, 2, 2, 4, 4]])
    np.testing.assert_array_equal(voronoi_cells(ids), expected)
    assert (squared_distances(ids) == squared_distances(ids).min(0)).sum(0).max() == 4, "an example without ties"


@pytest.mark.parametrize("shape", [(3, 1500), (2, 4, 1500)])
def test_keys_of_large_patches_do_not_overflow(shape: tuple[int, ...]) -> None:
    ids = np.zeros(shape, np.int32)
    ids[..., 0] = np.arange(1, ids[..., 0].size + 1).reshape(shape[:-1]) + 1500
    ids[(-1,) * ids.ndim] = 1
    assert int(ids.max()) * shape[-1] ** 2 > 2**31
    cells = voronoi_cells(ids)
    np.testing.assert_array_equal(cells[..., :700], np.broadcast_to(ids[..., :1], (*shape[:-1], 700)))
    assert (cells[..., -700:] == 1).all()
