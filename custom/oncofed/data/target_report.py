"""What a dataset has of a job's targets: patients, distributions, oddities.

No count is of one to four patients who state something, so that the report may be shown around.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from oncofed.data.decisions import name_of
from oncofed.data.label_names import name_key
from oncofed.data.manifest import Entry, Manifest
from oncofed.data.targets import DatasetTarget, FollowUp, Target, TargetValue, stated_value
from oncofed.suppression import LEAST_PATIENTS, told_count, withheld_counts

_MOST_BINS = 8
# Patients of a cell; None: too few, or others would tell them.
Cells = dict[str, int | None]
# What each patient's cases state.
Stated = Sequence[Sequence[TargetValue]]


@dataclass
class TargetReport:
    """A target over a dataset's patients.

    Attributes:
        name: of the target.
        kind: of the target.
        unit: of a value or of times.
        patients: who state it.
        of: patients in all.
        cells: part -> cell -> patients; "" is the target itself, others are findings or times.
        median_follow_up: the cell of times in which the median follow-up lies (reverse Kaplan-Meier; Schemper and
            Smith, Controlled Clinical Trials 1996).
        warnings: what a person should know of it.
    """

    name: str
    kind: str
    unit: str
    patients: int
    of: int
    cells: dict[str, Cells] = field(default_factory=dict)
    median_follow_up: str = ""
    warnings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{told_count(self.patients)} of {self.of} patients have it"]
        for part, cells in self.cells.items():
            counts = ", ".join(f"{name} {f'below {LEAST_PATIENTS}*' if n is None else n}" for name, n in cells.items())
            parts.append(f"{part}: {counts}" if part else counts)
        if self.median_follow_up:
            parts.append(f"median follow-up: {self.median_follow_up}")
        if any(n is None for cells in self.cells.values() for n in cells.values()):
            parts.append(f"* or such that others would tell of fewer than {LEAST_PATIENTS}")
        return "; ".join(parts)


def report_target(
    manifest: Manifest, target: Target, declared: DatasetTarget | None, entries: Iterable[Entry]
) -> TargetReport:
    """Return a target's report.

    Args:
        manifest: the dataset.
        target: of the job.
        declared: by the dataset; None: it does not.
        entries: cases that the job may use.
    """
    stated: dict[str, list[TargetValue]] = defaultdict(list)
    everyone = set()
    for entry in entries:
        patient = entry.patient or name_of(entry)
        everyone.add(patient)
        value = stated_value(declared, entry.targets, entry.label, manifest.labels, target) if declared else None
        if value is not None:
            stated[patient].append(value)
    kind, unit = (declared.kind, declared.unit) if declared else (target.kind, "")
    report = TargetReport(target.name, kind, unit, len(stated), len(everyone))
    if declared and stated:
        _FILL[declared.kind](report, target, declared, list(stated.values()))
    else:
        report.warnings.append("no patient has it: nothing is learned of it here")
    return report


def _names(report: TargetReport, target: Target, declared: DatasetTarget, stated: Stated) -> None:
    """Count each name's patients; one with several counts for each."""
    known = {name_key(name): name for name in declared.names}
    counts: Counter[str] = Counter(dict.fromkeys(declared.names, 0))
    for values in stated:
        counts.update({known.get(name_key(str(value)), str(value)) for value in values})
    report.cells[""] = _shown(counts, report.patients)
    had = [name for name, count in counts.items() if count]
    if len(had) == 1:
        report.warnings.append(f"all its patients are of one {declared.kind}, {had[0]}: figures that compare need two")
    # Only names that the dataset lacks: that a name of its own has nobody may tell how few have another.
    theirs = {name_key(name) for name in counts}
    for name in target.names:
        if name_key(name) not in theirs:
            report.warnings.append(_nobody(name, counts))


def _findings(report: TargetReport, target: Target, declared: DatasetTarget, stated: Stated) -> None:
    """Count the patients of each finding of the job."""
    held = [[value for value in values if isinstance(value, dict)] for values in stated]
    looked_for = sorted({name for values in held for value in values for name in value})
    for name in target.names:
        counts = Counter({"positive": 0, "negative": 0, "unknown": report.of - len(stated)})
        for values in held:
            said = {holds for value in values for other, holds in value.items() if name_key(other) == name_key(name)}
            counts["positive" if True in said else "negative" if said else "unknown"] += 1
        report.cells[name] = _shown(counts, report.of)
        lacking = [cell for cell in ("positive", "negative") if not counts[cell]]
        if len(lacking) == 1:
            report.warnings.append(f"{name}: no patient is {lacking[0]}: figures that compare need both")
        elif lacking:
            report.warnings.append(_nobody(name, looked_for))


def _nobody(name: str, others: Iterable[str]) -> str:
    """Return a warning: the job names what the dataset may call otherwise."""
    return f"{name}: nobody was looked at; the dataset has {', '.join(others) or 'none'}"


def _values(report: TargetReport, _: Target, declared: DatasetTarget, stated: Stated) -> None:
    numbers = [np.mean([float(v) for v in values if isinstance(v, (int, float))]) for values in stated]
    report.cells[""] = _binned([float(number) for number in numbers], declared.unit)
    if len(set(numbers)) == 1 and len(numbers) > 1:
        report.warnings.append("all its patients have one value")


def _follow_ups(report: TargetReport, _: Target, declared: DatasetTarget, stated: Stated) -> None:
    """Count events and times; of a patient's cases the longest follow-up counts."""
    longest = [max((v for v in values if isinstance(v, FollowUp)), key=lambda v: v.time) for values in stated]
    events = sum(value.event for value in longest)
    report.cells[""] = _shown({"events": events, "censored": len(longest) - events}, len(longest))
    times = [float(value.time) for value in longest]
    report.cells["times"] = _binned(times, declared.unit)
    if not events:
        report.warnings.append("all its patients are censored: no event tells the order of their risks")
    median = _median_follow_up(longest)
    edges = _edges(times)
    if median is not None and len(edges) > 1:
        report.median_follow_up = _bin_name(edges, int(np.digitize(median, edges)), declared.unit)


def _median_follow_up(stated: Sequence[FollowUp]) -> float | None:
    """Return the median time to censoring; None: not reached."""
    followed, left = 1.0, len(stated)
    for time in sorted({value.time for value in stated}):
        here = [value for value in stated if value.time == time]
        events = sum(value.event for value in here)
        # Those whose event came leave before those who are censored at that time.
        at_risk = left - events
        if at_risk:
            followed *= 1 - (len(here) - events) / at_risk
        left -= len(here)
        if followed <= 0.5:
            return float(time)
    return None


_FILL = {"class": _names, "grade": _names, "labels": _findings, "value": _values, "survival": _follow_ups}


def _shown(counts: Mapping[str, int], whole: int) -> Cells:
    hidden = withheld_counts(counts, whole, LEAST_PATIENTS)
    return {name: None if name in hidden else count for name, count in counts.items()}


def _binned(numbers: Sequence[float], unit: str) -> Cells:
    """Return bins of round numbers, with at least five patients each."""
    edges = _edges(numbers)
    counts = np.bincount(np.digitize(numbers, edges), minlength=len(edges) + 1)
    return _shown({_bin_name(edges, n, unit): int(count) for n, count in enumerate(counts)}, len(numbers))


def _edges(numbers: Sequence[float]) -> list[float]:
    """Return round numbers between which at least five patients lie."""
    low, high = np.percentile(numbers, (10, 90))
    step = _round_up((high - low) / _MOST_BINS)
    edges: list[float] = []
    if step:
        below, ordered = 0, np.sort(numbers)
        for number in range(math.floor(low / step), math.ceil(high / step) + 1):
            edge = number * step
            so_far = int(np.searchsorted(ordered, edge))
            if so_far - below >= LEAST_PATIENTS and len(ordered) - so_far >= LEAST_PATIENTS:
                edges.append(float(f"{edge:.12g}"))
                below = so_far
    return edges


def _round_up(step: float) -> float:
    """Return the next 1, 2 or 5 times a power of ten; 0 of 0."""
    if step <= 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(step))
    return float(next(times * power for times in (1, 2, 5, 10) if times * power >= step * (1 - 1e-9)))


def _bin_name(edges: Sequence[float], number: int, unit: str) -> str:
    unit = f" {unit}" if unit else ""
    written = [f"{edge:.12g}" for edge in edges]
    if not edges:
        return "all values"
    if number == 0:
        return f"below {written[0]}{unit}"
    if number == len(edges):
        return f"{written[-1]}{unit} and above"
    return f"{written[number - 1]} to {written[number]}{unit}"
