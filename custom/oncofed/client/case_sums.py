"""A site's counts and sums for figures over all sites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oncofed.messages.requests import SumsAsked
from oncofed.suppression import LEAST_PATIENTS
from oncofed.tasks import Task

# Significant digits of a difference and its variance: more could carry something else.
_PRECISION = 6

Outcomes = Sequence[tuple[str, Any]]


def sums_of(
    task: Task[Any], split: str, outcomes: Outcomes, against: Outcomes | None, asked: SumsAsked
) -> dict[str, Any]:
    """Return the sums that join a site's scores.

    Args:
        task: the job's.
        split: "validation", whose cases give a temperature and thresholds, or "test", whose cases give pooled figures.
        outcomes: patient and outcome of each case.
        against: the same of another model, where the job compares two.
        asked: the server's request.
    """
    if split != "test":
        sums = {"temperature": task.temperature_sums(outcomes)}
        if task.chooses_thresholds:
            sums["pooled"] = task.pooled(outcomes)
    else:
        sums = {"pooled": task.pooled(outcomes, asked.temperature)}
        part = task.paired(outcomes, against) if against is not None else None
        if part:
            numbers = {"difference": part.difference, "variance": part.variance}
            sums["paired"] = {
                "patients": part.patients,
                **{name: float(f"{value:.{_PRECISION}g}") for name, value in numbers.items()},
            }
    return {name: value for name, value in sums.items() if value is not None}


def patients_of_sums(task: Task[Any], outcomes: Outcomes) -> list[list[str]]:
    """Return groups of patients that sums may cover.

    These are all patients, and those with and without each class; small groups are left out.

    Args:
        task: the job's.
        outcomes: patient and outcome of each case.
    """
    everybody = {patient for patient, _ in outcomes}
    kinds = list(task.kinds(outcomes).values())
    groups = {frozenset(group) for group in (everybody, *kinds, *(everybody - kind for kind in kinds))}
    return sorted(sorted(group) for group in groups if len(group) >= LEAST_PATIENTS)
