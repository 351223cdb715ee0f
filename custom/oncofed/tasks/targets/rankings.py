"""AUROC, average precision and reliability over sites."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from oncofed.tasks.pooled import Ranking, Reliability, ranking, reliability
from oncofed.tasks.pooled_target import TargetFigure


def rankings_of(of_sites: Sequence[Mapping[str, Any]], names: Iterable[str]) -> dict[str, Ranking]:
    """Return the discrimination of each class that the sites could judge.

    Args:
        of_sites: of each, as ``site_sums.classification_sums`` makes them.
        names: of the classes.
    """
    found = {name: ranking([one["classes"][name] for one in of_sites if name in one["classes"]]) for name in names}
    return {name: one for name, one in found.items() if one}


def reliability_of(of_sites: Sequence[Mapping[str, Any]], which: int = 0) -> Reliability | None:
    """Return the reliability over all sites; None if unknown.

    Args:
        of_sites: of each, as ``site_sums.classification_sums`` makes them.
        which: 0 of the answers, 1 of the same at the other temperature, which all sites have to tell.
    """
    sure = [one["reliability"] for one in of_sites if one["reliability"]]
    if any(len(one["brier"]) <= which for one in sure):
        return None
    rows = [[row[0], row[1], row[2 + which]] for one in sure for row in one["cells"]]
    return reliability(rows, *(sum(one[name][which] for one in sure) for name in ("brier", "log_loss")))


def calibration_figure(found: Reliability, of: str = "", before: bool = False) -> TargetFigure:
    """Return the calibration error as a figure.

    Args:
        found: of the answers.
        of: the finding; empty: of the target.
        before: they are those without the temperature.
    """
    words = ["calibration error", *([f"of {of}"] if of else []), *(["before calibration"] if before else [])]
    patients = sum(part.patients for part in found.bins)
    return TargetFigure(title=" ".join(words), value=found.calibration_error, patients=patients)


def ranked_figures(rankings: Mapping[str, Ranking], members: Sequence[str]) -> dict[str, TargetFigure]:
    """Return AUROC and average precision: means, and by member.

    Args:
        rankings: of each class or finding that the sites could judge.
        members: that have figures of their own.
    """
    if not rankings:
        return {}
    fewest = min(_smaller(one) for one in rankings.values())
    single = next(iter(rankings.values())) if len(rankings) == 1 else None
    found = {
        "auroc": TargetFigure(
            title="AUROC",
            value=float(np.mean([one.auroc for one in rankings.values()])),
            patients=fewest,
            interval=single.interval if single else None,
            bounds=_mean_of_ends([one.bounds for one in rankings.values()]),
        ),
        "auprc": TargetFigure(
            title="average precision (AUPRC)",
            value=float(np.mean([one.average_precision for one in rankings.values()])),
            patients=fewest,
        ),
    }
    for name, one in rankings.items():
        if name in members:
            patients = _smaller(one)
            found[f"auroc.{name}"] = TargetFigure(
                title=f"AUROC of {name}", value=one.auroc, patients=patients, interval=one.interval, bounds=one.bounds
            )
            found[f"auprc.{name}"] = TargetFigure(
                title=f"average precision of {name}", value=one.average_precision, patients=patients
            )
    return found


def _smaller(one: Ranking) -> int:
    return min(one.patients_with, one.patients_without)


def _mean_of_ends(bounds: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return bounds of a mean: the means of its parts' bounds."""
    low, high = np.mean(bounds, axis=0)
    return float(low), float(high)
