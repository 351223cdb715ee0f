"""Group slices by direction, size and pixel size, with tolerances.

No limit cuts through values that are close together: slices that differ by less than ``_APART`` are one group, and the
group is refused if it then varies by more than a volume may.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed.data.dicom.stacks import Slice

# Differences of direction cosines: most within one volume, and least between two directions.
_SAME_DIRECTION, _APART = 5e-3, 0.05
# The same for logarithms of pixel sizes.
_SAME_SIZE, _OTHER_SIZE = 1e-3, 0.01
_UNIT = 0.01

Values = NDArray[np.float64]


def direction(item: Slice) -> list[float]:
    """Return the direction cosines of a slice, in LPS."""
    found: list[float] = item.header.orientation
    return found


def by_plane(slices: Sequence[Slice]) -> list[tuple[list[Slice], str | None]]:
    """Group slices that may be one volume.

    Ambiguous groups come with the reason why they are not.
    """
    sizes: dict[Any, list[Slice]] = defaultdict(list)
    wrong: list[Slice] = []
    for item, right in zip(slices, _are_directions(slices) if slices else (), strict=True):
        if right:
            spacing = item.header.spacing
            sized = bool(spacing) and min(spacing) > 0 and all(map(math.isfinite, spacing))
            sizes[item.header.rows, item.header.columns, sized].append(item)
        else:
            wrong.append(item)
    found: list[tuple[list[Slice], str | None]] = []
    for (_, _, sized), group in sizes.items():
        for turned, reason in _by_direction(group):
            found += [(turned, reason)] if reason or not sized else _by_size(turned)
    if wrong:
        reason = "has directions or positions that are none (ImageOrientationPatient, ImagePositionPatient)"
        found.append((wrong, reason))
    return found


def together(values: Values, near: float) -> NDArray[np.int64]:
    """Return the group of each row of (n, d).

    Rows nearer than ``near`` share a group, however long the chain.

    Rows within a quarter of ``near`` of a representative are compared through it.
    """
    rows, inverse = np.unique(values, axis=0, return_inverse=True)
    leaders: list[Values] = []
    of = np.empty(len(rows), np.int64)
    for number, row in enumerate(rows):
        apart = np.abs(np.array(leaders) - row).max(axis=1) if leaders else np.array([np.inf])
        nearest = int(apart.argmin())
        if apart[nearest] > near / 4:
            nearest = len(leaders)
            leaders.append(row)
        of[number] = nearest
    groups = np.arange(len(leaders))
    for one, leader in enumerate(leaders):
        close = np.abs(np.array(leaders) - leader).max(axis=1) < near
        joined = np.isin(groups, groups[close])
        groups[joined] = groups[one]
    result: NDArray[np.int64] = groups[of][inverse.reshape(-1)]
    return result


def _are_directions(slices: Sequence[Slice]) -> NDArray[np.bool_]:
    """Return which slices have a valid position and orientation.

    The orientation is two perpendicular directions of length one.
    """
    values = np.array([[*item.header.orientation, *item.header.position] for item in slices])
    row, column = values[:, :3], values[:, 3:6]
    units = np.abs(np.linalg.norm(values[:, :6].reshape(-1, 2, 3), axis=2) - 1).max(axis=1)
    across = np.abs((row * column).sum(axis=1))
    found: NDArray[np.bool_] = np.isfinite(values).all(axis=1) & (units < _UNIT) & (across < _UNIT)
    return found


def _by_direction(group: list[Slice]) -> list[tuple[list[Slice], str | None]]:
    values = np.array([direction(item) for item in group])
    if _spread(values) <= _SAME_DIRECTION:
        return [(group, None)]
    found: list[tuple[list[Slice], str | None]] = []
    for part, turned in _parts(group, values, together(values, _APART)):
        if _spread(turned) <= _SAME_DIRECTION:
            found.append((part, None))
            continue
        smaller = list(_parts(part, turned, together(turned, _SAME_DIRECTION)))
        if _are_volumes_apart(smaller, turned):
            found += [(stack, None) for stack, _ in smaller]
        else:
            degrees = math.degrees(2 * math.asin(min(1.0, float(np.linalg.norm(np.ptp(turned, axis=0))) / 2)))
            found.append((part, f"has slices that are turned against each other by up to {degrees:.2f} degrees"))
    return found


def _are_volumes_apart(parts: Sequence[tuple[list[Slice], Values]], turned: Values) -> bool:
    """Return whether parts are volumes that do not interleave.

    Each has one direction, as with stacks for the discs of a spine.
    """
    mean = turned.mean(axis=0)
    normal = np.cross(mean[:3], mean[3:])
    ends = []
    for part, values in parts:
        along = np.array([item.header.position for item in part]) @ normal
        if len(part) < 2 or _spread(values) > _SAME_DIRECTION:
            return False
        ends.append((along.min(), along.max()))
    ends.sort()
    return all(one[1] < two[0] for one, two in pairwise(ends))


def _by_size(group: list[Slice]) -> list[tuple[list[Slice], str | None]]:
    values = np.log([item.header.spacing for item in group])
    if _spread(values) <= _SAME_SIZE:
        return [(group, None)]
    found: list[tuple[list[Slice], str | None]] = []
    for part, sizes in _parts(group, values, together(values, _OTHER_SIZE)):
        low, high = np.exp(sizes.min()), np.exp(sizes.max())
        reason = None if _spread(sizes) <= _SAME_SIZE else f"has slices with pixels of {low:.4g} to {high:.4g} mm"
        found.append((part, reason))
    return found


def _spread(values: Values) -> float:
    return float(np.ptp(values, axis=0).max())


def _parts(group: list[Slice], values: Values, numbers: NDArray[np.int64]) -> list[tuple[list[Slice], Values]]:
    return [
        ([item for item, number in zip(group, numbers, strict=True) if number == part], values[numbers == part])
        for part in dict.fromkeys(numbers.tolist())
    ]
