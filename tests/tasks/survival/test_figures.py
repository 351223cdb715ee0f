"""Figures of survival against scikit-survival, and against their definitions, pair by pair."""

from __future__ import annotations

import time as clock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sksurv.metrics import (
    brier_score,
    concordance_index_censored,
    concordance_index_ipcw,
    cumulative_dynamic_auc,
)
from sksurv.nonparametric import kaplan_meier_estimator
from sksurv.util import Surv

from follow_ups import drawn
from oncofed.tasks.survival import figures
from oncofed.tasks.survival.follow_up import FollowUps, by_patient

HORIZON = 36.0
# Lightly and heavily censored, and with times in whole months, of which many are alike.
KINDS = [{}, {"censored_by": 25.0}, {"whole_months": True}, {"whole_months": True, "censored_by": 40.0}]


def theirs(known: FollowUps) -> tuple[NDArray[np.void], NDArray[np.float64]]:
    """Return follow-ups as scikit-survival takes them: of one time, the censored are a moment later than the events."""
    times = known.times + 1e-6 * ~known.events
    return Surv.from_arrays(known.events, times), times


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("digits", [1, 9])
def test_concordance_is_scikit_survivals(kind: dict[str, float], digits: int) -> None:
    risks, known = drawn(150, **kind)
    risks = np.round(risks, digits)  # with one digit, many are alike
    cut = FollowUps(np.minimum(known.times, HORIZON), known.events_by(HORIZON))
    harrell = concordance_index_censored(cut.events, theirs(cut)[1], risks)[0]
    assert figures.concordance(risks, known, HORIZON) == pytest.approx(harrell, abs=1e-9)
    outcome, _ = theirs(known)
    uno = concordance_index_ipcw(outcome, outcome, risks, tau=HORIZON + 5e-7)[0]
    assert figures.uno_concordance(risks, known, HORIZON) == pytest.approx(uno, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_auc_and_brier_are_scikit_survivals(kind: dict[str, float]) -> None:
    risks, known = drawn(150, **kind)
    outcome, times = theirs(known)
    horizon = HORIZON if times.max() > HORIZON + 1 else 20.0
    area = cumulative_dynamic_auc(outcome, outcome, risks, [horizon])[0][0]
    assert figures.auc_at(risks, known, horizon) == pytest.approx(area, abs=1e-9)
    survival = np.exp(-0.02 * np.exp(risks)[:, None] * np.array([8.0, horizon]))
    of_times = brier_score(outcome, outcome, survival, [8.0, horizon])[1]
    ours = [figures.brier_at(column, known, at) for column, at in zip(survival.T, (8.0, horizon), strict=True)]
    assert ours == pytest.approx(list(of_times), abs=1e-9)
    mean = (of_times[0] * 8 / 2 + (of_times[0] + of_times[1]) * (horizon - 8) / 2) / horizon
    whole = figures.integrated_brier(survival, known, np.array([8.0, horizon]))
    assert whole == pytest.approx(mean, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_kaplan_meier_is_scikit_survivals(kind: dict[str, float]) -> None:
    _, known = drawn(90, **kind)
    times, survival = kaplan_meier_estimator(known.events, known.times)
    assert known.survival(times) == pytest.approx(survival, abs=1e-12)
    groups = np.array_split(np.argsort(known.times % 1, kind="stable"), 5)
    predicted = np.empty(90)
    for number, group in enumerate(groups):
        predicted[group] = number / 10 + 0.2
    at = 15.0
    expected = 0.0
    for number, group in enumerate(groups):
        own_times, own = kaplan_meier_estimator(known.events[group], known.times[group])
        expected += len(group) / 90 * abs(1 - own[own_times <= at][-1] - (number / 10 + 0.2))
    assert figures.calibration_error(predicted, known, at) == pytest.approx(expected, abs=1e-9)


PATIENT = st.tuples(st.integers(0, 5), st.booleans(), st.integers(-2, 2))


@given(st.lists(PATIENT, max_size=25), st.integers(1, 6))
def test_pairs_are_those_of_the_definition(patients: list[tuple[int, bool, int]], horizon: int) -> None:
    ahead = comparable = 0.0
    for time, event, risk in patients:
        for other_time, other_event, other_risk in patients:
            if event and time <= horizon and (other_time > time or (other_time == time and not other_event)):
                comparable += 1
                ahead += (risk > other_risk) + (risk == other_risk) / 2
    times, events, risks = (np.array([one[n] for one in patients], kind) for n, kind in enumerate((float, bool, float)))
    found = figures.concordance(risks, FollowUps(times, events), horizon)
    assert found == (pytest.approx(ahead / comparable) if comparable else None)


@given(st.lists(PATIENT, min_size=1, max_size=25), st.integers(1, 6))
def test_every_figure_is_a_share_or_none(patients: list[tuple[int, bool, int]], horizon: int) -> None:
    times, events, risks = (np.array([one[n] for one in patients], kind) for n, kind in enumerate((float, bool, float)))
    known, survival = FollowUps(times, events), np.clip(0.5 - risks / 4, 0, 1)
    ends = np.array([0.5, 1.0]) * horizon
    for value in (
        figures.concordance(risks, known, horizon),
        figures.uno_concordance(risks, known, horizon),
        figures.auc_at(risks, known, horizon),
        figures.integrated_brier(np.stack([survival, survival], axis=1), known, ends),
        figures.calibration_error(survival, known, horizon),
    ):
        assert value is None or -1e-9 <= value <= 1 + 1e-9


@pytest.mark.parametrize("events", [[], [False], [True], [False] * 8])
def test_too_little_is_said_to_be_too_little(events: list[bool]) -> None:
    known = FollowUps(np.arange(1.0, len(events) + 1), np.array(events, bool))
    risks = np.linspace(0, 1, len(events))
    assert figures.concordance(risks, known, 5) is None
    assert figures.uno_concordance(risks, known, 5) is None
    assert figures.auc_at(risks, known, 5) is None


def test_concordance_of_a_known_law_is_recovered() -> None:
    risks, known = drawn(4000, censored_by=200)
    later = np.random.default_rng(1).permutation(4000)
    # Of two exponential times the one with hazard a is first in a / (a + b) of the cases.
    first, second = np.exp(risks), np.exp(risks[later])
    law = (np.maximum(first, second) / (first + second))[first != second].mean()
    assert figures.uno_concordance(risks, known, 190.0) == pytest.approx(law, abs=0.02)


def test_unos_concordance_depends_less_on_censoring_than_harrells() -> None:
    risks, known = drawn(3000, censored_by=1e9)
    truth = figures.concordance(risks, known, HORIZON)
    _, early = drawn(3000, censored_by=50)
    harrell, uno = (one(risks, early, HORIZON) for one in (figures.concordance, figures.uno_concordance))
    assert truth
    assert harrell
    assert uno
    assert abs(uno - truth) < abs(harrell - truth)


def test_five_hundred_draws_take_seconds() -> None:
    risks, known = drawn(1000)
    begun = clock.process_time()
    for _ in range(20):
        figures.concordance(risks, known, HORIZON)
    assert (clock.process_time() - begun) / 20 < 0.1  # pair by pair it is ten times that


def test_of_a_patients_images_those_followed_longest_count_once() -> None:
    answers = np.array([[0.2], [0.4], [0.9], [0.7]])
    truths = np.array([[30.0, 1], [30, 1], [24, 1], [5, 0]])
    means, known, people = by_patient(answers, truths, ["a", "a", "a", "b"])
    assert people == ["a", "b"]
    assert means[:, 0] == pytest.approx([0.3, 0.7])
    assert known.times.tolist() == [30, 5]
    assert known.events.tolist() == [True, False]
