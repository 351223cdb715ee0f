"""Voxels of an image on either side of a plane."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# Share of a voxel below which differences are rounding of numbers stored as text.
ROUNDING = 1e-3


def voxels_near(
    to_plane: Floats, shape: Sequence[int], low: Floats, high: Floats
) -> Iterator[tuple[tuple[Ints, Ints, Ints], Floats]]:
    """Yield voxels in a box around a plane, by slice.

    Args:
        to_plane: (4, 4), from voxels to the plane's coordinates: two in the plane, and the distance from it.
        shape: of the image, three axes.
        low: (3,) the box's lowest corner, in the plane's coordinates, inclusive.
        high: (3,) its highest corner, exclusive.

    Yields:
        Their indices, one array per axis, and their coordinates in the plane, (voxel, 2).
    """
    corners = np.array([*product(*zip(low, high, strict=True))])
    inverse = np.linalg.inv(to_plane)
    reached = corners @ inverse[:3, :3].T + inverse[:3, 3]
    first = np.maximum(np.floor(reached.min(axis=0) - ROUNDING).astype(int), 0)
    last = np.minimum(np.ceil(reached.max(axis=0) + ROUNDING).astype(int) + 1, shape)
    if (last <= first).any():
        return
    grid = np.meshgrid(np.arange(first[0], last[0]), np.arange(first[1], last[1]), indexing="ij")
    x, y = grid[0].ravel(), grid[1].ravel()
    flat = x[:, None] * to_plane[:3, 0] + y[:, None] * to_plane[:3, 1] + to_plane[:3, 3]
    for z in range(first[2], last[2]):
        places = flat + z * to_plane[:3, 2]
        inside = np.flatnonzero(((places >= low) & (places < high)).all(axis=1))
        if len(inside):
            yield (x[inside], y[inside], np.full(len(inside), z)), places[inside, :2]


def reaches(depths: Floats, half: float) -> list[tuple[float, float]]:
    """Return how far each plane reaches, below and above itself.

    Half way to its neighbours, so that each point between two planes belongs to the nearest one alone; ``half`` if the
    neighbour is not the next plane.

    Args:
        depths: of the planes, ascending.
        half: how far a plane without neighbours reaches.
    """
    gaps = np.diff(depths)
    ways = np.where(gaps <= 2 * half * 1.2, gaps / 2, half)
    return list(zip([-half, *(-ways)], [*ways, half], strict=True))
