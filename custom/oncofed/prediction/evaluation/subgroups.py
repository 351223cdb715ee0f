"""Scores by subgroup, and differences between groups.

Groups of few patients are withheld.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed.prediction.evaluation.subgroup_columns import Column
from oncofed.privacy.differencing import releasable_groups
from oncofed.suppression import LEAST_PATIENTS
from oncofed.tasks import Scores, Task
from oncofed.tasks.parts import mixed_targets, told_parts
from oncofed.tasks.resampling import Patients, expanded_interval, interval

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Outcomes:
    """Per-case outcomes, with case and patient names."""

    cases: tuple[str, ...]
    patients: tuple[str, ...]
    found: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.cases)

    def contributing_patients(self, task: Task[Any], numbers: Sequence[int] | None = None) -> frozenset[str]:
        """Return the patients who contribute to the metric.

        Their images show a class, or are predicted to.
        """
        chosen = range(len(self)) if numbers is None else numbers
        return frozenset(self.patients[n] for n in chosen if task.classes_told(self.found[n]))

    def cases_by_patient(self, numbers: Iterable[int]) -> dict[str, frozenset[int]]:
        """Return each patient's cases among some."""
        found: dict[str, set[int]] = defaultdict(set)
        for number in numbers:
            found[self.patients[number]].add(number)
        return {patient: frozenset(own) for patient, own in found.items()}

    def patient_outcomes(self, numbers: Sequence[int] | None = None) -> list[tuple[str, Any]]:
        """Return (patient, outcome) of some cases, by default all."""
        chosen = range(len(self)) if numbers is None else numbers
        return [(self.patients[n], self.found[n]) for n in chosen]


@dataclass(frozen=True)
class Group:
    """A subgroup.

    Attributes:
        name: of the group.
        patients: number of patients.
        cases: number of cases.
        scores: None if withheld.
        interval: 95 % interval of the metric.
        reason: why the scores are withheld, else empty.
    """

    name: str
    patients: int
    cases: int
    scores: Scores | None
    interval: Interval = None
    reason: str = ""


@dataclass(frozen=True)
class Difference:
    """Difference of a group's metric from the largest group's.

    The interval holds at 95 %.
    """

    group: str
    reference: str
    difference: float
    interval: Interval


@dataclass(frozen=True)
class Subgroups:
    """A column's groups and their differences."""

    column: str
    groups: tuple[Group, ...]
    differences: tuple[Difference, ...]


def by_subgroup(
    task: Task[Any], outcomes: Outcomes, columns: Sequence[Column], progress: Callable[[int], None] = lambda _: None
) -> list[Subgroups]:
    """Return each column's group scores that may be disclosed.

    Together, the groups of all columns disclose nothing about few patients. Patients are resampled with all their
    cases, once for all groups: a patient in two groups is drawn for both.

    Args:
        task: the model's task.
        outcomes: of all cases.
        columns: that define the groups.
        progress: called with the number of columns done.
    """
    at = {name: number for number, name in enumerate(outcomes.cases)}
    members = [[[at[case] for case in cases if case in at] for cases in column.groups.values()] for column in columns]
    every = [own for of_column in members for own in of_column]
    shown, silent = _told(task, outcomes, every)
    patients = Patients(task, outcomes.patients, outcomes.found)
    draws = patients.draws()
    found, first = [], 0
    for done, (column, of_column) in enumerate(zip(columns, members, strict=True)):
        groups, metrics = [], []
        for number, (name, own) in enumerate(zip(column.groups, of_column, strict=True), first):
            count, telling = len({outcomes.patients[n] for n in own}), outcomes.contributing_patients(task, own)
            if number in shown:
                scores, is_whole = _without(task, outcomes.patient_outcomes(own), silent[number])
                drawn = patients.metrics(draws, own)
                # Draws have the parts of the mean that are left out, too.
                metrics.append(drawn if is_whole else np.full_like(drawn, np.nan))
                groups.append(Group(name, count, len(own), scores, interval(metrics[-1], len(telling))))
            elif own:
                is_small = len(telling) < LEAST_PATIENTS
                reason = f"fewer than {LEAST_PATIENTS} patients" if is_small else "it would give others away"
                groups.append(Group(name, count, len(own), None, None, reason))
        first += len(of_column)
        found.append(Subgroups(column.name, tuple(groups), _differences(groups, metrics)))
        progress(done + 1)
    return found


def shareable_scores(task: Task[Any], outcomes: Outcomes) -> Scores:
    """Return overall scores, without classes of few patients."""
    return _shareable(task, outcomes)[0]


def shareable_interval(task: Task[Any], outcomes: Outcomes, found: Interval) -> Interval:
    """Return the metric's interval; None where it tells of figures that are left out of its mean."""
    return found if _shareable(task, outcomes)[1] else None


def _shareable(task: Task[Any], outcomes: Outcomes) -> tuple[Scores, bool]:
    with_it = {name: outcomes.cases_by_patient(_showing(task, outcomes, name)) for name in task.figure_names}
    small_groups = {name for name, patients in with_it.items() if len(patients) < LEAST_PATIENTS}
    behind = task.patients_behind(outcomes.patient_outcomes())
    few = {name for name, patients in behind.items() if len(patients) < LEAST_PATIENTS}
    return _without(task, outcomes.patient_outcomes(), small_groups | few)


def _without(task: Task[Any], own: Sequence[tuple[str, Any]], names: set[str]) -> tuple[Scores, bool]:
    """Return scores without some classes, and whether the mean is still that of all.

    A mean over targets is made of those that are left, each of enough patients.
    """
    if not task.may_leave(own):
        return Scores(None), False
    whole = task.summarise(own)
    # A target's own figure has all of its members.
    mixed = mixed_targets(task.parts, task.patients_behind(own)) | {
        name
        for name, part in task.parts.items()
        if part.has_own_figure and names & {f"{name}.{member}" for member in part.members}
    }
    scores = without_classes(whole, names | mixed)
    if not task.parts:
        return scores, True
    behind = {name: len(patients) for name, patients in task.patients_behind(own).items()}
    told = told_parts(task.parts, scores.by_class, behind, len({patient for patient, _ in own}), LEAST_PATIENTS)
    more = {
        name: value
        for name, value in scores.extra_metrics.items()
        if name.partition(".")[2] in told.by_class and behind.get(name, 0) >= LEAST_PATIENTS
    }
    return Scores(told.mean, told.by_class, more), told.by_class.keys() == whole.by_class.keys()


def _told(task: Task[Any], outcomes: Outcomes, groups: Sequence[Sequence[int]]) -> tuple[set[int], list[set[str]]]:
    """Return disclosable groups, and the hidden classes of each group."""
    telling = {n for n in range(len(outcomes)) if task.classes_told(outcomes.found[n])}
    behind = [outcomes.cases_by_patient(telling.intersection(own)) for own in groups]
    people = [outcomes.cases_by_patient(own) for own in groups]
    small_groups = frozenset(number for number, patients in enumerate(people) if len(patients) < LEAST_PATIENTS)
    # Groups without a contributing case disclose nobody.
    nothing = {number for number, patients in enumerate(behind) if not patients and number not in small_groups}
    shown = nothing | releasable_groups(outcomes.cases_by_patient(telling), behind, LEAST_PATIENTS, small_groups)
    silent: list[set[str]] = [set() for _ in groups]
    for name in task.figure_names:
        cases = _showing(task, outcomes, name)
        with_it = [outcomes.cases_by_patient(cases.intersection(own)) for own in groups]
        hidden = frozenset(range(len(groups))) - shown
        releasable = releasable_groups(outcomes.cases_by_patient(cases), with_it, LEAST_PATIENTS, hidden)
        for number in range(len(groups)):
            if with_it[number] and number not in releasable:
                silent[number].add(name)
    return shown, silent


def _showing(task: Task[Any], outcomes: Outcomes, name: str) -> set[int]:
    """Return the cases that contribute to a class's metrics."""
    return {number for number, outcome in enumerate(outcomes.found) if name in task.classes_told(outcome)}


def without_classes(scores: Scores, names: set[str]) -> Scores:
    """Return scores without some classes."""
    more = {
        n: value for n, value in scores.extra_metrics.items() if n not in names and n.partition(".")[2] not in names
    }
    return replace(scores, by_class={k: v for k, v in scores.by_class.items() if k not in names}, extra_metrics=more)


def _differences(groups: Sequence[Group], metrics: Sequence[NDArray[np.float64]]) -> tuple[Difference, ...]:
    shown = [(group, found) for group, found in zip((g for g in groups if g.scores), metrics, strict=True)]
    known = [
        (g, g.scores.mean, found)
        for g, found in shown
        if g.scores and g.scores.mean is not None and not np.isnan(found).all()
    ]
    if len(known) < 2:
        return ()
    reference, its_mean, its_draws = max(known, key=lambda item: item[0].patients)
    return tuple(
        Difference(
            group.name,
            reference.name,
            mean - its_mean,
            expanded_interval(found - its_draws, min(group.patients, reference.patients)),
        )
        for group, mean, found in known
        if group is not reference
    )
