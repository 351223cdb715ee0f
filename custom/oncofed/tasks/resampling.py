"""The bootstrap of a task's metric over patients.

For intervals of groups and of differences.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from oncofed.suppression import LEAST_PATIENTS
from oncofed.tasks.base import Task
from oncofed.tasks.patient_statistics import RESAMPLES, TAIL, between


class Patients:
    """The outcomes of cases, grouped by patient.

    Args:
        task: of the outcomes.
        patients: key of each case's patient.
        outcomes: of each case.
    """

    def __init__(self, task: Task[Any], patients: Sequence[str], outcomes: Sequence[Any]) -> None:
        self._task = task
        self._outcomes = outcomes
        self._cases: dict[str, list[int]] = {}
        for index, patient in enumerate(patients):
            self._cases.setdefault(patient, []).append(index)

    def __len__(self) -> int:
        return len(self._cases)

    def draws(self, times: int = RESAMPLES) -> NDArray[np.int64]:
        """Return drawn patients' numbers, (times, patient).

        With replacement; the same at each call.
        """
        return np.random.default_rng(0).integers(0, len(self), (times, len(self)))

    def metrics(self, draws: NDArray[np.int64], only: Collection[int] | None = None) -> NDArray[np.float64]:
        """Return the metric of each draw, (times,).

        NaN if it is undefined for the drawn patients.

        Args:
            draws: (times, patient); a patient drawn twice counts as two.
            only: numbers of the cases that count; None: all.
        """
        chosen = set(only) if only is not None else None
        groups = [[self._outcomes[n] for n in own if chosen is None or n in chosen] for own in self._cases.values()]
        metric = self._task.drawing(groups)
        found = [metric(drawn) for drawn in draws]
        return np.array([np.nan if mean is None else mean for mean in found])


def figure_intervals(
    task: Task[Any], outcomes: Sequence[tuple[str, Any]], times: int = RESAMPLES
) -> dict[str, tuple[float, float]]:
    """Return a 95 % bootstrap interval of each figure by class or target, over patients.

    Those of fewer than five patients, or without width, have none.

    Args:
        task: of the outcomes.
        outcomes: of all cases, each with its patient's key.
        times: number of bootstrap samples.
    """
    groups: dict[str, list[Any]] = {}
    for patient, outcome in outcomes:
        groups.setdefault(patient, []).append(outcome)
    behind = task.patients_behind(outcomes)
    of_patients = list(groups.values())
    draws = np.random.default_rng(0).integers(0, len(groups), (times, len(groups)))
    values: dict[str, list[float]] = {}
    for drawn in draws:
        again = [(f"{n}", outcome) for n, number in enumerate(drawn) for outcome in of_patients[number]]
        for name, value in task.summarise(again).by_class.items():
            values.setdefault(name, []).append(value)
    found = {name: interval(np.array(drawn), len(behind.get(name, ()))) for name, drawn in values.items()}
    return {name: ends for name, ends in found.items() if ends}


def interval(metrics: NDArray[np.float64], patients: int) -> tuple[float, float] | None:
    """Return a 95 % bootstrap interval, unless patients are few.

    Efron (1979), percentile method.

    Args:
        metrics: of each draw; NaN is left out.
        patients: number of patients behind it.
    """
    return _between(metrics, patients, TAIL)


def expanded_interval(metrics: NDArray[np.float64], patients: int) -> tuple[float, float] | None:
    """Return an expanded percentile interval, for few patients.

    The percentiles are widened as a t-interval is against a normal one (Hesterberg, The American Statistician 2015):
    for ten patients 0.86 and 99.14 instead of 2.5 and 97.5. See ``interval``.
    """
    if patients < LEAST_PATIENTS:
        return None
    reach = stats.t.ppf(1 - TAIL, patients - 1) * math.sqrt(patients / (patients - 1))
    return _between(metrics, patients, float(stats.norm.cdf(-reach)))


def _between(metrics: NDArray[np.float64], patients: int, tail: float) -> tuple[float, float] | None:
    return None if patients < LEAST_PATIENTS else between(metrics[~np.isnan(metrics)], tail)
