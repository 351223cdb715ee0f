"""Exact polygons of numbered objects, along pixel edges.

``prediction/dicom/contours.py`` traces edges too, but of one mask: structure sets need each hole joined to its outer
contour, which needs unit edges. GeoJSON needs separate holes and rings that never touch themselves, for thousands of
objects within seconds, so straight runs are skipped from the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from oncofed.errors import DataError

# Closed rings of [x, y]: the outer ring, then holes.
Polygon = list[list[list[int]]]
_Places = NDArray[np.int64]

# Offset of an edge's end from its pixel's upper left corner: upper, right, lower and left side.
_ENDS = np.array([[1, 0], [1, 1], [0, 1], [0, 0]])


def object_polygons(numbers: NDArray[Any]) -> dict[int, list[Polygon]]:
    """Return the polygons of each object in pixels.

    Coordinates are pixels of the image, x to the right and y down.

    Pixel corners are integers: one pixel is a unit square, and a polygon's area is its number of pixels. Pixels that
    share a side belong together; an object in several pieces has a polygon for each. Outer rings have a positive area
    by the shoelace formula, holes a negative one (RFC 7946, section 3.1.6), and no ring meets itself (OGC 06-103r4,
    section 6.1.11).

    Args:
        numbers: (x, y), a whole number for each object, zero elsewhere.

    Returns:
        Number -> its polygons.

    Raises:
        DataError: the image is a volume.
    """
    if numbers.ndim != 2:
        raise DataError(
            "objects of a volume have no GeoJSON, which is of flat images: take the label image and the table"
        )
    grid = np.pad(np.asarray(numbers).T, 1)
    flat, width = grid.ravel(), grid.shape[1]
    pixels, sides = _edges(flat, width)
    edges, following, touching = _turns(flat, width, pixels, sides)
    rings = _rings(following.tolist(), touching.tolist())
    counts = np.array([len(ring) for ring in rings], np.int64)
    order = edges[np.fromiter(chain.from_iterable(rings), np.int64, counts.sum())]
    corners = np.stack([pixels[order] % width, pixels[order] // width], axis=1) - 1 + _ENDS[sides[order]]
    starts = np.cumsum(counts) - counts
    firsts = pixels[order[starts]]
    holes = _areas(corners, starts, counts) < 0
    pieces = _pieces(flat, width, firsts, holes)
    return _polygons(corners, starts, counts, flat[firsts], pieces, holes)


def _beyond(width: int) -> _Places:
    """Return the offset to the neighbour across each side."""
    return np.array([-width, 1, width, -1])


def _edges(flat: NDArray[Any], width: int) -> tuple[_Places, _Places]:
    """Return pixel and side of each object edge, sorted."""
    inside = np.flatnonzero(flat)
    is_edge = np.stack([flat[inside + beyond] != flat[inside] for beyond in _beyond(width)], axis=1)
    edges = np.flatnonzero(is_edge)
    return inside[edges // 4], edges % 4


def _turns(flat: NDArray[Any], width: int, pixels: _Places, sides: _Places) -> tuple[_Places, _Places, _Places]:
    """Return edges at corners, their successors, and self-contacts.

    An outline stays with its pixel where possible. The third array holds the corner's index where an object touches
    itself, so that its outline passes twice, else -1.
    """
    value = flat[pixels]
    beyond, turned = _beyond(width)[sides], _beyond(width)[(sides + 1) % 4]
    ahead, across = pixels + turned, pixels + turned + beyond
    keeps = flat[ahead] != value
    straight = ~keeps & (flat[across] != value)
    pixel = np.where(keeps, pixels, np.where(straight, ahead, across))
    side = np.where(keeps, sides + 1, np.where(straight, sides, sides + 3)) % 4
    following = np.searchsorted(pixels * 4 + sides, pixel * 4 + side)
    while (passing := straight[following]).any():  # each time twice as far
        following = np.where(passing, following[following], following)
    edges = np.flatnonzero(~straight)
    corner = pixels + _ENDS[sides] @ np.array([1, width])
    touching = np.where(keeps & (flat[across] == value), corner, -1)
    return edges, np.searchsorted(edges, following[edges]), touching[edges]


def _rings(following: Sequence[int], touching: Sequence[int]) -> list[list[int]]:
    """Return each ring's edges in order, split at self-contacts."""
    rings, seen = [], bytearray(len(following))
    for start in range(len(following)):
        ring: list[int] = []
        passed: dict[int, int] = {}
        edge = start
        while not seen[edge]:
            seen[edge] = 1
            ring.append(edge)
            corner = touching[edge]
            if corner >= 0 and corner in passed:
                first = passed[corner] + 1
                rings.append(ring[first:])
                del ring[first:]
                passed = {corner: at for corner, at in passed.items() if at < first}
            elif corner >= 0:
                passed[corner] = len(ring) - 1
            edge = following[edge]
        if ring:
            rings.append(ring)
    return rings


def _areas(corners: _Places, starts: _Places, counts: _Places) -> _Places:
    """Return twice each ring's area (shoelace formula)."""
    after = np.arange(1, len(corners) + 1)
    after[starts + counts - 1] = starts
    x, y = corners.T
    products = x * y[after] - x[after] * y
    return np.add.reduceat(products, starts) if len(starts) else products


def _pieces(flat: NDArray[Any], width: int, firsts: _Places, holes: NDArray[np.bool_]) -> _Places:
    """Return each ring's piece of its object; 0 where irrelevant."""
    values = flat[firsts]
    outer, counts = np.unique(values[~holes], return_counts=True)
    several = np.intersect1d(outer[counts > 1], values[holes])
    pieces = np.zeros(len(values), np.int64)
    if not len(several):
        return pieces
    inside = np.flatnonzero(np.isin(flat, several))
    joined = [(step, inside[flat[inside + step] == flat[inside]]) for step in (1, width)]
    one = np.searchsorted(inside, np.concatenate([pixels for _, pixels in joined]))
    other = np.searchsorted(inside, np.concatenate([pixels + step for step, pixels in joined]))
    graph = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(len(inside), len(inside)))
    _, numbers = connected_components(graph, directed=False)
    unclear = np.isin(values, several)
    pieces[unclear] = numbers[np.searchsorted(inside, firsts[unclear])]
    return pieces


def _polygons(
    corners: _Places,
    starts: _Places,
    counts: _Places,
    values: NDArray[Any],
    pieces: _Places,
    holes: NDArray[np.bool_],
) -> dict[int, list[Polygon]]:
    """Return the rings of each object as polygons."""
    points = corners.tolist()
    found: dict[int, list[Polygon]] = {}
    order = np.lexsort([holes, pieces, values])  # outer ring of each piece first
    columns = (column[order].tolist() for column in (values, starts, counts, holes))
    for value, start, count, is_hole in zip(*columns, strict=True):
        ring = [*points[start : start + count], points[start]]
        if is_hole:
            found[value][-1].append(ring)
        else:
            found.setdefault(value, []).append([ring])
    return found
