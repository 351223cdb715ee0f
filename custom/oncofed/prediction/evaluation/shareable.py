"""The part of an evaluation that may leave the site.

Each number covers five patients or more, and no case is named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from oncofed.prediction.evaluation.subgroups import Outcomes, Subgroups, shareable_interval, shareable_scores
from oncofed.report.evaluation import ComparisonRecord, DifferenceRecord, GroupRecord, ScoresRecord, SubgroupsRecord
from oncofed.suppression import LEAST_PATIENTS
from oncofed.tasks import Scores, Task
from oncofed.tasks.comparison import Comparison


def scores_record(
    task: Task[Any],
    outcomes: Outcomes,
    interval: tuple[float, float] | None,
    intervals: Mapping[str, tuple[float, float]] = MappingProxyType({}),
) -> ScoresRecord:
    """Return the scores over all cases.

    Args:
        task: the model's.
        outcomes: of all cases.
        interval: of the metric.
        intervals: of figures by class or target; those of figures that are told are told.
    """
    patients = len(set(outcomes.patients))
    if patients < LEAST_PATIENTS or 0 < len(outcomes.contributing_patients(task)) < LEAST_PATIENTS:
        return ScoresRecord()
    scores = shareable_scores(task, outcomes)
    told = {name: ends for name, ends in intervals.items() if name in scores.by_class}
    own = shareable_interval(task, outcomes, interval)
    return ScoresRecord(patients=patients, cases=len(outcomes), intervals=told, **_figures(task, scores, own))


def subgroups_record(task: Task[Any], found: Subgroups) -> SubgroupsRecord:
    """Return a column's groups; withheld ones only as a count.

    Their names might name a patient.
    """
    groups = [
        GroupRecord(name=g.name, patients=g.patients, cases=g.cases, **_figures(task, g.scores, g.interval))
        for g in found.groups
        if g.scores
    ]
    differences = [
        DifferenceRecord(group=d.group, reference=d.reference, difference=d.difference, interval=d.interval)
        for d in found.differences
    ]
    hidden = len(found.groups) - len(groups)
    return SubgroupsRecord(column=found.column, groups=groups, withheld_groups=hidden, differences=differences)


def comparison_record(found: Comparison, other: str) -> ComparisonRecord:
    """Return the comparison with another model, by its digest."""
    few = found.patients < LEAST_PATIENTS
    return ComparisonRecord(
        other_model=other,
        patients=None if few else found.patients,
        mean=None if few else found.first,
        other_mean=None if few else found.second,
        difference=None if few else found.difference,
        interval=found.interval,
        margin=found.margin,
        not_inferior=found.not_inferior,
        few_patients=found.rests_on_few,
    )


def _figures(task: Task[Any], scores: Scores, interval: tuple[float, float] | None) -> dict[str, Any]:
    more = {name: value for name, value in scores.extra_metrics.items() if not math.isnan(value)}
    in_mean = [target for target in task.parts if target in scores.by_class] if task.parts else None
    found = {"mean": scores.mean, "in_mean": in_mean, "interval": interval}
    return {**found, "by_class": scores.by_class, "more": more}
