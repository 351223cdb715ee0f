"""What a site tells of its patients' follow-ups.

Counts of cells of at least five patients.

Each patient is in one cell, with others whose event, or whose end of follow-up without one, came in the same intervals,
and whose predicted risk is about the same. Intervals are the job's, so that no time leaves, and a cell reaches over as
many as it needs. Beside the cells goes in how many pairs of the site's own patients the one with the earlier event had
the larger risk: of pairs alone whose order in time the cells tell, so that their number tells nothing more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed.suppression import LEAST_PATIENTS
from oncofed.tasks.pooled import DIGITS_OF_ODDS, Cells, cells_of, coarser
from oncofed.tasks.sum_forms import are_cells, is_count, is_patients, is_sum
from oncofed.tasks.survival.follow_up import Floats, FollowUps

# The two kinds of patients: the event came by the horizon, or was not seen by then.
KINDS = ("events", "others")
# First and last interval of some patients, and their cells of risk. The interval behind the last is the horizon: it
# holds those who reached it without the event.
Span = list[Any]


def survival_sums(risks: Floats, known: FollowUps, patients: Sequence[str], ends: Floats) -> dict[str, Any] | None:
    """Return a site's cells and pairs.

    None where all patients, those with the event, or those without are one to four.

    Args:
        risks: shares; of a log risk, its logistic function.
        known: follow-ups.
        patients: key of each.
        ends: of the intervals; the last is the horizon.

    Returns:
        patients: how many; events, others: spans of intervals with their cells; pairs: in how many pairs of
        ``certain_pairs`` the risks are ordered as the times, and the same of those with one who reached the horizon.
    """
    interval, of_kinds = _kinds(known, ends)
    if len(risks) < LEAST_PATIENTS or any(0 < len(members) < LEAST_PATIENTS for members in of_kinds):
        return None
    spans = {kind: _spans(members, interval, risks) for kind, members in zip(KINDS, of_kinds, strict=True)}
    found: dict[str, Any] = {"patients": len(risks)}
    for kind, groups in spans.items():
        found[kind] = [
            [first, last, cells_of(risks[group], [patients[number] for number in group])]
            for first, last, group in groups
        ]
    ordered = [0.0, 0.0]
    for _, last, ill in spans["events"]:
        for first, _, others in (*spans["events"], *spans["others"]):
            if first > last:
                alike = _ordered(risks[ill], risks[others])
                ordered[0] += alike
                ordered[1] += alike * (first == len(ends))
    return {**found, "pairs": ordered}


def told_groups(known: FollowUps, ends: Floats) -> dict[str, NDArray[np.int64]]:
    """Return whose event, or end of follow-up, came by each time that spans tell.

    Two jobs' spans may tell of a few patients by their difference. A time that a span reaches across is not told; any
    two of a kind's groups differ by five patients at least.
    """
    interval, of_kinds = _kinds(known, ends)
    found = {}
    for kind, members in zip(KINDS, of_kinds, strict=True):
        # Where spans begin and end does not depend on risks.
        spans = _spans(members, interval, np.zeros(len(interval)))
        for number, (_, last, _) in enumerate(spans, 1):
            if all(first > last for first, _, _ in spans[number:]):
                found[f"{kind} by interval {last + 1}"] = members[interval[members] <= last]
    return found


def certain_pairs(sums: Mapping[str, Any], intervals: int) -> tuple[int, int]:
    """Return how many pairs are ordered in time by their spans.

    Those of an event and a span that begins after the event's has ended, and of them those of a patient who reached the
    horizon.

    Args:
        sums: of ``survival_sums``.
        intervals: of the job.
    """
    found = [0, 0]
    for event in sums["events"]:
        for other in (*sums["events"], *sums["others"]):
            if other[0] > event[1]:
                number = _in([event]) * _in([other])
                found[0] += number
                found[1] += number * (other[0] == intervals)
    return found[0], found[1]


def _kinds(known: FollowUps, ends: Floats) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Return each patient's interval, and the patients of each of ``KINDS``."""
    ill = known.events_by(float(ends[-1]))
    interval = np.where(
        ill,
        np.searchsorted(ends, known.times, side="left"),
        # Who is censored at the end of an interval lived through it.
        np.searchsorted(ends, np.where(known.events, ends[-1], known.times), side="right"),
    )
    return interval, [np.flatnonzero(ill), np.flatnonzero(~ill)]


def _ordered(earlier: Floats, later: Floats) -> float:
    """Return in how many pairs the earlier has the larger risk; equal ones count as half."""
    ranks = np.sort(later)
    return float(sum(np.searchsorted(ranks, earlier, side=side).sum() for side in ("left", "right")) / 2)


def _spans(
    members: NDArray[np.int64], interval: NDArray[np.int64], risks: Floats
) -> list[tuple[int, int, NDArray[np.int64]]]:
    """Return groups of patients by interval.

    Each has five at least, and comes with its first and last interval.

    Too few patients of an interval are joined with as many of the next as make five, those of the nearest risks: the
    others' intervals stay known.
    """
    found: list[tuple[int, int, NDArray[np.int64]]] = []
    rest, begun = members[:0], 0
    numbers = np.unique(interval[members]).tolist()
    for number in numbers:
        group = members[interval[members] == number]
        if len(rest):
            taken, group = _joined(rest, group, risks)
            if len(taken) < LEAST_PATIENTS:
                rest = taken
                continue
            found.append((begun, number, taken))
        if len(group) >= LEAST_PATIENTS:
            found.append((number, number, group))
            group = group[:0]
        rest, begun = group, number
    if len(rest) and found:
        first, last, group = found.pop()
        taken, group = _joined(rest, group, risks)
        if len(group):
            found.append((first, last, group))
        found.append((first, numbers[-1], taken))
    return found


def _joined(
    few: NDArray[np.int64], others: NDArray[np.int64], risks: Floats
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return few patients joined with others, and who is left.

    As many join as make five; none are left, or five at least.
    """
    order = others[np.argsort(np.abs(risks[others] - risks[few].mean()), kind="stable")]
    needed = LEAST_PATIENTS - len(few)
    if len(others) - needed < LEAST_PATIENTS:
        needed = len(others)
    return np.concatenate([few, order[:needed]]), order[needed:]


def is_survival_sums(value: Any, intervals: int, most: int) -> bool:
    """Return whether a value has the form of ``survival_sums``.

    Args:
        value: as sent.
        intervals: of the job.
        most: number of the site's cases.
    """
    if not isinstance(value, Mapping) or set(value) != {"patients", *KINDS, "pairs"}:
        return False
    if not is_patients(value["patients"], most):
        return False
    last = {"events": intervals - 1, "others": intervals}
    if not all(_are_spans(value[kind], last[kind]) for kind in KINDS):
        return False
    pairs = value["pairs"]
    if sum(_in(value[kind]) for kind in KINDS) != value["patients"] or not isinstance(pairs, list):
        return False
    if not pairs:
        return True
    numbers = certain_pairs(value, intervals)
    return len(pairs) == len(numbers) and all(
        is_sum(alike, 0, number, 1) and float(2 * alike).is_integer()
        for alike, number in zip(pairs, numbers, strict=True)
    )


def _are_spans(value: Any, last: int) -> bool:
    return isinstance(value, list) and all(
        isinstance(span, list)
        and len(span) == 3
        and is_count(span[0], last)
        and is_count(span[1], last)
        and span[0] <= span[1]
        and bool(span[2])
        and are_cells(span[2])
        for span in value
    )


def coarser_survival(sums: Mapping[str, Any], minimum: int) -> dict[str, Any] | None:
    """Return sums of larger cells; None: too few patients.

    Each cell is made of whole ones, so that no difference of the two tells of fewer than five. Pairs of the smaller
    cells would tell these apart: none are left.
    """
    found = {**sums, "pairs": []}
    for kind in KINDS:
        spans: list[Span] = []
        rest: Span | None = None
        for span in sums[kind]:
            rest = _together(rest, span) if rest else span
            if _in([rest]) >= minimum:
                spans.append([*rest[:2], coarser(rest[2], minimum)])
                rest = None
        if rest and not spans:
            return None
        if rest:
            spans[-1] = _together(spans[-1], rest)
        found[kind] = spans
    return found


def _together(one: Span, other: Span) -> Span:
    """Return two spans as one, of a single cell.

    Whose risk was which is no longer told.
    """
    cells: Cells = [*one[2], *other[2]]
    sums = [round(float(sum(cell[part] for cell in cells)), DIGITS_OF_ODDS) for part in (2, 3)]
    return [min(one[0], other[0]), max(one[1], other[1]), [[0, _in([one, other]), *sums]]]


def _in(spans: Sequence[Span]) -> int:
    """Return the number of patients in spans."""
    return sum(cell[1] for span in spans for cell in span[2])
