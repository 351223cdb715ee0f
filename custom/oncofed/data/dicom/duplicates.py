"""Find copies of files: the same place and pixels.

UIDs prove nothing, as anonymisers repeat and renew them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from oncofed.data.dicom.header_types import ImageHeader
from oncofed.data.dicom.stacks import Slice

SAME_PLACE_MM = 0.02
_SAME_DIRECTION = 5e-3
_NOT_TELLING = {"InstanceNumber"}


def place_tolerance(slices: Iterable[Slice]) -> float:
    """Return the tolerance of positions in mm.

    It is smaller for very small pixels.
    """
    sides = [side for item in slices for side in item.header.spacing or () if side > 0]
    return min(SAME_PLACE_MM, 0.1 * min(sides)) if sides else SAME_PLACE_MM


def suspects(series: Sequence[Slice]) -> list[list[Slice]]:
    """Return groups of files that may be copies.

    Slices with a place may be copies if place and headers are the same, other images if their UIDs are. Their pixels
    are not compared yet.
    """
    groups: dict[Any, list[Slice]] = defaultdict(list)
    for item in series:
        header = item.header
        if is_placed(header):
            tells = tuple((k, v) for k, v in header.tells.items() if k not in _NOT_TELLING)
            groups[header.patient, header.rows, header.columns, tells].append(item)
        elif header.instance:
            groups[header.patient, header.instance].append(item)
    found: list[list[Slice]] = []
    for group in groups.values():
        if len(group) > 1:
            found += at_one_place(group) if is_placed(group[0].header) else [group]
    return found


def is_placed(header: ImageHeader) -> bool:
    """Return whether a header states its one frame's place."""
    return bool(header.position and header.orientation) and header.frames == 1


def at_one_place(group: Sequence[Slice]) -> list[list[Slice]]:
    """Return groups of slices with one place and direction."""
    places = np.array([[*item.header.position, *item.header.orientation] for item in group])
    # An unlikely scanner axis, so that few slices at other places have the same distance along it.
    along = places[:, :3] @ np.array([0.48, 0.62, 0.62])
    order = np.argsort(along, kind="stable")
    reach = place_tolerance(group)
    near = np.diff(along[order]) <= 2 * reach
    found: list[list[Slice]] = []
    run = [int(order[0])]
    for number, close in zip(order[1:], [*near], strict=True):
        if not close:
            found += _alike(group, places, run, reach)
            run = []
        run.append(int(number))
    return found + _alike(group, places, run, reach)


def _alike(group: Sequence[Slice], places: Any, run: list[int], reach: float) -> list[list[Slice]]:
    """Return groups at one place among nearby slices."""
    of = {number: number for number in run}
    for one, two in combinations(run, 2):
        apart = np.abs(places[one] - places[two])
        if apart[:3].max() <= reach and apart[3:].max() <= _SAME_DIRECTION:
            first = min(of[one], of[two])
            of = {number: first if at in {of[one], of[two]} else at for number, at in of.items()}
    sets: dict[int, list[Slice]] = defaultdict(list)
    for number in sorted(run):
        sets[of[number]].append(group[number])
    return [found for found in sets.values() if len(found) > 1]


def copies_among(groups: Sequence[Sequence[Slice]], digests: Mapping[str, str]) -> set[str]:
    """Return paths of files that copy another in their group."""
    copies: set[str] = set()
    for group in groups:
        seen: set[str] = set()
        for item in group:
            digest = digests.get(item.path, item.path)
            if digest in seen:
                copies.add(item.path)
            seen.add(digest)
    return copies
