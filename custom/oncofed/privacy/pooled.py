"""Validates counts and sums pooled over sites.

Each covers five patients or more.

Numbers have limited digits, and values that the number of patients allows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from oncofed.suppression import LEAST_PATIENTS, withheld_counts
from oncofed.tasks.calibration import TEMPERATURES
from oncofed.tasks.pooled import BINS, DIGITS_OF_ODDS, FURTHEST, MEAN, coarser, coarser_rows
from oncofed.tasks.pooled_target import NO_TARGETS, TargetSums
from oncofed.tasks.site_sums import DIGITS, DIGITS_OF_FIGURES

# Keys of the sums that accompany a score.
SUMS = frozenset({"pooled", "temperature", "paired"})
_MOST_PATIENTS = 10_000_000
# Largest log loss of one patient, limited by float precision.
_LARGEST_LOSS = 700.0
# Significant digits of a difference and its variance.
_PRECISION = 6


def is_pooled(
    value: Any, classes: Sequence[str], most: int = _MOST_PATIENTS, targets: Mapping[str, TargetSums] = NO_TARGETS
) -> bool:
    """Return whether a value is a valid ``Task.pooled`` result.

    Args:
        value: as sent.
        classes: names of the job's classes.
        most: number of the site's cases.
        targets: the job's, by name, each of which knows its own sums.
    """
    if not isinstance(value, Mapping) or not _is_patients(value.get("patients"), most):
        return False
    if set(value) == {"patients", "targets"}:
        return bool(value["targets"]) and _are_of_targets(value["targets"], targets, value["patients"], most)
    if set(value) == {"patients", "figures"}:
        figures = value["figures"]
        return (
            _are_named(figures, [MEAN, *classes])
            and all(map(_is_figure, figures.values()))
            and all(_is_part(one[0], value["patients"]) for one in figures.values())
        )
    if set(value) != {"patients", "classes", "reliability"}:
        return False
    by_class, sure = value["classes"], value["reliability"]
    if not _are_named(by_class, classes) or not all(map(_is_ranked, by_class.values())):
        return False
    if sure is not None and not _is_reliability(sure):
        return False
    # A patient with images of two classes counts in both.
    totals = {_in(one["with"]) + _in(one["without"]) for one in by_class.values()}
    totals |= {sum(row[0] for row in sure["cells"])} if sure else set()
    with_class = sum(_in(one["with"]) for one in by_class.values())
    return len(totals) <= 1 and all(
        value["patients"] <= total <= most and (not by_class or _is_part(with_class, total)) for total in totals
    )


def is_temperature_sums(value: Any, most: int = _MOST_PATIENTS) -> bool:
    """Return whether a value is a valid ``Task.temperature_sums`` result."""
    if not isinstance(value, Mapping) or set(value) != {"patients", "log_loss"}:
        return False
    patients, sums = value["patients"], value["log_loss"]
    if not _is_patients(patients, most) or not isinstance(sums, list) or len(sums) != len(TEMPERATURES):
        return False
    return all(_is_sum(one, 0, _LARGEST_LOSS * patients, 1) for one in sums)


def is_paired(value: Any, most: int = _MOST_PATIENTS) -> bool:
    """Return whether a value is a valid paired difference.

    With the variance of its mean, over at most ``most`` patients.
    """
    return (
        isinstance(value, Mapping)
        and set(value) == {"patients", "difference", "variance"}
        and _is_patients(value["patients"], most)
        and all(_is_sum(value[name], low, 1, 30) for name, low in (("difference", -1), ("variance", 0)))
        and all(value[name] == float(f"{value[name]:.{_PRECISION}g}") for name in ("difference", "variance"))
    )


def keep_back_small(numbers: dict[str, Any], minimum: int, targets: Mapping[str, TargetSums] = NO_TARGETS) -> bool:
    """Coarsen or drop numbers below a policy's minimum.

    Returns whether anything changed.

    Args:
        numbers: as sent; modified in place.
        minimum: fewest patients behind a number.
        targets: the job's, by name.
    """
    changed = False
    for name in SUMS:
        if name in numbers and numbers[name]["patients"] < minimum:
            del numbers[name]
            changed = True
    pooled = numbers.get("pooled")
    if pooled is None or minimum <= LEAST_PATIENTS:
        return changed
    if "targets" in pooled:
        left = {name: targets[name].withhold(sums, minimum) for name, sums in pooled["targets"].items()}
        told = {name: sums for name, sums in left.items() if sums}
        numbers["pooled"] = {**pooled, "targets": told}
        if not told:
            del numbers["pooled"]
        return changed or told != pooled["targets"]
    if "figures" in pooled:
        counts = {name: sums[0] for name, sums in pooled["figures"].items() if name != MEAN}
        hidden = withheld_counts(counts, pooled["patients"], minimum)
        kept = {name: sums for name, sums in pooled["figures"].items() if name not in hidden}
        numbers["pooled"] = {**pooled, "figures": kept}
        return changed or kept != pooled["figures"]
    by_class = {}
    fewer = {name: min(_in(one["with"]), _in(one["without"])) for name, one in pooled["classes"].items()}
    # A class that nobody or everybody has discloses nobody.
    hidden = withheld_counts({name: count for name, count in fewer.items() if count}, pooled["patients"], minimum)
    for name, one in pooled["classes"].items():
        if name in hidden:
            continue
        cells = {kind: coarser(one[kind], minimum) for kind in ("with", "without")}
        if all(bool(cells[kind]) == bool(one[kind]) for kind in cells):
            by_class[name] = {**one, **cells}
    sure = pooled["reliability"]
    rows = coarser_rows(sure["cells"], minimum) if sure else []
    coarse_rows = [[*map(int, row[:2]), *(round(float(part), DIGITS) for part in row[2:])] for row in rows]
    numbers["pooled"] = {
        **pooled,
        "classes": by_class,
        "reliability": {**sure, "cells": coarse_rows} if coarse_rows else None,
    }
    return changed or numbers["pooled"] != pooled


def _are_of_targets(value: Any, targets: Mapping[str, TargetSums], patients: int, most: int) -> bool:
    """Return whether a value holds the job's targets' sums alone."""
    return _are_named(value, list(targets)) and all(
        isinstance(sums, Mapping)
        and _is_patients(sums.get("patients"), patients)
        and targets[name].is_site_sums(sums, most)
        for name, sums in value.items()
    )


def _is_ranked(value: Any) -> bool:
    if not isinstance(value, Mapping) or set(value) != {"with", "without", "pairs"}:
        return False
    if not all(_are_cells(value[kind]) for kind in ("with", "without")):
        return False
    counts = [sum(cell[1] for cell in value[kind]) for kind in ("with", "without")]
    return (
        any(counts) and _is_sum(value["pairs"], 0, counts[0] * counts[1], 1) and float(2 * value["pairs"]).is_integer()
    )


def _are_cells(value: Any) -> bool:
    """Return whether a value is a list of descending cells."""
    if not isinstance(value, list) or not all(map(_is_cell, value)):
        return False
    lowest = [cell[0] for cell in value]
    return not value or (lowest[-1] == 0 and lowest == sorted(set(lowest), reverse=True))


def _is_cell(value: Any) -> bool:
    """Return whether a value is a valid cell.

    [lowest bin, patients, sum of log odds, sum of their squares]
    """
    if not isinstance(value, list) or len(value) != 4 or not _is_patients(value[1]):
        return False
    most = FURTHEST * value[1]
    return (
        _is_count(value[0], BINS - 1)
        and _is_sum(value[2], -most, most, DIGITS_OF_ODDS)
        and _is_sum(value[3], 0, FURTHEST * most, DIGITS_OF_ODDS)
    )


def _is_reliability(value: Any) -> bool:
    if not isinstance(value, Mapping) or set(value) != {"cells", "brier", "log_loss"}:
        return False
    rows, brier, loss = value["cells"], value["brier"], value["log_loss"]
    if not all(isinstance(part, list) for part in (rows, brier, loss)) or len(brier) not in (1, 2):
        return False
    if len(loss) != len(brier) or not rows or not all(_is_row(row, len(brier)) for row in rows):
        return False
    patients = sum(row[0] for row in rows)
    return all(_is_sum(one, 0, 2 * patients, DIGITS) for one in brier) and all(
        _is_sum(one, 0, _LARGEST_LOSS * patients, DIGITS) for one in loss
    )


def _is_row(value: Any, sums: int) -> bool:
    """Return whether a value is a valid reliability row.

    [patients, correct ones, sum of confidence, the same with temperature]
    """
    return (
        isinstance(value, list)
        and len(value) == 2 + sums
        and _is_patients(value[0])
        and _is_count(value[1], value[0])
        and all(_is_sum(one, 0, value[0], DIGITS) for one in value[2:])
    )


def _is_figure(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and _is_patients(value[0])
        and all(_is_sum(one, 0, value[0], DIGITS_OF_FIGURES) for one in value[1:])
    )


def _are_named(value: Any, names: Sequence[str]) -> bool:
    return isinstance(value, Mapping) and all(name in names for name in value)


def _in(cells: Sequence[Sequence[int]]) -> int:
    """Return the number of patients in cells."""
    return sum(cell[1] for cell in cells)


def _is_part(count: int, whole: int) -> bool:
    """Return whether a count is all, or omits enough patients."""
    return count == whole or 0 <= count <= whole - LEAST_PATIENTS


def _is_patients(value: Any, most: int = _MOST_PATIENTS) -> bool:
    return _is_count(value, most) and value >= LEAST_PATIENTS


def _is_count(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _is_sum(value: Any, low: float, high: float, digits: int) -> bool:
    """Return whether a value is in range, with limited digits."""
    return (
        isinstance(value, float | int)
        and not isinstance(value, bool)
        and math.isfinite(value)
        # Tolerance for rounding errors of sums.
        and low - 0.01 <= value <= high + 0.01
        and value == round(value, digits)
    )
