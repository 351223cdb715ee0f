"""Compares runs: ratios with confidence intervals, and verdicts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats

from oncofed.errors import PolicyError

from .results import BenchmarkRun, Figure

Verdict = Literal["faster", "slower", "no difference", "no verdict"]

_CONFIDENCE = 0.95
# Smaller changes are not worth acting on, however certain.
_SMALLEST = 0.02


@dataclass(frozen=True)
class Change:
    """Change of a figure between two runs.

    Attributes:
        suite: of the figure.
        figure: name of the figure.
        unit: of the values.
        before: median of the first run.
        after: median of the second.
        ratio: second to first, of times or memory; below one is better, whatever the unit.
        interval: of the ratio, with 95 % confidence; None for too few samples.
        adjusted: whether the ratio is of figures relative to their baselines, which ran in turn with them: a slower
            machine then has no effect.
        verdict: faster or slower if the interval excludes 1 and the ratio is off by more than 2 %.
        why: there is no verdict.
    """

    suite: str
    figure: str
    unit: str
    before: float | None
    after: float | None
    ratio: float | None
    interval: tuple[float, float] | None
    adjusted: bool
    verdict: Verdict
    why: str = ""


def compare(before: BenchmarkRun, after: BenchmarkRun, force: bool = False) -> list[Change]:
    """Return each figure's change, in the second run's order.

    Args:
        before: the first run.
        after: the second run.
        force: also runs of different machines, or a quick one with a full one.

    Raises:
        PolicyError: they cannot be compared.
    """
    if not force:
        _require_alike(before, after)
    known = {(suite, figure.name): figure for suite, figure in before.figures()}
    return [_change(suite, known.get((suite, figure.name)), figure) for suite, figure in after.figures()]


def slower_than(changes: Sequence[Change], most: float) -> list[Change]:
    """Return changes significantly slower than ``most`` times."""
    return [change for change in changes if change.verdict == "slower" and (change.ratio or 0) > most]


def ratio_of(before: Sequence[float], after: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """Return the ratio of geometric means, with its interval.

    After to before, with a confidence interval. Times are skewed to the right, so their logarithms are taken; their
    means are compared by Welch's test, which does not take the spreads for equal (Welch, Biometrika 34, 1947).

    Args:
        before: positive values.
        after: positive values.
    """
    one, two = ([math.log(value) for value in values] for values in (before, after))
    difference = statistics.fmean(two) - statistics.fmean(one)
    if min(len(one), len(two)) < 2:
        return math.exp(difference), None
    parts = [statistics.variance(values) / len(values) for values in (one, two)]
    if sum(parts) == 0:
        return math.exp(difference), (math.exp(difference), math.exp(difference))
    freedom = sum(parts) ** 2 / sum(p**2 / (len(v) - 1) for p, v in zip(parts, (one, two), strict=True))
    reach = float(stats.t.ppf((1 + _CONFIDENCE) / 2, freedom)) * math.sqrt(sum(parts))
    return math.exp(difference), (math.exp(difference - reach), math.exp(difference + reach))


def _require_alike(before: BenchmarkRun, after: BenchmarkRun) -> None:
    if before.machine != after.machine:
        one, two = (
            f"{run.id}: {run.environment.get('device')}, {run.environment.get('cores')} cores, "
            f"{run.environment.get('memory_gib')} GiB"
            + (f", driver {run.environment['driver']}" if run.environment.get("driver") else "")
            for run in (before, after)
        )
        raise PolicyError(
            f"the runs are of different machines ({one}; {two}): the code is not all that differs. "
            "Run both on one machine, or compare them all the same with --force"
        )
    if before.quick != after.quick:
        raise PolicyError(
            f"{(before if before.quick else after).id} is a quick run and the other is not. Compare runs of a kind, or "
            "these all the same with --force"
        )


def _change(suite: str, before: Figure | None, after: Figure) -> Change:
    ratio: float | None = None
    interval: tuple[float, float] | None = None
    adjusted = False
    why = _why_not(before, after)
    if before and not why:
        one, two = _relative(before), _relative(after)
        adjusted = one is not None and two is not None
        if one is None or two is None:
            one, two = before.samples, after.samples
        ratio, interval = ratio_of(one, two) if after.better == "lower" else ratio_of(two, one)
        why = "" if interval else "one sample is not enough for a verdict"
    verdict: Verdict = "no verdict"
    if ratio is not None and interval is not None:
        verdict = "no difference"
        if abs(ratio - 1) > _SMALLEST and not interval[0] <= 1 <= interval[1]:
            verdict = "slower" if ratio > 1 else "faster"
    value = before.value if before else None
    return Change(suite, after.name, after.unit, value, after.value, ratio, interval, adjusted, verdict, why)


def _why_not(before: Figure | None, after: Figure) -> str:
    if before is None:
        return "the first run has no such figure"
    for which, figure in (("first", before), ("second", after)):
        if not figure.samples:
            return f"not measured in the {which} run" + (f": {figure.skipped}" if figure.skipped else "")
        if min(figure.samples) <= 0:
            return f"the {which} run has a sample of {min(figure.samples):g}, which has no ratio"
    if before.settings != after.settings or before.unit != after.unit:
        names = sorted(
            name
            for name in before.settings.keys() | after.settings.keys()
            if before.settings.get(name) != after.settings.get(name)
        )
        return f"measured with other settings ({', '.join(names) or 'unit'})"
    return ""


def _relative(figure: Figure) -> list[float] | None:
    """Return samples over their paired baseline samples.

    None without such a baseline.
    """
    beside = figure.baseline.samples if figure.baseline else []
    if len(beside) != len(figure.samples) or min(beside, default=0) <= 0:
        return None
    return [ours / theirs for ours, theirs in zip(figure.samples, beside, strict=True)]
