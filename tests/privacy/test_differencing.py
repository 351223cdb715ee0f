"""Reported groups reveal nothing about fewer than five patients.

By no sums and differences of them.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed.privacy.differencing import discloses, releasable_groups

LEAST = 5
Columns = list[list[int]]  # of each column the group of every patient


def _group(patients: object) -> dict[str, str]:
    return {f"p{n}": "x" for n in patients}  # type: ignore[attr-defined]


def _groups(columns: Columns) -> list[dict[str, str]]:
    return [
        _group([n for n, group in enumerate(column) if group == value])
        for column in columns
        for value in sorted(set(column))
    ]


@st.composite
def columns(draw: st.DrawFn) -> Columns:
    patients = draw(st.integers(5, 30))
    first = draw(st.lists(st.integers(0, 3), min_size=patients, max_size=patients))
    # The second is like the first but for a few patients, as those of one scanner are.
    changes = draw(st.dictionaries(st.integers(0, patients - 1), st.integers(0, 3), max_size=8))
    return [first, [changes.get(n, group) for n, group in enumerate(first)]]


def _sums(columns: Columns) -> list[list[frozenset[str]]]:
    """Return the patients of unions of told groups.

    And of the complements, for each column.
    """
    groups, everyone = _groups(columns), frozenset(f"p{n}" for n in range(len(columns[0])))
    told = releasable_groups(_group(range(len(columns[0]))), groups, LEAST)
    found, first = [], 0
    for column in columns:
        own = [frozenset(groups[n]) for n in range(first, first + len(set(column))) if n in told]
        first += len(set(column))
        unions = [frozenset().union(*some) for k in range(len(own) + 1) for some in itertools.combinations(own, k)]
        found.append([*unions, *(everyone - union for union in unions)])
    return found


@given(columns())
@settings(max_examples=150, deadline=None)
def test_few_patients_cannot_be_derived_from_two_columns(of_all: Columns) -> None:
    first, second = _sums(of_all)
    for one, other in itertools.product(first, second):
        for smaller, larger in ((one, other), (other, one)):
            assert not 0 < len(one) < LEAST
            if smaller <= larger:
                assert not 0 < len(larger - smaller) < LEAST
            # Nor how much two few patients differ by.
            assert not 0 < len(one ^ other) < LEAST


@given(st.lists(st.lists(st.integers(0, 2), min_size=9, max_size=9), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_disclosure_matches_linear_algebra(of_all: Columns) -> None:
    groups = [_group(range(9)), *_groups(of_all)]
    rows = np.array([[f"p{n}" in group for n in range(9)] for group in groups], float)
    rank = np.linalg.matrix_rank(rows)
    few = (set(some) for k in range(1, LEAST) for some in itertools.combinations(range(9), k))
    expected = any(np.linalg.matrix_rank(rows[:, [n for n in range(9) if n not in some]]) < rank for some in few)
    assert discloses(groups, LEAST) == expected


def test_the_smaller_is_withheld_and_the_rest_stays() -> None:
    whole = _group(range(24))
    assert releasable_groups(whole, [_group(range(12)), _group(range(12, 24))], LEAST) == {0, 1}
    groups = [_group(range(11)), _group(range(11, 24)), _group(range(12)), _group(range(12, 24))]
    assert releasable_groups(whole, groups, LEAST) == {0, 1}
    assert releasable_groups(whole, [_group(range(14)), _group(range(14, 21)), _group(range(21, 24))], LEAST) == {0}
    assert releasable_groups(_group(range(4)), [_group(range(4))], LEAST) == set()


def test_a_part_of_a_patient_is_not_the_whole_patient() -> None:
    whole = {**_group(range(20)), "p3": "xy"}
    assert releasable_groups(whole, [_group(range(10, 20)), whole], LEAST) == {0, 1}
    assert releasable_groups(whole, [_group(range(20))], LEAST) == set()
    # Of each patient one group has the first image, the other the second one, but for one patient.
    both = {f"p{n}": "xy" for n in range(20)}
    first, second = ({f"p{n}": image for n in range(start, 20)} for image, start in (("x", 0), ("y", 1)))
    assert discloses([both, first, second], LEAST)
    assert releasable_groups(both, [first, second], LEAST) == {0}


@pytest.mark.parametrize("patients", [40, 80])
def test_many_columns_are_handled(patients: int) -> None:
    rng = np.random.default_rng(0)
    of_all = [rng.integers(0, 4, patients).tolist() for _ in range(7)]
    groups = _groups(of_all)
    told = releasable_groups(_group(range(patients)), groups, LEAST)
    assert told
    assert not discloses([_group(range(patients)), *(groups[n] for n in told)], LEAST)


@given(st.lists(st.lists(st.sampled_from(["", "x", "y", "xy"]), min_size=7, max_size=7), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_disclosure_matches_for_patients_split_between_groups(of_all: list[list[str]]) -> None:
    groups = [_group(range(7)), *({f"p{n}": part for n, part in enumerate(one) if part} for one in of_all)]
    columns = sorted({(patient, case) for group in groups for patient, cases in group.items() for case in cases})
    rows = np.array(
        [[1 / len(g[patient]) if case in g.get(patient, "") else 0 for patient, case in columns] for g in groups]
    )
    rank = np.linalg.matrix_rank(rows)
    few = ({f"p{n}" for n in some} for k in range(1, LEAST) for some in itertools.combinations(range(7), k))
    expected = any(
        np.linalg.matrix_rank(rows[:, [n for n, (patient, _) in enumerate(columns) if patient not in some]]) < rank
        for some in few
    )
    assert discloses(groups, LEAST) == expected
