"""Voronoi cells of labelled voxels: exact, and the same everywhere because everything is whole numbers.

Axis letters: Z Y X, of which Z has length 1 in 2D.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import distance_transform_edt

_SLAB = 8  # planes that are worked on together: long rows, and little enough for the processor's cache
_BLOCK = 4  # side of the cubes for which a bound of the distance is computed; divides _SLAB


def voronoi_cells(ids: np.ndarray) -> np.ndarray:
    """The id that is nearest to every voxel.

    Distances are Euclidean, in voxels; of several ids at the same distance the lowest wins (a distance transform with
    indices leaves that to chance). The pairs (squared distance, id) are packed into one number each, and their minimum
    is found one axis after the other, which is exact because squared distances add up. Only rows that hold something
    within reach are looked at, so that few components (few rows) and many (short distances) both cost little.

    Args:
        ids: (Y, X) or (Z, Y, X) of integers, 0 where there is nothing and above 0 somewhere.

    Returns:
        The cells, of the same shape, int32, without 0.

    Source:
        Felzenszwalb and Huttenlocher 2012, Distance transforms of sampled functions, doi:10.4086/toc.2012.v008a019:
        the transform as minima along the axes.
    """
    grid = ids.reshape((1,) * (3 - ids.ndim) + ids.shape)
    base = 1 << int(ids.max()).bit_length()
    longest = sum((side - 1) ** 2 for side in ids.shape)
    far = math.isqrt(longest) + 1
    dtype = np.dtype(np.int32 if (far + max(ids.shape)) ** 2 * base < 2**31 else np.int64)
    keys = _nearest_along_z(grid, base, dtype, far)
    reach = _reach(grid > 0)
    for start in range(0, len(keys), _SLAB):
        slab = keys[start : start + _SLAB]
        within = reach[start // _BLOCK : (start + _SLAB) // _BLOCK].max(axis=0)
        rows = _spread(np.ascontiguousarray(slab.transpose(1, 0, 2)), within.max(axis=1), base)  # Y Z X
        rows = _spread(np.ascontiguousarray(rows.transpose(2, 1, 0)), within.max(axis=0), base)  # X Z Y
        slab[:] = rows.transpose(1, 2, 0)
    return (keys & (base - 1)).astype(np.int32).reshape(ids.shape)


def _nearest_along_z(grid: np.ndarray, base: int, dtype: np.dtype, far: int) -> np.ndarray:
    """Keys, squared distance * base + id, of what is nearest in the same line along Z; a distance of ``far`` where
    nothing is."""
    keys = np.full(grid.shape, far**2 * base, dtype)
    for planes, found in ((grid, keys), (grid[::-1], keys[::-1])):
        nearest = np.zeros(grid.shape[1:], dtype)
        distance = np.full(grid.shape[1:], far, dtype)
        for plane, key in zip(planes, found, strict=True):
            here = plane > 0
            distance += 1
            np.putmask(distance, here, 0)
            np.putmask(nearest, here, plane)
            np.minimum(key, distance * distance * base + nearest, out=key)
    return keys


def _spread(keys: np.ndarray, reach: np.ndarray, base: int) -> np.ndarray:
    """For keys (rows, *) the minimum over rows r of keys[r] + (row - r)^2 * base.

    ``reach`` (blocks of rows) bounds |row - r|, and every result: larger ones need not be right.
    """
    flat = keys.reshape(len(keys), -1)
    farthest = min(int(reach.max()), len(keys) - 1)
    useful = np.flatnonzero(flat.min(axis=1) < (int(reach.max()) ** 2 + 1) * base)
    if 1.5 * farthest < len(useful):
        return _spread_step_by_step(flat, farthest, base).reshape(keys.shape)
    flat = flat[useful]
    moved, lowest = np.empty_like(flat), np.empty((len(keys), flat.shape[1]), keys.dtype)
    for row, within in enumerate(np.repeat(reach, _BLOCK)[: len(keys)]):
        first, end = np.searchsorted(useful, (row - within, row + within + 1))
        steps = ((useful[first:end] - row) ** 2 * base).astype(keys.dtype)[:, None]
        np.add(flat[first:end], steps, out=moved[first:end])
        np.minimum.reduce(moved[first:end], axis=0, out=lowest[row])
    return lowest.reshape(keys.shape)


def _spread_step_by_step(flat: np.ndarray, farthest: int, base: int) -> np.ndarray:
    """The same for full volumes, whose distances are short: all rows moved by 1, 2, ... in both directions."""
    lowest, moved = flat.copy(), np.empty_like(flat)
    for step in range(1, farthest + 1):
        np.add(flat, step**2 * base, out=moved)
        np.minimum(lowest[step:], moved[:-step], out=lowest[step:])
        np.minimum(lowest[:-step], moved[step:], out=lowest[:-step])
    return lowest


def _reach(occupied: np.ndarray) -> np.ndarray:
    """For every cube of voxels: none of it is further from the nearest occupied voxel than this."""
    farthest = math.isqrt(sum((side - 1) ** 2 for side in occupied.shape))
    for axis in range(occupied.ndim):
        occupied = np.logical_or.reduceat(occupied, np.arange(0, occupied.shape[axis], _BLOCK), axis=axis)
    blocks = distance_transform_edt(~occupied)
    bound = np.ceil(blocks * _BLOCK + (_BLOCK - 1) * math.sqrt(3)).astype(int)
    return np.minimum(bound, farthest)
