"""The area that closed contours of one plane enclose.

The region is the union of the contours: a duplicate, or an overlap with another contour, takes nothing away. A contour
wholly inside another one is a hole in it, and one inside a hole is an island. Contours of the type
CLOSEDPLANAR_XOR are combined by exclusive or (DICOM PS3.3, C.8.8.6.3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
# In voxels or mm, which makes no difference here. Points no farther out than this count as inside: a hole may share a
# piece of its organ's outline, and coordinates stored as text have few decimals.
_ON_OUTLINE = 0.05
# Outlines that are nowhere farther apart than this are duplicates: no voxel fits between them.
_TWICE = 0.2
_STEP = 0.25
# Whether a point exactly on an outline is inside depends on the drawing direction, so that points on a keyhole's
# channel, drawn there and back, would be cut out. This shift avoids it.
_NUDGE = np.array([1e-5, 7e-6])


@dataclass(frozen=True)
class Outline:
    """A closed contour in a plane.

    Attributes:
        points: (n, 2) in the plane's coordinates.
        depth: of the plane.
        xor: whether it is combined by exclusive or.
    """

    points: Floats
    depth: float
    xor: bool = False

    @cached_property
    def low(self) -> Floats:
        """Lowest corner."""
        return np.asarray(self.points.min(axis=0))

    @cached_property
    def high(self) -> Floats:
        """Highest corner."""
        return np.asarray(self.points.max(axis=0))

    @cached_property
    def area(self) -> float:
        """Enclosed area."""
        x, y = (self.points - self.points[0]).T
        return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2

    @cached_property
    def _path(self) -> Any:
        from matplotlib.path import Path as Polygon  # noqa: PLC0415 - takes long to import

        return Polygon(self.points)

    @cached_property
    def _walk(self) -> Floats:
        """Points all along the outline."""
        ends = np.roll(self.points, -1, axis=0)
        counts = np.clip(np.ceil(np.linalg.norm(ends - self.points, axis=1) / _STEP).astype(int), 1, 400)
        parts = np.concatenate([np.arange(count) / count for count in counts])[:, None]
        walk: Floats = np.repeat(self.points, counts, axis=0) * (1 - parts) + np.repeat(ends, counts, axis=0) * parts
        return walk

    def encloses(self, points: Floats) -> Mask:
        """Return which of (n, 2) points lie inside.

        A point on the outline belongs to the area above it along both axes.
        """
        return np.asarray(self._path.contains_points(points + _NUDGE))

    def contains(self, other: Outline) -> bool:
        """Return whether another outline lies wholly inside."""
        out = other.points[~self.encloses(other.points)]
        if self._farthest(out) > _ON_OUTLINE:
            return False
        walk = other._walk
        return self._farthest(walk[~self.encloses(walk)]) <= _ON_OUTLINE

    def is_twice(self, other: Outline) -> bool:
        """Return whether two outlines enclose the same voxels."""
        return self._farthest(other._walk) < _TWICE and other._farthest(self._walk) < _TWICE

    def _farthest(self, points: Floats) -> float:
        """Return the largest distance of points (n, 2) from it."""
        starts, ways = self.points, np.roll(self.points, -1, axis=0) - self.points
        lengths = np.maximum((ways**2).sum(axis=1), 1e-12)
        farthest = 0.0
        for some in np.array_split(points, max(1, len(points) * len(starts) // 1_000_000)):
            if not len(some):
                continue
            from_start = some[:, None] - starts
            along = np.clip((from_start * ways).sum(axis=2) / lengths, 0, 1)
            nearest = ((from_start - along[..., None] * ways) ** 2).sum(axis=2).min(axis=1)
            farthest = max(farthest, float(np.sqrt(nearest.max())))
        return farthest


class Region:
    """The contours of one plane.

    Args:
        outlines: of one region, in one plane.

    Attributes:
        depth: of the plane.
        doubled: number of duplicate contours, which are drawn once.
        low: lowest corner of all.
        high: highest corner of all.
    """

    def __init__(self, outlines: Sequence[Outline]) -> None:
        self.depth = float(np.mean([outline.depth for outline in outlines]))
        self.low = np.min([outline.low for outline in outlines], axis=0)
        self.high = np.max([outline.high for outline in outlines], axis=0)
        self._xor = [outline for outline in outlines if outline.xor]
        closed = sorted((o for o in outlines if not o.xor), key=lambda outline: -outline.area)
        self._closed = _once(closed)
        self.doubled = len(closed) - len(self._closed)
        self._holes = _holes(self._closed)

    def parts(self, points: Floats) -> Iterator[Mask]:
        """Yield each part's mask of (n, 2) points.

        A part is an outer contour without its holes, with their islands.
        """
        if self._xor:
            yield np.logical_xor.reduce([outline.encloses(points) for outline in self._xor])
        filled: dict[int, Mask] = {}
        for number in reversed(range(len(self._closed))):  # the smallest first: holes before the outlines around them
            filled[number] = self._closed[number].encloses(points)
            for hole in self._holes[number]:
                filled[number] &= ~filled[hole]
        inner = {hole for holes in self._holes for hole in holes}
        yield from (mask for number, mask in sorted(filled.items()) if number not in inner)


def _once(outlines: Sequence[Outline]) -> list[Outline]:
    """Return outlines without duplicates; given by falling size."""
    if len(outlines) < 2:
        return list(outlines)
    boxes = _boxes(outlines)
    near = (np.abs(boxes[:, None] - boxes) <= _TWICE).all(axis=2)
    again: set[int] = set()
    for first, second in np.argwhere(np.triu(near, 1)).tolist():
        if first not in again and outlines[first].is_twice(outlines[second]):
            again.add(second)
    return [outline for number, outline in enumerate(outlines) if number not in again]


def _holes(outlines: Sequence[Outline]) -> list[list[int]]:
    """Return the direct children of each outline.

    They lie inside it, and in no other outline inside it. Outlines are given by falling size.
    """
    inside: list[set[int]] = [set() for _ in outlines]
    if len(outlines) > 1:
        boxes = _boxes(outlines)
        nested = (boxes[:, None] <= boxes + _ON_OUTLINE).all(axis=2)
        for outer, inner in np.argwhere(np.triu(nested, 1)).tolist():
            if outlines[outer].contains(outlines[inner]):
                inside[outer].add(inner)
    return [sorted(own - {deeper for n in own for deeper in inside[n]}) for own in inside]


def _boxes(outlines: Sequence[Outline]) -> Floats:
    """Return (outline, 4): lowest corner, and negated highest one.

    Outlines are given by falling size.
    """
    return np.array([[*outline.low, *-outline.high] for outline in outlines])
