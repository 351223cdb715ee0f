"""A model's test figures over the patients of all sites together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from pydantic import Field
from scipy import stats

from oncofed.settings import StrictModel
from oncofed.tasks.pooled import Ranking, Reliability, ranking, reliability
from oncofed.tasks.pooled_target import NO_TARGETS, PooledTarget, TargetFigure, TargetSums


class Figure(StrictModel):
    """A figure that each patient has."""

    patients: int
    mean: float
    sd: float
    interval: tuple[float, float] = Field(description="95 % interval of the mean, Student's t")


class PooledTest(StrictModel):
    """A model on the test patients of all sites together."""

    patients: int
    sites: dict[str, int] = Field(description="site -> patients that its numbers rest on")
    withheld: list[str] = Field([], description="sites that sent no such numbers: too few patients, or their policy")
    auroc: float | None = Field(None, description="of two classes that of the second, of more the mean")
    classes: dict[str, Ranking] = Field({}, description="of two classes the second alone")
    reliability: Reliability | None = None
    calibrated: Reliability | None = Field(None, description="the same with the model's temperature")
    figures: dict[str, Figure] = Field({}, description="the job's metric (mean), and the same of each class")
    targets: dict[str, PooledTarget] = Field({}, description="of a job with named targets, or of each class of boxes")
    mean: TargetFigure | None = Field(None, description="of several classes of boxes the mean of their figures")


def pooled_test(
    of_sites: Mapping[str, Mapping[str, Any]], asked: Iterable[str], targets: Mapping[str, TargetSums] = NO_TARGETS
) -> PooledTest | None:
    """Return a model's test figures over all sites.

    None if no site sent numbers.

    Args:
        of_sites: numbers of each site, from ``Task.pooled``.
        asked: sites that answered, with or without such numbers.
        targets: of the job, by name.
    """
    if not of_sites:
        return None
    asked = set(asked)
    sent = [of_sites[site] for site in sorted(of_sites)]
    classes = {}
    for name in dict.fromkeys(name for one in sent for name in one.get("classes", {})):
        told = [one["classes"][name] for one in sent if name in one.get("classes", {})]
        found = ranking(told)
        if found:
            classes[name] = found
    sums = {}
    for name in dict.fromkeys(name for one in sent for name in one.get("figures", {})):
        of_all = figure(one["figures"][name] for one in sent if name in one.get("figures", {}))
        if of_all:
            sums[name] = of_all
    sure = [one["reliability"] for one in sent if one.get("reliability")]
    by_target = _targets(of_sites, asked, targets)
    return PooledTest(
        patients=sum(one["patients"] for one in sent),
        sites={site: of_sites[site]["patients"] for site in sorted(of_sites)},
        withheld=sorted(asked - set(of_sites)),
        auroc=sum(one.auroc for one in classes.values()) / len(classes) if classes else None,
        classes=classes,
        reliability=_of_all(sure, 0),
        calibrated=_of_all(sure, 1) if all(len(one["brier"]) > 1 for one in sure) else None,
        figures=sums,
        targets=by_target,
        mean=_mean_of_boxes(by_target),
    )


def figure(sums: Iterable[Sequence[float]]) -> Figure | None:
    """Return a figure's mean and spread; None below two patients.

    Args:
        sums: of each site [patients, sum, sum of squares].
    """
    rows = list(sums)
    patients, total, squares = (sum(row[n] for row in rows) for n in range(3))
    if patients < 2:
        return None
    mean = total / patients
    sd = math.sqrt(max(squares - patients * mean**2, 0.0) / (patients - 1))
    reach = float(stats.t.ppf(0.975, patients - 1)) * sd / math.sqrt(patients)
    return Figure(patients=int(patients), mean=mean, sd=sd, interval=(mean - reach, mean + reach))


def _targets(
    of_sites: Mapping[str, Mapping[str, Any]], asked: set[str], targets: Mapping[str, TargetSums]
) -> dict[str, PooledTarget]:
    """Return each target's figures over all sites, where known."""
    found = {}
    for name, target in targets.items():
        told = {site: one["targets"][name] for site, one in sorted(of_sites.items()) if name in one.get("targets", {})}
        of_all = target.over_sites(list(told.values())) if told else None
        if of_all:
            behind = {"sites": list(told), "withheld": sorted(asked - set(told))}
            found[name] = of_all.model_copy(update=behind)
    return found


def _mean_of_boxes(targets: Mapping[str, PooledTarget]) -> TargetFigure | None:
    """Return the mean over classes of boxes; None of other targets, or of one class.

    Its interval is as wide as if one patient's classes were found together.
    """
    of_classes = [next(iter(one.figures.values())) for one in targets.values() if one.kind == "boxes"]
    if len(of_classes) < 2:
        return None

    def mean(ends: Sequence[tuple[float, float] | None]) -> tuple[float, float] | None:
        known = [end for end in ends if end]
        return (fmean(low for low, _ in known), fmean(high for _, high in known)) if len(known) == len(ends) else None

    return TargetFigure(
        title=f"{of_classes[0].title}, mean of {', '.join(targets)}",
        value=fmean(one.value for one in of_classes),
        patients=min(one.patients for one in of_classes),
        interval=mean([one.interval for one in of_classes]),
        bounds=mean([one.bounds for one in of_classes]),
    )


def _of_all(sure: Sequence[Mapping[str, Any]], which: int) -> Reliability | None:
    """Return the reliability of all sites.

    ``which``: 0 without temperature, 1 with it.
    """
    rows = [[row[0], row[1], row[2 + which]] for one in sure for row in one["cells"]]
    return reliability(rows, *(sum(one[name][which] for one in sure) for name in ("brier", "log_loss")))
