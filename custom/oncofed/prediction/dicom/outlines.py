"""Outlines of a mask along the edges of its pixels, each hole joined to what it lies in by a channel without width.

A keyhole is the way to draw a hole that every reader of structure sets knows (DICOM PS3.3, section C.8.8.6.3): filled
by either rule, even-odd or winding, it gives the mask back. CLOSEDPLANAR_XOR is younger, and readers that do not know
its name leave such contours out, or fill the hole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
# Steps along pixels' edges: right, down, left, up, as (column, row).
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


def outlines(mask: NDArray[np.bool_]) -> list[Floats]:
    """Return the closed outlines of a mask's pieces.

    Pixels that touch at a corner alone are two pieces.

    Args:
        mask: (row, column).

    Returns:
        (n, 2) corners as (column, row), in pixels: the first pixel's centre is (0, 0), its corners half a pixel off.
        The last corner is joined to the first one.
    """
    loops = _loops(np.asarray(mask, bool))
    outer = [loop for loop in loops if _area(loop) > 0]
    holes = sorted((loop for loop in loops if _area(loop) < 0), key=lambda loop: (-loop[:, 0].max(), loop[:, 1].max()))
    owners = _owners(mask, outer, holes)
    joined = []
    for number, loop in enumerate(outer):
        own = [hole for hole, owner in zip(holes, owners, strict=True) if owner == number]
        joined.append(_without_holes(loop, own) - 0.5)
    return joined


def _loops(mask: NDArray[np.bool_]) -> list[Ints]:
    """Return the closed walks along edges with the mask to the right of each step: outer ones clockwise, holes not."""
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    beyond = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])
    # A pixel's upper edge runs right, its right one down: where each starts, as (row, column) from the pixel.
    offsets = ((0, 0), (0, 1), (1, 1), (1, 0))
    leaving: dict[tuple[int, int], list[int]] = {}
    for direction, (other, offset) in enumerate(zip(beyond, offsets, strict=True)):
        for row, column in (np.argwhere(inside & ~other) + np.array(offset)).tolist():
            leaving.setdefault((column, row), []).append(direction)
    loops = []
    while leaving:
        start = next(iter(leaving))
        loops.append(_walk(start, leaving))
    return loops


def _walk(start: tuple[int, int], leaving: dict[tuple[int, int], list[int]]) -> Ints:
    """Return the corners of one closed walk, without those on straight lines, and take its edges away."""
    corner, direction = start, leaving[start][0]
    first = direction
    corners: list[tuple[int, int]] = []
    while True:
        ways = leaving[corner]
        if len(ways) > 1 and corners:
            # Where two pixels touch at a corner, the walk stays with its own pixel: it turns right.
            turn = (direction + 1) % 4
            following = turn if turn in ways else ways[0]
        else:
            following = first if not corners else ways[0]
        ways.remove(following)
        if not ways:
            del leaving[corner]
        if not corners or following != direction:
            corners.append(corner)
        direction = following
        step = _STEPS[direction]
        corner = (corner[0] + step[0], corner[1] + step[1])
        if corner == start and (corner not in leaving or (direction + 1) % 4 == first):
            return np.array(corners)


def _area(loop: Ints) -> float:
    x, y = loop.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _owners(mask: NDArray[np.bool_], outer: Sequence[Ints], holes: Sequence[Ints]) -> list[int]:
    """Return for each hole the outer loop of the piece that it lies in."""
    if not holes:
        return []
    from scipy import ndimage  # noqa: PLC0415 - takes long to import

    pieces, _ = ndimage.label(mask)
    # The pixel below a loop's first upper edge is the piece's own; that above a hole's is, too.
    by_piece = {_piece(pieces, loop, 0): number for number, loop in enumerate(outer)}
    return [by_piece[_piece(pieces, hole, -1)] for hole in holes]


def _piece(pieces: NDArray[np.integer], loop: Ints, offset: int) -> int:
    column, row = loop[np.lexsort((loop[:, 0], loop[:, 1]))[0]]
    return int(pieces[row + offset, column])


def _without_holes(loop: Ints, holes: Sequence[Ints]) -> Floats:
    """Return a loop with a channel to each hole, from the hole's rightmost corner to the next edge on its right.

    The rightmost hole comes first, so that what lies to the right of a hole is joined already.
    """
    for hole in holes:
        at = int(np.lexsort((hole[:, 1], -hole[:, 0]))[0])
        column, row = hole[at]
        edge, end = _next_edge(loop, int(column), int(row))
        turned = np.roll(hole, -at, axis=0)
        loop = np.concatenate([loop[: edge + 1], [end], turned, turned[:1], [end], loop[edge + 1 :]])
    return loop.astype(np.float64)


def _next_edge(loop: Ints, column: int, row: int) -> tuple[int, Ints]:
    """Return the edge of a loop that is next to the right of a corner, and where a level line meets it."""
    ends = np.roll(loop, -1, axis=0)
    low, high = np.minimum(loop[:, 1], ends[:, 1]), np.maximum(loop[:, 1], ends[:, 1])
    upright = (loop[:, 0] == ends[:, 0]) & (low <= row) & (row <= high) & (loop[:, 0] > column)
    candidates = np.flatnonzero(upright)
    nearest = int(candidates[np.argmin(loop[candidates, 0])])
    return nearest, np.array([loop[nearest, 0], row])
