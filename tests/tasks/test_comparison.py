"""Two models on the same patients, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed.data.spec import DataSpec
from oncofed.errors import SpecError
from oncofed.tasks import Classification, ClassificationSpec, Segmentation, SegmentationSpec
from oncofed.tasks.classification import Classified
from oncofed.tasks.comparison import compare
from oncofed.tasks.patient_statistics import RESAMPLES, confidence
from oncofed.tasks.resampling import Patients, interval

SEGMENTATION = Segmentation(SegmentationSpec(classes={1: "shell", 2: "core"}), DataSpec(dataset="x"))
CLASSES = Classification(
    ClassificationSpec(classes={0: "clear", 1: "ill"}), DataSpec(dataset="x", modality="xray", patch=(32, 32))
)
NAN = float("nan")
_SHARES = st.one_of(st.just(NAN), st.floats(0, 1))
_CASES = st.lists(st.tuples(st.integers(0, 8), _SHARES, _SHARES), min_size=1, max_size=20)


def _masks(values: list[float]) -> list[dict[str, float]]:
    return [{"dice.shell": value, "dice.core": value} for value in values]


def _images(scores: np.ndarray, labels: np.ndarray) -> list[Classified]:
    return [Classified(np.array([1 - s, s]), int(label)) for s, label in zip(scores, labels, strict=True)]


@settings(max_examples=40, deadline=None)
@given(_CASES)
def test_identical_models_have_no_difference(cases: list[tuple[int, float, float]]) -> None:
    outcomes = [{"dice.shell": shell, "dice.core": core} for _, shell, core in cases]
    found = compare(SEGMENTATION, [str(p) for p, _, _ in cases], outcomes, outcomes, 0.01, resamples=20)
    told = {p for p, *values in cases if not all(map(np.isnan, values))}
    assert found.patients == len(told)
    assert found.difference in (None, 0.0)
    # The bootstrap has nothing to vary: an interval would have no width.
    assert (found.interval, found.not_inferior) == (None, None)


@settings(max_examples=40, deadline=None)
@given(_CASES)
def test_means_over_patients_are_resampled_as_by_the_task(cases: list[tuple[int, float, float]]) -> None:
    """The shortcut for means gives the scores of each draw."""
    outcomes = [{"dice.shell": shell, "dice.core": core} for _, shell, core in cases]
    keys = [str(p) for p, _, _ in cases]

    class Slow(Segmentation):
        summarise = lambda self, outcomes: super().summarise(outcomes)  # noqa: E731

    slow = Slow(SegmentationSpec(classes={1: "shell", 2: "core"}), DataSpec(dataset="x"))
    fast_way, slow_way = (Patients(task, keys, outcomes) for task in (SEGMENTATION, slow))
    draws, only = fast_way.draws(10), list(range(0, len(cases), 2))
    np.testing.assert_allclose(fast_way.metrics(draws), slow_way.metrics(draws), atol=1e-12)
    np.testing.assert_allclose(fast_way.metrics(draws, only), slow_way.metrics(draws, only), atol=1e-12)


def test_an_interval_of_all_is_that_of_the_report() -> None:
    values = np.random.default_rng(0).uniform(0.5, 1, 12).tolist()
    keys = [str(n // 2) for n in range(12)]
    patients = Patients(SEGMENTATION, keys, _masks(values))
    expected = confidence(SEGMENTATION, list(zip(keys, _masks(values), strict=True)))
    assert interval(patients.metrics(patients.draws(RESAMPLES)), len(patients)) == pytest.approx(expected, abs=1e-12)


def test_a_clearly_worse_model_is_not_noninferior() -> None:
    good = np.random.default_rng(0).uniform(0.7, 0.9, 40)
    bad = good - 0.2 + np.tile([-0.01, 0.01], 20)
    keys = [str(n) for n in range(40)]
    worse = compare(SEGMENTATION, keys, _masks(bad.tolist()), _masks(good.tolist()), 0.05)
    assert worse.difference == pytest.approx(-0.2)
    assert worse.interval == pytest.approx((-0.2, -0.2), abs=0.01)
    assert worse.not_inferior is False
    better = compare(SEGMENTATION, keys, _masks(good.tolist()), _masks(bad.tolist()), 0.05)
    assert (better.not_inferior, better.rests_on_few) == (True, False)
    assert compare(SEGMENTATION, keys, _masks(good.tolist()), _masks(good.tolist())).not_inferior is None


def test_two_areas_under_the_curve_are_drawn_together() -> None:
    rng = np.random.default_rng(3)
    labels = np.arange(60) % 2
    scores = labels + rng.normal(0, 1, 60)
    scores = (scores - scores.min()) / np.ptp(scores)
    keys = [str(n) for n in range(60)]
    same_order = compare(CLASSES, keys, _images(scores, labels), _images(scores**2, labels), 0.01, resamples=200)
    assert (same_order.difference, same_order.interval) == (0, None)  # drawn apart the two would differ
    guessing = compare(CLASSES, keys, _images(rng.uniform(0, 1, 60), labels), _images(scores, labels), 0.05, 200)
    assert guessing.not_inferior is False


def test_few_patients_or_a_single_class_give_no_result() -> None:
    keys = ["a", "b", "c", "c"]
    few = compare(SEGMENTATION, keys, _masks([0.5, 0.6, 0.7, 0.8]), _masks([0.5, 0.5, 0.5, 0.5]), 0.1)
    assert (few.patients, few.interval, few.not_inferior, few.rests_on_few) == (3, None, None, True)
    labels = np.ones(8, int)
    one = compare(CLASSES, list("abcdefgh"), _images(np.linspace(0, 1, 8), labels), _images(np.zeros(8), labels), 0.1)
    assert (one.first, one.difference, one.interval, one.not_inferior) == (None, None, None, None)
    nobody = compare(SEGMENTATION, [], [], [])
    assert (nobody.patients, nobody.first, nobody.interval) == (0, None, None)


@pytest.mark.parametrize("margin", [0.0, -0.1, 1.0, NAN])
def test_an_invalid_margin_is_refused(margin: float) -> None:
    with pytest.raises(SpecError, match="margin"):
        compare(SEGMENTATION, ["a"], _masks([1.0]), _masks([1.0]), margin)


@pytest.mark.parametrize("patients", [10, 20])
def test_a_model_that_is_worse_by_the_margin_seldom_passes(patients: int) -> None:
    """At the margin one in forty passes by chance.

    Of 200 simulations that is 5 +- 2.
    """
    rng = np.random.default_rng(11)
    keys = [str(n) for n in range(patients)]
    passed = 0
    for _ in range(200):
        other = rng.uniform(0.6, 0.9, patients)
        model = other - 0.05 + rng.normal(0, 0.05, patients)
        passed += bool(
            compare(SEGMENTATION, keys, _masks(model.tolist()), _masks(other.tolist()), 0.05, 400).not_inferior
        )
    assert 1 <= passed <= 12


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2), st.floats(0.01, 1)), min_size=1, max_size=20))
def test_areas_of_resampled_patients_equal_the_tasks(cases: list[tuple[int, int, float]]) -> None:
    class Slow(Classification):
        summarise = lambda self, outcomes: super().summarise(outcomes)  # noqa: E731

    spec = ClassificationSpec(classes={0: "a", 1: "b", 2: "c"})
    fast, slow = (kind(spec, CLASSES.data) for kind in (Classification, Slow))
    rows = [np.array([p, (1 - p) / 3, 2 * (1 - p) / 3]) for _, _, p in cases]
    outcomes = [Classified(row, label) for row, (_, label, _) in zip(rows, cases, strict=True)]
    drawn = [Patients(task, [str(p) for p, _, _ in cases], outcomes) for task in (fast, slow)]
    draws, only = drawn[0].draws(10), list(range(0, len(cases), 2))
    for chosen in (None, only):
        np.testing.assert_allclose(*(patients.metrics(draws, chosen) for patients in drawn), atol=1e-12)
