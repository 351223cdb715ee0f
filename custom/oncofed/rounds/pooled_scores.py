"""Figures over all sites' test patients, from their sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from oncofed.tasks.calibration import Calibration, learned
from oncofed.tasks.differences import Difference, Part, combined_difference
from oncofed.tasks.pooled import PooledTest, pooled_test


@dataclass(frozen=True)
class OverSites:
    """Figures over all sites' test patients; None where unknown."""

    pooled: PooledTest | None
    paired: Difference | None
    calibration: Calibration | None

    def recorded(self) -> dict[str, Any]:
        """Return them in the form of the run's record."""
        parts = {"pooled": self.pooled, "paired": self.paired, "calibration": self.calibration}
        return {n: part.model_dump(mode="json", by_alias=True) if part else None for n, part in parts.items()}


def calibration_of(answers: Mapping[str, Mapping[str, Any]]) -> Calibration | None:
    """Return the temperature from the sites' sums, if any.

    Args:
        answers: numbers by site.
    """
    return learned(_part(answers, "temperature"))


def together(
    answers: Mapping[str, Mapping[str, Any]],
    calibration: Calibration | None,
    metric: str,
    margin: float | None,
    against: str | None,
) -> OverSites:
    """Return the figures over all sites.

    Args:
        answers: numbers by site.
        calibration: of the model; the reliability of these patients is added to it.
        metric: the job's.
        margin: by how much it may be worse than the other model and still count as no worse.
        against: digest of the other model.
    """
    pooled = pooled_test(_part(answers, "pooled"), answers)
    parts = {site: Part(**sums) for site, sums in _part(answers, "paired").items()}
    paired = combined_difference(parts, metric, margin).model_copy(update={"against": against}) if parts else None
    if calibration and pooled:
        reliability = {"before": pooled.reliability, "after": pooled.calibrated}
        calibration = calibration.model_copy(update=reliability)
    return OverSites(pooled, paired, calibration)


def _part(answers: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    return {site: numbers[name] for site, numbers in answers.items() if name in numbers}
