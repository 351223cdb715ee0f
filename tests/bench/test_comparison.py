"""Tests of what is called faster and slower."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.comparison import compare, ratio_of, slower_than
from harness.results import Baseline, BenchmarkRun, Figure, SuiteResult
from oncofed.errors import PolicyError

_TIMES = st.lists(st.floats(0.01, 100), min_size=2, max_size=12)


def _run(*figures: Figure, machine: str = "m", quick: bool = False) -> BenchmarkRun:
    return BenchmarkRun(
        schema=1,
        id=f"run-{machine}",
        started="2026-01-01T00:00:00+00:00",
        commit="abc",
        quick=quick,
        environment={"machine": machine, "device": "a processor", "cores": 2, "memory_gib": 24},
        suites=[SuiteResult(name="suite", status="complete", figures=list(figures))],
    )


def _noisy(centre: float, spread: float = 0.05, count: int = 9, seed: int = 0) -> list[float]:
    return list(centre * np.exp(np.random.default_rng(seed).normal(0, spread, count)))


def _verdict(before: Figure, after: Figure) -> str:
    return compare(_run(before), _run(after))[0].verdict


@given(_TIMES, _TIMES)
def test_the_interval_is_welchs(before, after):
    ratio, interval = ratio_of(before, after)
    if max(np.ptp(before), np.ptp(after)) < 1e-6:
        return
    test = stats.ttest_ind(np.log(after), np.log(before), equal_var=False).confidence_interval(0.95)
    assert interval == pytest.approx((math.exp(test.low), math.exp(test.high)), rel=1e-6)
    assert interval[0] <= ratio <= interval[1]


@given(_TIMES, _TIMES)
def test_the_other_way_round_gives_the_inverse(before, after):
    ratio, interval = ratio_of(before, after)
    inverse, other = ratio_of(after, before)
    assert ratio * inverse == pytest.approx(1)
    assert (interval[0] * other[1], interval[1] * other[0]) == pytest.approx((1, 1))


@pytest.mark.parametrize(("better", "verdict"), [("lower", "slower"), ("higher", "faster")])
def test_the_unit_decides_whether_more_is_faster(better, verdict):
    before = Figure(name="f", unit="u", better=better, samples=_noisy(1.0))
    after = Figure(name="f", unit="u", better=better, samples=_noisy(1.5, seed=1))
    change = compare(_run(before), _run(after))[0]
    assert change.verdict == verdict
    assert (change.ratio > 1) == (verdict == "slower")


def test_noise_and_one_percent_are_no_difference():
    assert _verdict(
        Figure(name="f", unit="s", better="lower", samples=_noisy(1.0, 0.3)),
        Figure(name="f", unit="s", better="lower", samples=_noisy(1.1, 0.3, seed=1)),
    ) == ("no difference")
    sure = [Figure(name="f", unit="s", better="lower", samples=_noisy(c, 1e-4)) for c in (1.0, 1.01)]
    assert _verdict(*sure) == "no difference"


def test_false_alarms_are_as_rare_as_promised():
    alarms = 0
    for seed in range(400):
        figures = [Figure(name="f", unit="s", better="lower", samples=_noisy(1, 0.2, 7, 2 * seed + n)) for n in (0, 1)]
        alarms += _verdict(*figures) != "no difference"
    assert alarms / 400 < 0.09


def test_a_machine_that_is_slower_as_a_whole_is_no_slower_code():
    def figure(slow: float, ours: float) -> Figure:
        drift = np.exp(np.random.default_rng(3).normal(0, 0.3, 9)) * slow
        beside = Baseline(name="baseline", samples=list(drift))
        own = drift * ours * np.array(_noisy(1, 0.01))
        return Figure(name="f", unit="s", better="lower", samples=list(own), baseline=beside)

    same = compare(_run(figure(1, 1)), _run(figure(2, 1)))[0]
    assert (same.adjusted, same.verdict) == (True, "no difference")
    assert same.after / same.before > 1.5
    worse = compare(_run(figure(1, 1)), _run(figure(0.5, 1.3)))
    assert worse[0].verdict == "slower"
    assert slower_than(worse, 1.2) == worse
    assert slower_than(worse, 1.4) == []


def test_incomparable_figures_have_a_reason_and_no_verdict():
    one = Figure(name="f", unit="s", better="lower", samples=[1.0])
    many = Figure(name="f", unit="s", better="lower", samples=[1.0, 1.1])
    other = many.model_copy(update={"settings": {"batch": 4}})
    gone = Figure(name="f", unit="s", skipped="no GPU")
    negative = many.model_copy(update={"samples": [-1.0, 2.0]})
    reasons = {
        "one sample": (one, one),
        "no such figure": (Figure(name="g", unit="s"), many),
        "other settings (batch)": (many, other),
        "not measured in the second run: no GPU": (many, gone),
        "no ratio": (negative, many),
    }
    for why, (before, after) in reasons.items():
        change = compare(_run(before), _run(after))[0]
        assert change.verdict == "no verdict"
        assert why in change.why


def test_runs_of_different_machines_or_kinds_are_compared_only_by_force():
    figure = Figure(name="f", unit="s", better="lower", samples=[1.0, 1.0])
    for other in (_run(figure, machine="n"), _run(figure, quick=True)):
        with pytest.raises(PolicyError, match="--force"):
            compare(_run(figure), other)
        assert compare(_run(figure), other, force=True)[0].verdict == "no difference"
