"""Figures over patients: means, intervals, sums for other sites."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from oncofed.suppression import LEAST_PATIENTS
from oncofed.tasks.differences import Part
from oncofed.tasks.pooled import MEAN
from oncofed.tasks.scores import Scores
from oncofed.tasks.site_sums import figure_sums

RESAMPLES = 500
TAIL = 0.025  # of a 95 % interval, at each end
_NO_WIDTH = 1e-9

Outcome = TypeVar("Outcome")


class PatientStatistics(ABC, Generic[Outcome]):
    """Turns the outcomes of cases into figures over patients.

    A task defines ``summarise``; the other methods follow from it, and a task may replace them by better ones.

    Attributes:
        averages: the metric is the mean of the patients' metrics. Only valid in the class that defines ``summarise``.
        compares_patients: ``paired`` tells how sure a difference of two models is.
    """

    averages = False
    compares_patients: ClassVar[bool] = True

    @abstractmethod
    def summarise(self, outcomes: Sequence[tuple[str, Outcome]]) -> Scores:
        """Return scores of cases, each with its patient's key."""

    def drawing(self, patients: Sequence[Sequence[Outcome]]) -> Callable[[NDArray[np.int64]], float | None]:
        """Return a function from drawn patients to the metric.

        The function takes their numbers; a patient drawn twice counts as two.

        Args:
            patients: the outcomes of each patient.
        """

        def metric(drawn: NDArray[np.int64]) -> float | None:
            outcomes = [(f"{n}", outcome) for n, number in enumerate(drawn) for outcome in patients[number]]
            return self.summarise(outcomes).mean if outcomes else None

        if not vars(defining_class(type(self), "summarise")).get("averages", False):
            return metric
        known = [
            self.summarise([("", outcome) for outcome in of_patient]).mean if of_patient else None
            for of_patient in patients
        ]
        values = np.array([np.nan if mean is None else mean for mean in known])

        def average(drawn: NDArray[np.int64]) -> float | None:
            present = values[drawn][~np.isnan(values[drawn])]
            return float(present.mean()) if present.size else None

        return average

    def classes_told(self, outcome: Outcome) -> set[str]:
        """Return the classes that one case contributes to.

        See ``Scores.by_class``.
        """
        return set(self.summarise([("", outcome)]).by_class)

    def kinds(self, outcomes: Sequence[tuple[str, Outcome]]) -> dict[str, set[str]]:
        """Return the patients whose cases have each class.

        Args:
            outcomes: of all cases, each with its patient's key.
        """
        found: dict[str, set[str]] = defaultdict(set)
        for patient, outcome in outcomes:
            for name in self.classes_told(outcome):
                found[name].add(patient)
        return dict(found)

    def patients_behind(self, outcomes: Sequence[tuple[str, Outcome]]) -> dict[str, set[str]]:
        """Return the patients behind each figure.

        By the names of ``Scores.by_class`` and ``Scores.extra_metrics``. For a figure that compares two groups of
        patients, the smaller group.

        Args:
            outcomes: of all cases, each with its patient's key.
        """
        found: dict[str, set[str]] = defaultdict(set)
        for patient, outcome in outcomes:
            scores = self.summarise([("", outcome)])
            for name, value in (*scores.by_class.items(), *scores.extra_metrics.items()):
                if not np.isnan(value):
                    found[name].add(patient)
        return dict(found)

    def may_leave(self, outcomes: Sequence[tuple[str, Outcome]]) -> bool:
        """Return whether figures may leave a site at all.

        Not if their differences tell of few patients, whatever is behind each.

        Args:
            outcomes: of all cases, each with its patient's key.
        """
        del outcomes
        return True

    def pooled(
        self, outcomes: Sequence[tuple[str, Outcome]], temperature: float | None = None
    ) -> dict[str, Any] | None:
        """Return counts and sums that sites can add up.

        None if they rest on fewer than five patients.

        Args:
            outcomes: of all cases, each with its patient's key.
            temperature: of the model, if the task has one.
        """
        del temperature
        values: dict[str, dict[str, float]] = defaultdict(dict)
        for patient, scores in self._by_patient(outcomes).items():
            known = {**scores.by_class, **({} if scores.mean is None else {MEAN: scores.mean})}
            for name, value in known.items():
                if not np.isnan(value):
                    values[name][patient] = value
        return figure_sums(values, MEAN)

    def temperature_sums(self, outcomes: Sequence[tuple[str, Outcome]]) -> dict[str, Any] | None:
        """Return sums to fit a temperature; None without one.

        See ``tasks.calibration``.
        """
        del outcomes
        return None

    def paired(self, outcomes: Sequence[tuple[str, Outcome]], others: Sequence[tuple[str, Outcome]]) -> Part | None:
        """Return two models' difference in the metric, over patients.

        Args:
            outcomes: of the first model.
            others: of the second on the same cases, in the same order.

        Returns:
            None if it rests on fewer than five patients.
        """
        first, second = self._by_patient(outcomes), self._by_patient(others)
        pairs = [(scores.mean, second[patient].mean) for patient, scores in first.items()]
        known = [a - b for a, b in pairs if a is not None and b is not None and not np.isnan(a - b)]
        return Part.of_values(known) if len(known) >= LEAST_PATIENTS else None

    def _by_patient(self, outcomes: Sequence[tuple[str, Outcome]]) -> dict[str, Scores]:
        groups: dict[str, list[tuple[str, Outcome]]] = defaultdict(list)
        for patient, outcome in outcomes:
            groups[patient].append((patient, outcome))
        return {patient: self.summarise(of_patient) for patient, of_patient in groups.items()}


def defining_class(kind: type, name: str) -> type:
    """Return the class that defines a type's method."""
    return next(ancestor for ancestor in kind.__mro__ if name in vars(ancestor))


def confidence(
    statistics: PatientStatistics[Outcome], outcomes: Sequence[tuple[str, Outcome]]
) -> tuple[float, float] | None:
    """Return a metric's 95 % bootstrap interval over patients.

    Efron (1979), percentile method.

    Args:
        statistics: of the outcomes' task.
        outcomes: of all cases, each with its patient's key; a patient's cases are drawn together.
    """
    by_patient: dict[str, list[Outcome]] = defaultdict(list)
    for patient, outcome in outcomes:
        by_patient[patient].append(outcome)
    # Fewer tell nothing about the error of a mean, and the ends of an interval would nearly be single scores.
    if len(by_patient) < LEAST_PATIENTS:
        return None
    rng, metric = np.random.default_rng(0), statistics.drawing(list(by_patient.values()))
    drawn = (metric(rng.integers(0, len(by_patient), len(by_patient))) for _ in range(RESAMPLES))
    return between(np.array([mean for mean in drawn if mean is not None], np.float64), TAIL)


def between(metrics: NDArray[np.float64], tail: float) -> tuple[float, float] | None:
    """Return the ends of a percentile interval; None without width.

    If a metric is the same for all draws, such as an AUROC of one, the bootstrap interval would be a point, which says
    nothing about other patients (Obuchowski and Lieber, Academic Radiology 2002).

    Args:
        metrics: of each draw.
        tail: share of the draws beyond each end.
    """
    if not metrics.size:
        return None
    low, high = np.percentile(metrics, (100 * tail, 100 - 100 * tail))
    return (float(low), float(high)) if high - low > _NO_WIDTH else None


def mean_over_patients(outcomes: Sequence[tuple[str, dict[str, float]]]) -> dict[str, float]:
    """Return the mean of each figure over patients.

    A patient's cases count as one; NaN is left out.
    """
    by_name: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for patient, figures in outcomes:
        for name, value in figures.items():
            if not np.isnan(value):
                by_name[name][patient].append(value)
    return {
        name: float(np.mean([np.mean(values) for values in patients.values()])) for name, patients in by_name.items()
    }
