"""A model's scores by subgroup, and how far groups differ; of groups of few patients nothing is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed.prediction.evaluation.columns import Column
from oncofed.suppression import LEAST_PATIENTS, withheld
from oncofed.tasks import Scores, Task
from oncofed.tasks.resampling import Patients, expanded_interval, interval

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Outcomes:
    """What a model made of cases: each one's name, key of its patient, and outcome."""

    cases: tuple[str, ...]
    patients: tuple[str, ...]
    found: tuple[Any, ...]

    def __len__(self) -> int:
        return len(self.cases)

    def telling(self, task: Task[Any], numbers: Sequence[int] | None = None) -> frozenset[str]:
        """Return the patients who stand behind the metric: whose images show some class, or are taken to."""
        chosen = range(len(self)) if numbers is None else numbers
        return frozenset(self.patients[n] for n in chosen if task.classes_told(self.found[n]))

    def pairs(self, numbers: Sequence[int] | None = None) -> list[tuple[str, Any]]:
        """Return (patient, outcome) of cases by their numbers; None: of all."""
        chosen = range(len(self)) if numbers is None else numbers
        return [(self.patients[n], self.found[n]) for n in chosen]


@dataclass(frozen=True)
class Group:
    """A subgroup.

    Attributes:
        name: of the group.
        patients: how many.
        cases: how many.
        scores: None where they are withheld.
        interval: of the metric, 95 %.
        reason: why the scores are withheld; empty where they are not.
    """

    name: str
    patients: int
    cases: int
    scores: Scores | None
    interval: Interval = None
    reason: str = ""


@dataclass(frozen=True)
class Difference:
    """By how much a group's metric is above that of the column's largest group; the interval holds at 95 %."""

    group: str
    reference: str
    difference: float
    interval: Interval


@dataclass(frozen=True)
class Subgroups:
    """A column's groups and how they differ."""

    column: str
    groups: tuple[Group, ...]
    differences: tuple[Difference, ...]


def by_subgroup(task: Task[Any], outcomes: Outcomes, column: Column) -> Subgroups:
    """Return the scores of a column's groups.

    Patients are drawn with all their cases, once for all groups: a patient who is in two of them is drawn for both.
    """
    at = {name: number for number, name in enumerate(outcomes.cases)}
    members = [[at[case] for case in cases if case in at] for cases in column.groups.values()]
    people = [frozenset(outcomes.patients[n] for n in own) for own in members]
    telling = [outcomes.telling(task, own) for own in members]
    hidden = withheld(telling, LEAST_PATIENTS) | {n for n, own in enumerate(people) if 0 < len(own) < LEAST_PATIENTS}
    patients = Patients(task, outcomes.patients, outcomes.found)
    draws = patients.draws()
    metrics = {n: patients.metrics(draws, own) for n, own in enumerate(members) if own and n not in hidden}
    silent = _classes_withheld(task, outcomes, members, hidden)
    groups = []
    for number, (name, own) in enumerate(zip(column.groups, members, strict=True)):
        count = len(people[number])
        if number in metrics:
            scores = without_classes(task.summarise(outcomes.pairs(own)), silent[number])
            within = interval(metrics[number], len(telling[number]))
            groups.append(Group(name, count, len(own), scores, within))
        elif own:
            few = len(telling[number]) < LEAST_PATIENTS
            reason = f"fewer than {LEAST_PATIENTS} patients" if few else "it would give another group away"
            groups.append(Group(name, count, len(own), None, None, reason))
    return Subgroups(column.name, tuple(groups), _differences(groups, [metrics[n] for n in sorted(metrics)]))


def shared_scores(task: Task[Any], outcomes: Outcomes) -> Scores:
    """Return the scores over all cases that may be handed on: of a class that few patients have there are none."""
    [few] = _classes_withheld(task, outcomes, [list(range(len(outcomes)))], set())
    scores = task.summarise(outcomes.pairs())
    return without_classes(scores, few)


def without_classes(scores: Scores, names: set[str]) -> Scores:
    """Return scores without the figures of some classes."""
    more = {name: value for name, value in scores.more.items() if name.partition(".")[2] not in names}
    return replace(scores, by_class={k: v for k, v in scores.by_class.items() if k not in names}, more=more)


def _classes_withheld(
    task: Task[Any], outcomes: Outcomes, members: Sequence[Sequence[int]], hidden: set[int]
) -> list[set[str]]:
    """Return the classes of which each group says nothing: few of its patients have them, or another's would follow."""
    told = [task.classes_told(outcome) for outcome in outcomes.found]
    silent: list[set[str]] = [set() for _ in members]
    for name in task.classes.values():
        with_it = [frozenset(outcomes.patients[n] for n in own if name in told[n]) for own in members]
        for number in withheld(with_it, LEAST_PATIENTS, hidden):
            silent[number].add(name)
    return silent


def _differences(groups: Sequence[Group], metrics: Sequence[NDArray[np.float64]]) -> tuple[Difference, ...]:
    shown = [(group, found) for group, found in zip((g for g in groups if g.scores), metrics, strict=True)]
    known = [(g, g.scores.mean, found) for g, found in shown if g.scores and g.scores.mean is not None]
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
