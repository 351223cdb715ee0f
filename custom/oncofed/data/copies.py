"""Find copies of images: same file, rescaled, re-encoded, resampled.

Thumbnails are compared by their correlation. With mean 0 and norm 1, two of them correlate by more than c if their
distance is below sqrt(2 - 2 c), and no projection lengthens a distance. So they are sorted along the direction in which
they spread most, and each is compared only with its neighbours, first by a few numbers; no pair is missed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

from oncofed.data import case_facts
from oncofed.data.answers import KEEP_ALL, SAME_PATIENT
from oncofed.data.decisions import contradiction, name_of, settled
from oncofed.data.manifest import Entry, Manifest, Split

COPIES = "copies"
# Thumbnails that correlate by more than this show the same image, rescaled, re-encoded or resampled.
_SAME_IMAGE = 0.998
_SAME_FILE = 2.0
_ROWS, _COLUMNS = 256, 4096  # a block of the table of all pairs stays in a processor's cache
_DIRECTIONS = 31
_SAMPLE = 20_000
# Rounding error of a product of two thumbnails in float32.
_ROUNDING = 1e-5

Case = tuple[Split, Entry]


@dataclass(frozen=True)
class Copy:
    """A pair of copies.

    Attributes:
        of: number of the original in its group; -1: none, for the first of the group.
        correlation: of their thumbnails; None: the same file.
    """

    of: int
    correlation: float | None = None


@dataclass(frozen=True)
class CopyGroup:
    """A group of copies, by chains of pairs.

    Attributes:
        cases: at least two, in the order of the manifest.
        copies: by case, of which case it is a copy.
    """

    cases: tuple[Case, ...]
    copies: tuple[Copy, ...]

    @property
    def exact(self) -> bool:
        """All are the same file."""
        return all(copy.correlation is None for copy in self.copies[1:])

    def contradiction(self) -> tuple[Entry, Entry] | None:
        """Return two cases with different labels, if any."""
        return contradiction(entry for _, entry in self.cases)


def copy_groups(manifest: Manifest) -> list[CopyGroup]:
    """Return a dataset's groups of copies without a decision.

    Images that look alike count as copies if they are of two patients or in two lists: two visits of one patient on one
    side of the split do no harm. Identical files always count.
    """
    cases = list(manifest.by_split())
    links = _Links(len(cases))
    same_file = settled(manifest, COPIES, (SAME_PATIENT,))
    by_checksum: dict[str, int] = {}
    pairs = []
    for number, (_, entry) in enumerate(cases):
        other = by_checksum.setdefault(entry.checksum, number) if entry.checksum else number
        if other != number and not _together(same_file, cases[other], cases[number]):
            pairs.append((other, number))
    if pairs:
        one, two = np.array(pairs).T
        links.add(one, two, np.full(len(pairs), _SAME_FILE, np.float32))
    alike = settled(manifest, COPIES, (SAME_PATIENT, KEEP_ALL))
    _link_alike(cases, links, alike)
    return links.groups(cases)


class _Links:
    """Pairs of copies, and their groups."""

    def __init__(self, count: int) -> None:
        self._labels = np.arange(count)  # equal within a group
        self._partner = np.full(count, count)  # the first case found to be its copy
        self._correlation = np.zeros(count, np.float32)

    def add(self, one: NDArray[np.int64], two: NDArray[np.int64], correlation: NDArray[np.float32]) -> None:
        """Link pairs of cases.

        Identical files have the correlation ``_SAME_FILE``.
        """
        if not len(one):
            return
        own, other = np.concatenate([one, two]), np.concatenate([two, one])
        both = np.concatenate([correlation, correlation])
        order = np.argsort(-other, kind="stable")  # of several writes to one index, the last stays
        partner, found = self._partner.copy(), self._correlation.copy()
        partner[own[order]], found[own[order]] = other[order], both[order]
        better = (partner < self._partner) & (self._correlation < _SAME_FILE)
        self._partner[better], self._correlation[better] = partner[better], found[better]
        if (self._labels[one] != self._labels[two]).any():
            count = len(self._labels)
            rows = np.concatenate([one, np.arange(count)])
            columns = np.concatenate([two, self._labels])
            graph = sparse.coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(count, count))
            labels = csgraph.connected_components(graph, directed=False)[1]
            # A label is the number of a case in its group, so that the next call can link to it.
            self._labels = np.unique(labels, return_index=True)[1][labels]

    def groups(self, cases: Sequence[Case]) -> list[CopyGroup]:
        """Return the groups of at least two."""
        members: dict[int, list[int]] = defaultdict(list)
        for number in np.flatnonzero(self._partner < len(cases)).tolist():
            members[int(self._labels[number])].append(number)
        groups = []
        for numbers in members.values():
            place = {number: position for position, number in enumerate(numbers)}
            copies = [Copy(-1)]
            for number in numbers[1:]:
                correlation = float(self._correlation[number])
                same_file = correlation >= _SAME_FILE
                copies.append(Copy(place[int(self._partner[number])], None if same_file else correlation))
            groups.append(CopyGroup(tuple(cases[number] for number in numbers), tuple(copies)))
        return groups


def _link_alike(cases: Sequence[Case], links: _Links, settled_groups: Mapping[str, int]) -> None:
    """Link cases whose thumbnails correlate."""
    patients: dict[tuple[str, str], int] = {}
    decided = np.array([settled_groups.get(name_of(entry), -1) for _, entry in cases])
    sides = np.array([patients.setdefault((split, entry.patient or ""), len(patients)) for split, entry in cases])
    by_length: dict[int, list[tuple[int, NDArray[np.float32]]]] = defaultdict(list)
    for number, (_, entry) in enumerate(cases):
        values = case_facts.thumbnail_values(entry)
        if values is not None:
            by_length[len(values)].append((number, values))
    for group in by_length.values():
        numbers = np.array([number for number, _ in group])
        for one, two, correlation in _near(np.stack([values for _, values in group])):
            first, second = numbers[one], numbers[two]
            apart = sides[first] != sides[second]
            apart &= (decided[first] < 0) | (decided[first] != decided[second])
            links.add(first[apart], second[apart], correlation[apart])


def _near(
    values: NDArray[np.float32],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]:
    """Yield correlated pairs by blocks: rows, others, correlations.

    Args:
        values: (case, pixel), each row of mean 0 and norm 1.
    """
    short = _shortened(values)
    order = np.argsort(short[:, 0], kind="stable")
    values, short = values[order], short[order]
    along = short[:, 0]
    ends = np.searchsorted(along, along + np.sqrt(2 - 2 * _SAME_IMAGE) + _ROUNDING, side="right")
    for start in range(0, len(values), _ROWS):
        rows = slice(start, min(start + _ROWS, len(values)))
        for first in range(start, int(ends[rows.stop - 1]), _COLUMNS):
            columns = slice(first, min(first + _COLUMNS, int(ends[rows.stop - 1])))
            may_be = np.flatnonzero(short[rows] @ short[columns].T > _SAME_IMAGE - _ROUNDING)
            one, two = np.divmod(may_be, columns.stop - columns.start)
            one, two = one + rows.start, two + columns.start
            one, two = one[one < two], two[one < two]  # each pair once, and none with itself
            if len(one):
                correlation = _correlations(values, one, two, rows, columns)
                near = correlation > _SAME_IMAGE
                yield order[one[near]], order[two[near]], correlation[near]


def _shortened(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (case, ``_DIRECTIONS`` + 1) projections.

    Their products are no less than the correlations.

    They are the coordinates along the directions of largest spread, and the length of the remainder: the product of
    two remainders is at most that of their lengths (Cauchy and Schwarz).
    """
    some = values[:: max(1, len(values) // _SAMPLE)].astype(np.float64)
    centred = some - some.mean(axis=0)
    directions = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :_DIRECTIONS].astype(np.float32)
    places = values @ directions
    left = np.sqrt(np.maximum(0, 1 - np.square(places).sum(axis=1, keepdims=True)))
    return np.hstack([places, left])


def _correlations(
    values: NDArray[np.float32], one: NDArray[np.int64], two: NDArray[np.int64], rows: slice, columns: slice
) -> NDArray[np.float32]:
    """Return the correlations of pairs within one block."""
    if len(one) * 8 < (rows.stop - rows.start) * (columns.stop - columns.start):
        few: NDArray[np.float32] = np.einsum("ij,ij->i", values[one], values[two])
        return few
    many: NDArray[np.float32] = (values[rows] @ values[columns].T)[one - rows.start, two - columns.start]
    return many


def _together(groups: Mapping[str, int], one: Case, two: Case) -> bool:
    """Return whether a decision covers two cases together."""
    first, second = name_of(one[1]), name_of(two[1])
    return first in groups and groups[first] == groups.get(second)
