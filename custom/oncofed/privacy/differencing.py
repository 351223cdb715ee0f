"""Prevents disclosure by differences between released group means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Patient -> the patient's cases in a group, whose mean is the patient's contribution.
Group = Mapping[str, Collection[Hashable]]
_ROUNDING = 1e-7
_MOST_LOOKS = 5000


def releasable_groups(
    whole: Group, groups: Sequence[Group], least: int, hidden: frozenset[int] = frozenset()
) -> set[int]:
    """Return the groups whose means may be released.

    A mean with its number of patients is a sum, and an attacker can form linear combinations of sums. No combination of
    released groups, of any columns, isolates one to ``least - 1`` patients (linked tables; Hundepool et al.,
    Statistical Disclosure Control, 2012, section 4). Larger groups are released first, among equals the earlier one; a
    group is withheld if it would allow such a combination.

    Args:
        whole: all patients.
        groups: patients of each; a patient may be in several.
        least: fewest patients that may be disclosed together.
        hidden: groups withheld for other reasons.
    """
    if len(whole) < least:
        return set()
    released, chosen = [whole], set[int]()
    for number in sorted(range(len(groups)), key=lambda n: (-len(groups[n]), n)):
        group = groups[number]
        if number not in hidden and len(group) >= least and not discloses([*released, group], least):
            released.append(group)
            chosen.add(number)
    return chosen


def discloses(groups: Sequence[Group], least: int) -> bool:
    """Return whether released sums disclose, or may disclose, few patients."""
    try:
        return _Search(groups).finds(least - 1)
    except _TooLongError:
        return True


class _TooLongError(Exception):
    """The search takes too long: assume disclosure."""


@dataclass(frozen=True)
class _Alike:
    """Patients with equal membership, indistinguishable by any sum.

    Attributes:
        columns: table columns, one for each way a case of such a patient belongs to groups.
        patients: number of patients.
    """

    columns: tuple[int, ...]
    patients: int


class _Search:
    """Searches for small sets of patients that a sum isolates.

    A set is isolated if removing its columns lowers the rank of the membership table. ``free`` is the projection onto
    the table's null space, (column, column): removing a column is a Schur complement, and the rank falls where its
    diagonal is zero.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        shares: dict[str, dict[Hashable, list[float]]] = {}
        for number, group in enumerate(groups):
            for patient, cases in group.items():
                for case in cases:
                    shares.setdefault(patient, {}).setdefault(case, [0.0] * len(groups))[number] = 1 / len(cases)
        places = Counter(tuple(sorted(set(map(tuple, own.values())))) for own in shares.values())
        columns: list[tuple[float, ...]] = []
        self._alike: list[_Alike] = []
        for own, patients in sorted(places.items()):
            self._alike.append(_Alike(tuple(range(len(columns), len(columns) + len(own))), patients))
            columns += own
        self._table: NDArray[np.float64] = np.array(columns, float).reshape(-1, len(groups)).T
        self._looks = _MOST_LOOKS

    def finds(self, patients: int) -> bool:
        """Return whether some sum isolates at most ``patients`` patients."""
        free = np.eye(self._table.shape[1]) - np.linalg.pinv(self._table) @ self._table
        small = [one for one in self._alike if one.patients <= patients]
        return self._follows(free, [one for one in self._alike if one not in small], small, patients)

    def _follows(
        self, free: NDArray[np.float64], kept: Sequence[_Alike], open_: Sequence[_Alike], patients: int
    ) -> bool:
        """Return whether a sum isolates patients of ``open_`` alone.

        At most ``patients`` of them; columns neither kept nor open are removed.
        """
        self._looks -= 1
        if self._looks < 0:
            raise _TooLongError
        open_ = [one for one in open_ if one.patients <= patients]
        if any(_is_singular(free, one.columns) for one in open_):
            return True
        if patients == 1 or not open_:
            return False
        if patients == 2 and all(len(one.columns) == 1 for one in open_):
            return _has_pair(free[np.ix_(*[[one.columns[0] for one in open_ if one.patients == 1]] * 2)])
        kept = list(kept)
        # Every basis of columns contains one whose removal lowers the rank, so it suffices to branch on a basis.
        for one in self._chosen(kept, open_):
            open_ = [other for other in open_ if other is not one]
            left = patients - one.patients
            if left and self._follows(_without(free, one.columns), kept, open_, left):
                return True
            kept.append(one)
        return False

    def _chosen(self, kept: Sequence[_Alike], open_: Sequence[_Alike]) -> list[_Alike]:
        """Return the first independent columns of ``open_`` given ``kept``."""
        owners = [one for one in (*kept, *open_) for _ in one.columns]
        matrix = self._table[:, [column for one in (*kept, *open_) for column in one.columns]]
        first, row, found = sum(len(one.columns) for one in kept), 0, []
        for column in range(matrix.shape[1]):
            if row == len(matrix):
                break
            pivot = row + int(np.abs(matrix[row:, column]).argmax())
            if abs(matrix[pivot, column]) < _ROUNDING:
                continue
            matrix[[row, pivot]] = matrix[[pivot, row]]
            matrix[row + 1 :] -= np.outer(matrix[row + 1 :, column] / matrix[row, column], matrix[row])
            row += 1
            if column >= first:
                found.append(owners[column])
        return list(dict.fromkeys(found))


def _is_singular(free: NDArray[np.float64], columns: tuple[int, ...]) -> bool:
    if len(columns) == 1:
        return bool(free[columns[0], columns[0]] < _ROUNDING)
    return bool(np.linalg.eigvalsh(free[np.ix_(columns, columns)])[0] < _ROUNDING)


def _has_pair(free: NDArray[np.float64]) -> bool:
    """Return whether two columns are parallel."""
    lengths = np.diag(free)
    apart = 1 - free**2 / np.outer(lengths, lengths)
    np.fill_diagonal(apart, 1)
    return bool((apart < _ROUNDING).any())


def _without(free: NDArray[np.float64], columns: tuple[int, ...]) -> NDArray[np.float64]:
    block, columns_block = free[np.ix_(columns, columns)], free[:, list(columns)]
    left: NDArray[np.float64] = free - columns_block @ np.linalg.solve(block, columns_block.T)
    return left
