"""Images that are copies of others: the same file, or the same picture rescaled, encoded anew or resampled.

Thumbnails are compared by their correlation. With mean 0 and norm 1 two of them correlate by more than c where they lie
nearer than sqrt(2 - 2 c) to each other, and no projection lengthens a distance: sorted along the direction in which
they spread most, each is compared with its neighbours only, and none is missed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oncofed.data import facts
from oncofed.data.answers import KEEP_ALL, SAME_PATIENT
from oncofed.data.decisions import name_of, settled
from oncofed.data.manifest import Entry, Manifest, Split

COPIES = "copies"
# Thumbnails that correlate by more than this show the same image, rescaled, encoded anew or resampled.
_SAME_IMAGE = 0.998
_ROWS_AT_ONCE = 256
_SAMPLE = 20_000
_MOST_LINKS = 100_000
# Of float32: how far a product of two thumbnails may be off.
_ROUNDING = 1e-5

Case = tuple[Split, Entry]


@dataclass(frozen=True)
class Copy:
    """One image that is another one's copy.

    Attributes:
        of: number of the other one in its group; -1: the first of the group, which is nobody's copy.
        correlation: of their thumbnails; None: they are the same file.
    """

    of: int
    correlation: float | None = None


@dataclass(frozen=True)
class CopyGroup:
    """Images that are copies of each other, by a chain where there is one.

    Attributes:
        cases: at least two, in the order of the manifest.
        copies: of which each is a copy.
    """

    cases: tuple[Case, ...]
    copies: tuple[Copy, ...]

    @property
    def exact(self) -> bool:
        """All are the same file."""
        return all(copy.correlation is None for copy in self.copies[1:])

    def contradiction(self) -> tuple[Entry, Entry] | None:
        """Return two of its cases whose labels differ, where there are such."""
        labelled = [entry for _, entry in self.cases if entry.label is not None]
        return next(((labelled[0], other) for other in labelled[1:] if _differ(labelled[0], other)), None)


def copy_groups(manifest: Manifest) -> list[CopyGroup]:
    """Return the groups of copies of a dataset about which nobody has decided.

    Two pictures that look alike are copies where they are of two patients or in two lists: two visits of one patient on
    one side of the split do no harm. The same file twice always is.
    """
    cases = list(manifest.by_split())
    links = _Links(len(cases))
    same_file = settled(manifest, COPIES, (SAME_PATIENT,))
    by_checksum: dict[str, int] = {}
    for number, (_, entry) in enumerate(cases):
        other = by_checksum.setdefault(entry.checksum, number) if entry.checksum else number
        if other != number and not _together(same_file, cases[other], cases[number]):
            links.add(other, number, None)
    alike = settled(manifest, COPIES, (SAME_PATIENT, KEEP_ALL))
    _link_alike(cases, links, alike)
    return links.groups(cases)


class _Links:
    """Which cases are copies of which, and the groups that follow from it."""

    def __init__(self, count: int) -> None:
        self._parents = np.arange(count)
        self._found: dict[int, dict[int, float | None]] = defaultdict(dict)

    def add(self, one: int, two: int, correlation: float | None) -> None:
        """Link two cases, and remember it as what is said of them."""
        self._found[one].setdefault(two, correlation)
        self._found[two].setdefault(one, correlation)
        self.unite(one, two)

    def unite(self, one: int, two: int) -> None:
        """Put two cases into one group."""
        low, high = sorted((self._root(one), self._root(two)))
        self._parents[high] = low

    def roots(self) -> NDArray[np.int64]:
        """Return of each case the first one of its group."""
        parents = self._parents
        while not np.array_equal(parents, parents[parents]):
            parents = parents[parents]
        self._parents = parents
        return parents

    def knows(self, number: int) -> bool:
        """Return whether a case was linked."""
        return number in self._found

    def groups(self, cases: Sequence[Case]) -> list[CopyGroup]:
        """Return the groups of more than one."""
        members: dict[int, list[int]] = defaultdict(list)
        for number in sorted(self._found):
            members[self._root(number)].append(number)
        groups = []
        for numbers in members.values():
            place = {number: position for position, number in enumerate(numbers)}
            copies = [Copy(-1)]
            for number in numbers[1:]:
                other, correlation = min(self._found[number].items())
                copies.append(Copy(place[other], correlation))
            groups.append(CopyGroup(tuple(cases[number] for number in numbers), tuple(copies)))
        return groups

    def _root(self, number: int) -> int:
        parents = self._parents
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = int(parents[number])
        return number


def _link_alike(cases: Sequence[Case], links: _Links, settled_groups: Mapping[str, int]) -> None:
    """Link the cases whose thumbnails are of one size and correlate."""
    patients: dict[tuple[str, str], int] = {}
    decided = np.array([settled_groups.get(name_of(entry), -1) for _, entry in cases])
    sides = np.array([patients.setdefault((split, entry.patient or ""), len(patients)) for split, entry in cases])
    by_length: dict[int, list[tuple[int, NDArray[np.float32]]]] = defaultdict(list)
    for number, (_, entry) in enumerate(cases):
        values = facts.thumbnail_values(entry)
        if values is not None:
            by_length[len(values)].append((number, values))
    for group in by_length.values():
        numbers = np.array([number for number, _ in group])
        _link_near(np.stack([values for _, values in group]), numbers, sides[numbers], decided[numbers], links)


def _link_near(
    values: NDArray[np.float32],
    numbers: NDArray[np.int64],
    sides: NDArray[np.int64],
    decided: NDArray[np.int64],
    links: _Links,
) -> None:
    """Link what correlates.

    Args:
        values: (case, pixel), each row of mean 0 and norm 1.
        numbers: of the cases.
        sides: alike where patient and list are the same; such two are not linked.
        decided: group in which a person has decided about a case, -1: none; two of one group are not linked.
        links: into which they go.
    """
    along = values @ _widest(values)
    order = np.argsort(along, kind="stable")
    values, numbers, sides, decided, along = (array[order] for array in (values, numbers, sides, decided, along))
    ends = np.searchsorted(along, along + np.sqrt(2 - 2 * _SAME_IMAGE) + _ROUNDING, side="right")
    for start in range(0, len(values), _ROWS_AT_ONCE):
        rows = slice(start, min(start + _ROWS_AT_ONCE, len(values)))
        columns = slice(start, int(ends[rows.stop - 1]))
        correlations = values[rows] @ values[columns].T
        near = correlations > _SAME_IMAGE
        near &= ~np.tri(*near.shape, dtype=bool)  # each pair once, and none with itself
        if not near.any():
            continue
        near &= sides[rows, None] != sides[None, columns]
        near &= (decided[rows, None] < 0) | (decided[rows, None] != decided[None, columns])
        _link_block(near, correlations, numbers[rows], numbers[columns], links)


def _link_block(
    near: NDArray[np.bool_],
    correlations: NDArray[np.float32],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    links: _Links,
) -> None:
    """Link the pairs of one block; where they are very many, only as many as make up the groups."""
    if np.count_nonzero(near) <= _MOST_LINKS:
        for row, column in zip(*np.nonzero(near), strict=True):
            links.add(int(rows[row]), int(columns[column]), float(correlations[row, column]))
        return
    for row in np.flatnonzero(near.any(axis=1)):
        others = np.flatnonzero(near[row])
        roots = links.roots()
        own = roots[rows[row]]
        for column in others[roots[columns[others]] != own]:
            links.add(int(rows[row]), int(columns[column]), float(correlations[row, column]))
        first = others[0]
        if not links.knows(int(rows[row])):
            links.add(int(rows[row]), int(columns[first]), float(correlations[row, first]))


def _widest(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the direction (pixel,), of length 1, along which vectors spread most."""
    some = values[:: max(1, len(values) // _SAMPLE)].astype(np.float64)
    centred = some - some.mean(axis=0)
    direction: NDArray[np.float32] = np.linalg.eigh(centred.T @ centred)[1][:, -1].astype(np.float32)
    return direction


def _together(groups: Mapping[str, int], one: Case, two: Case) -> bool:
    """Return whether somebody has decided about two cases together."""
    first, second = name_of(one[1]), name_of(two[1])
    return first in groups and groups[first] == groups.get(second)


def _differ(one: Entry, two: Entry) -> bool:
    """Return whether the labels of two copies contradict each other, as far as their facts tell."""
    if isinstance(one.label, int) or isinstance(two.label, int):
        return one.label != two.label and isinstance(one.label, int) and isinstance(two.label, int)
    if one.label_values is None or two.label_values is None:
        return False
    if one.shape == two.shape:
        return one.label_values != two.label_values
    return set(one.label_values) - {"0"} != set(two.label_values) - {"0"}
