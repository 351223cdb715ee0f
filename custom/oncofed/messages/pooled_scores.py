"""What a site's counts and sums are asked for, and what those of all sites say together of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oncofed.suppression import LEAST_PATIENTS
from oncofed.tasks import Task
from oncofed.tasks.calibration import Calibration, learned
from oncofed.tasks.differences import Difference, Part, combined_difference
from oncofed.tasks.pooled import PooledTest, pooled_test

# Of a difference and its variance, which digits are told: more could carry something else.
_PRECISION = 6

Outcomes = Sequence[tuple[str, Any]]


@dataclass(frozen=True)
class SumsAsked:
    """That the server wants counts and sums beside a score.

    Attributes:
        temperature: of the model; None: not known.
    """

    temperature: float | None = None


@dataclass(frozen=True)
class OverSites:
    """What the sites' test patients say together of a model; None where that is not known."""

    pooled: PooledTest | None
    paired: Difference | None
    calibration: Calibration | None

    def told(self) -> dict[str, Any]:
        """Return it as the run's record has it."""
        parts = {"pooled": self.pooled, "paired": self.paired, "calibration": self.calibration}
        return {n: part.model_dump(mode="json", by_alias=True) if part else None for n, part in parts.items()}


def sums_of(task: Task[Any], split: str, found: Outcomes, against: Outcomes | None, asked: SumsAsked) -> dict[str, Any]:
    """Return what a site adds to its answer: of validation cases for a temperature, of test cases for pooled figures.

    Args:
        task: the job's.
        split: "validation" or "test".
        found: of each case.
        against: the same of another model, where the job compares two.
        asked: what the server wants.
    """
    if split != "test":
        told = {"temperature": task.temperature_sums(found)}
    else:
        told = {"pooled": task.pooled(found, asked.temperature)}
        part = task.paired(found, against) if against is not None else None
        if part:
            numbers = {"difference": part.difference, "variance": part.variance}
            told["paired"] = {
                "patients": part.patients,
                **{name: float(f"{value:.{_PRECISION}g}") for name, value in numbers.items()},
            }
    return {name: value for name, value in told.items() if value is not None}


def patients_of_sums(task: Task[Any], found: Outcomes) -> list[list[str]]:
    """Return the groups of patients that sums may be of: all, and those with and without each class; none of a few.

    Args:
        task: the job's.
        found: of each case.
    """
    everybody = {patient for patient, _ in found}
    kinds = list(task.kinds(found).values())
    groups = {frozenset(group) for group in (everybody, *kinds, *(everybody - kind for kind in kinds))}
    return sorted(sorted(group) for group in groups if len(group) >= LEAST_PATIENTS)


def calibration_of(answers: Mapping[str, Mapping[str, Any]]) -> Calibration | None:
    """Return the temperature that the sites' sums tell; None where they do not.

    Args:
        answers: of each site, its numbers.
    """
    return learned(_told(answers, "temperature"))


def together(
    answers: Mapping[str, Mapping[str, Any]],
    calibration: Calibration | None,
    metric: str,
    margin: float | None,
    against: str | None,
) -> OverSites:
    """Return what the sites' test patients say together of a model.

    Args:
        answers: of each site, its numbers.
        calibration: of the model; it gets the reliability of these patients.
        metric: the job's.
        margin: by how much worse than the other model still counts as no worse.
        against: digest of the other model.
    """
    pooled = pooled_test(_told(answers, "pooled"), answers)
    parts = {site: Part(**told) for site, told in _told(answers, "paired").items()}
    paired = combined_difference(parts, metric, margin).model_copy(update={"against": against}) if parts else None
    if calibration and pooled:
        seen = {"before": pooled.reliability, "after": pooled.calibrated}
        calibration = calibration.model_copy(update=seen)
    return OverSites(pooled, paired, calibration)


def _told(answers: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    return {site: numbers[name] for site, numbers in answers.items() if name in numbers}
