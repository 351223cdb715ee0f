"""A site's choice among models."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from oncofed.tasks.choice import compared, surest
from oncofed.tasks.differences import Part


def test_a_bound_is_students_at_the_level_over_the_candidates() -> None:
    values = np.array([0.02, 0.05, -0.01, 0.04, 0.03, 0.06])
    found = compared({"a": Part.of_values(values), "b": None, "c": None}, 0.95)
    t = stats.ttest_1samp(values, 0, alternative="greater").confidence_interval(1 - 0.05 / 3)
    assert found["a"].bound == pytest.approx(t.low)
    assert found["b"].bound is None


def test_the_reference_stays_unless_another_is_surely_better() -> None:
    unsure, sure = Part(10, 0.1, 0.01), Part(10, 0.02, 1e-6)
    assert surest(compared({"unsure": unsure}, 0.95)) is None
    assert surest(compared({"unsure": unsure, "sure": sure}, 0.95)) == "sure"
    assert surest(compared({"same": Part(10, 0.0, 0.0)}, 0.95)) is None
    assert surest({}) is None


@pytest.mark.parametrize("patients", [5, 12])
def test_a_worse_model_is_kept_no_more_often_than_the_level_says(patients: int) -> None:
    """Five candidates, alike but for chance, at 4,000 sites: at most 5 % keep another, within three standard errors."""
    rng, sites = np.random.default_rng(5), 4000
    kept = 0
    for _ in range(sites):
        common = rng.normal(0, 0.05, patients)
        parts = {f"{n}": Part.of_values(0.5 * common + rng.normal(0, 0.05, patients)) for n in range(5)}
        kept += surest(compared(parts, 0.95)) is not None
    assert 0.01 < kept / sites < 0.05 + 3 * np.sqrt(0.05 * 0.95 / sites)


def test_what_is_kept_is_worse_than_no_candidate_by_more_than_its_interval() -> None:
    rng = np.random.default_rng(6)
    for _ in range(200):
        parts = {f"{n}": Part.of_values(rng.normal(rng.normal(0, 0.05), 0.05, 8)) for n in range(4)}
        found = compared(parts, 0.95)
        name = surest(found)
        kept = parts[name].difference if name else 0.0
        for part, one in zip(parts.values(), found.values(), strict=True):
            assert one.bound is not None
            assert kept >= part.difference - (part.difference - one.bound) - 1e-12
