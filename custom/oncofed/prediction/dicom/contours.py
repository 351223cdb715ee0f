"""Contours of a mask along pixel edges, keyholes for holes.

A keyhole joins a hole to the outer contour by a channel of zero width (DICOM PS3.3, section C.8.8.6.3). Every reader of
structure sets supports it, and filling by the even-odd or the winding rule gives the mask exactly. CLOSEDPLANAR_XOR is
newer: readers that do not know it drop such contours or fill the hole.

Time and memory are linear in the number of pixels, regardless of holes: each unit edge knows its successor, and a
channel changes two successors. ``prediction/outputs/polygons.py`` traces many objects at once: it skips unit
edges and splits rings that touch themselves, as contours here may.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
# Steps along pixels' edges: right, down, left, up, as (column, row).
_STEPS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])


def mask_contours(mask: NDArray[np.bool_]) -> list[Floats]:
    """Return the closed contours of a mask.

    Pixels that touch at a corner alone are two pieces.

    Args:
        mask: (row, column).

    Returns:
        (n, 2) corners as (column, row), in pixels: the first pixel's centre is (0, 0), its corners half a pixel off.
        The last corner is joined to the first one.
    """
    starts, directions, leaving = _edges(np.asarray(mask, bool))
    following = _following(starts, directions, leaving)
    leaves, meets = _channels(starts, directions, leaving, *_cycles(following))
    corners, following = _joined(starts, following, leaves, meets)
    return _without_straight_ones(corners, following, *_cycles(following))


def _edges(mask: NDArray[np.bool_]) -> tuple[Ints, Ints, Ints]:
    """Return unit edges around a mask, with the mask right.

    Returns:
        (edge, 2) where each starts, as (column, row); (edge,) its direction, a number of ``_STEPS``; (direction, row,
        column) the edge that leaves a corner in a direction, else -1.
    """
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    beyond = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])
    # A pixel's upper edge runs right, its right one down: where each starts, as (row, column) from the pixel.
    offsets = ((0, 0), (0, 1), (1, 1), (1, 0))
    leaving = np.zeros((len(_STEPS), *np.add(mask.shape, 1)), bool)
    for way, other, (row, column) in zip(leaving, beyond, offsets, strict=True):
        way[row : row + mask.shape[0], column : column + mask.shape[1]] = inside & ~other
    directions, rows, columns = np.nonzero(leaving)
    numbers = np.full(leaving.shape, -1)
    numbers[leaving] = np.arange(len(rows))
    return np.stack([columns, rows], axis=1), directions, numbers


def _following(starts: Ints, directions: Ints, leaving: Ints) -> Ints:
    """Return each edge's successor."""
    columns, rows = (starts + _STEPS[directions]).T
    # Where two pixels touch at a corner, the contour stays with its own pixel, to the right.
    right, ahead, left = (leaving[(directions + turn) % len(_STEPS), rows, columns] for turn in (1, 0, 3))
    after: Ints = np.where(right >= 0, right, np.where(ahead >= 0, ahead, left))
    return after


def _cycles(following: Ints) -> tuple[Ints, Ints]:
    """Return cycles of the successor map: order and lengths."""
    after = following.tolist()
    order: list[int] = []
    ends = [0]
    for first in range(len(after)):
        at = first
        while after[at] >= 0:
            order.append(at)
            after[at], at = -1, after[at]
        if len(order) > ends[-1]:
            ends.append(len(order))
    return np.array(order, int), np.diff(ends)


def _channels(starts: Ints, directions: Ints, leaving: Ints, order: Ints, lengths: Ints) -> tuple[Ints, Ints]:
    """Return where each hole's channel starts and ends.

    It leaves from the upper end of a hole's rightmost edge and runs level to the next edge. That edge belongs to
    another loop of the same piece, which reaches further to the right: so channels never form a cycle. Both ends are
    corners that only one edge leaves, since the pixels on both sides of a channel are in the mask.

    Returns:
        (hole,) the edges that leave the one end; those that leave the other.
    """
    numbers = np.empty(len(order), int)
    numbers[order] = np.repeat(np.arange(len(lengths)), lengths)
    columns, rows = starts.T
    # Holes run the other way round: their area is negative.
    area = np.bincount(numbers, columns * _STEPS[directions, 1], len(lengths))
    edges = np.flatnonzero(area[numbers] < 0)
    edges = edges[np.lexsort((rows[edges], -columns[edges], numbers[edges]))]
    leaves = edges[np.diff(numbers[edges], prepend=-1) != 0]
    upright = (leaving[1] >= 0) | (leaving[3] >= 0)  # where a vertical edge starts; below, where one ends
    upright[1:] |= leaving[1, :-1] >= 0
    upright[:-1] |= leaving[3, 1:] >= 0
    width = upright.shape[1]
    at_or_right = np.minimum.accumulate(np.where(upright, np.arange(width), width)[:, ::-1], axis=1)[:, ::-1]
    return leaves, leaving[:, rows[leaves], at_or_right[rows[leaves], columns[leaves] + 1]].max(axis=0)


def _joined(starts: Ints, following: Ints, leaves: Ints, meets: Ints) -> tuple[Ints, Ints]:
    """Join each hole to its surroundings by a channel.

    Both ends of a channel are passed twice. The corners that are passed again come after all others.
    """
    edges, holes = len(starts), len(leaves)
    again = edges + np.arange(2 * holes)
    met, left = again[:holes], again[holes:]
    back = np.arange(edges)
    back[leaves] = left
    joined = np.concatenate([back[following], back[following[meets]], met])
    joined[meets] = leaves
    return np.concatenate([starts, starts[meets], starts[leaves]]), joined


def _without_straight_ones(corners: Ints, following: Ints, order: Ints, lengths: Ints) -> list[Floats]:
    """Return closed contours without collinear corners."""
    onward = np.sign(corners[following] - corners)
    before = np.empty_like(onward)
    before[following] = onward
    turns = (before != onward).any(axis=1)[order]
    places = corners[order][turns] - 0.5
    kept = np.add.reduceat(turns, np.cumsum(lengths) - lengths, dtype=int) if len(lengths) else lengths
    return np.split(places, np.cumsum(kept)[:-1]) if len(kept) else []
