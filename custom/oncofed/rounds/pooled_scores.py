"""Figures over all sites' test patients, from their sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from oncofed.tasks.calibration import Calibration, learned, tempered_threshold
from oncofed.tasks.deletion import Deletion, over_all_sites
from oncofed.tasks.differences import Difference, Part, combined_difference
from oncofed.tasks.over_sites import PooledTest, pooled_test
from oncofed.tasks.pooled_target import NO_TARGETS, TargetSums


@dataclass(frozen=True)
class OverSites:
    """Figures over all sites' test patients; None where unknown."""

    pooled: PooledTest | None
    paired: Difference | None
    calibration: Calibration | None
    attention: Deletion | None

    def recorded(self) -> dict[str, Any]:
        """Return them in the form of the run's record."""
        parts = {
            "pooled": self.pooled,
            "paired": self.paired,
            "calibration": self.calibration,
            "attention": self.attention,
        }
        return {n: part.model_dump(mode="json", by_alias=True) if part else None for n, part in parts.items()}


def calibration_of(
    answers: Mapping[str, Mapping[str, Any]], targets: Mapping[str, TargetSums] = NO_TARGETS
) -> Calibration | None:
    """Return temperature or thresholds from sites' sums, or None.

    Args:
        answers: numbers by site, over its validation patients.
        targets: the job's, by name.
    """
    pooled = _part(answers, "pooled")
    sums = {name: [one["targets"][name] for one in pooled.values() if name in one["targets"]] for name in targets}
    chosen = {name: target.thresholds(sums[name]) for name, target in targets.items() if sums[name]}
    thresholds = {name: of_target for name, of_target in chosen.items() if of_target}
    curves = _part(answers, "temperature")
    if not targets:
        return learned(curves)
    temperatures = _temperatures(curves, targets)
    if not thresholds and not temperatures:
        return None
    told = curves | pooled
    return Calibration(
        patients=sum(one["patients"] for one in told.values()),
        sites=sorted(told),
        temperatures=temperatures,
        thresholds={
            target: {
                name: tempered_threshold(value, temperatures.get(target, {}).get(name, 1.0))
                for name, value in of_target.items()
            }
            for target, of_target in thresholds.items()
        },
    )


def _temperatures(
    curves: Mapping[str, Mapping[str, Any]], targets: Mapping[str, TargetSums]
) -> dict[str, dict[str, float]]:
    """Return target -> part -> temperature, of those that all sites' validation patients tell."""
    found: dict[str, dict[str, float]] = {}
    for name, target in targets.items():
        for part in target.tempered:
            of_sites = {
                site: one["targets"][name]["parts"][part]
                for site, one in curves.items()
                if part in one["targets"].get(name, {"parts": {}})["parts"]
            }
            known = learned(of_sites)
            if known and known.temperature is not None:
                found.setdefault(name, {})[part] = known.temperature
    return found


def together(
    answers: Mapping[str, Mapping[str, Any]],
    calibration: Calibration | None,
    metric: str,
    margin: float | None,
    against: str | None,
    targets: Mapping[str, TargetSums] = NO_TARGETS,
) -> OverSites:
    """Return the figures over all sites.

    Args:
        answers: numbers by site.
        calibration: of the model; the reliability of these patients is added to it, and its thresholds are used.
        metric: the job's.
        margin: by how much it may be worse than the other model and still count as no worse.
        against: digest of the other model.
        targets: the job's, by name.
    """
    for name, target in targets.items():
        target.use_thresholds(calibration.thresholds.get(name, {}) if calibration else {})
    pooled = pooled_test(_part(answers, "pooled"), answers, targets)
    parts = {site: Part(**sums) for site, sums in _part(answers, "paired").items()}
    paired = combined_difference(parts, metric, margin).model_copy(update={"against": against}) if parts else None
    if calibration and pooled and calibration.temperature is not None:
        reliability = {"before": pooled.reliability, "after": pooled.calibrated}
        calibration = calibration.model_copy(update=reliability)
    return OverSites(pooled, paired, calibration, over_all_sites(_part(answers, "attention").values()))


def _part(answers: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    return {site: numbers[name] for site, numbers in answers.items() if name in numbers}
