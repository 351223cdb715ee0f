"""Samples of cases: size, classes, patients, reproducibility."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from oncofed.data.case import Case
from oncofed.data.sample import sample_cases


def _case(number: int, patient: int, label: int) -> Case:
    return Case(f"case-{number}", f"patient-{patient}", Path(f"{number}.png"), label)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), max_size=300), st.integers(1, 200), st.integers(0, 9))
def test_size_is_as_requested_and_depends_on_the_cases_alone(
    drawn: list[tuple[int, int]], most: int, seed: int
) -> None:
    cases = [_case(number, *facts) for number, facts in enumerate(drawn)]
    sample = sample_cases(cases, most, seed)
    assert len(sample) <= most
    assert len(sample) >= min(len(cases), most) - 6  # shares are rounded down, once for each class
    assert set(sample) <= set(cases)
    assert len(set(sample)) == len(sample)
    assert set(sample_cases(cases[::-1], most, seed)) == set(sample)
    if most >= 6:
        assert {case.label for case in sample} == {case.label for case in cases}


def test_a_common_class_has_its_share_and_a_rare_one_enough() -> None:
    labels = [0] * 8000 + [1] * 1900 + [2] * 100
    cases = [_case(number, number, label) for number, label in enumerate(labels)]
    counts = Counter(case.label for case in sample_cases(cases, 500, 1))
    assert counts[2] == 10
    assert abs(counts[0] / counts[1] - 8000 / 1900) < 0.1


def test_each_patient_comes_before_any_second_image() -> None:
    cases = [_case(number, number % 40, 0) for number in range(400)]
    patients = Counter(case.patient for case in sample_cases(cases, 100, 1))
    assert len(patients) == 40
    assert set(patients.values()) == {2, 3}
    assert all(count == 1 for count in Counter(c.patient for c in sample_cases(cases, 30, 1)).values())
