"""Forms of a site's counts and sums, and coarser ones.

Each covers five patients or more. Numbers have limited digits, and values that the number of patients allows.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from oncofed.suppression import LEAST_PATIENTS, withheld_counts
from oncofed.tasks.pooled import BINS, DIGITS_OF_ODDS, FURTHEST, coarser, coarser_rows
from oncofed.tasks.site_sums import DIGITS

MOST_PATIENTS = 10_000_000
# Largest log loss of one patient, limited by float precision.
LARGEST_LOSS = 700.0


def is_classification(value: Any, classes: Sequence[str], most: int = MOST_PATIENTS) -> bool:
    """Return whether a value has the form of ``site_sums.classification_sums``.

    Args:
        value: as sent.
        classes: names that may be in it.
        most: number of the site's cases.
    """
    if not isinstance(value, Mapping) or set(value) != {"patients", "classes", "reliability"}:
        return False
    by_class, sure = value["classes"], value["reliability"]
    if not is_patients(value["patients"], most):
        return False
    if not are_named(by_class, classes) or not all(map(is_ranked, by_class.values())):
        return False
    if sure is not None and not is_reliability(sure):
        return False
    # A patient with images of two classes counts in both.
    totals = {_in(one["with"]) + _in(one["without"]) for one in by_class.values()}
    totals |= {sum(row[0] for row in sure["cells"])} if sure else set()
    with_class = sum(_in(one["with"]) for one in by_class.values())
    return len(totals) <= 1 and all(
        value["patients"] <= total <= most and (not by_class or is_part(with_class, total)) for total in totals
    )


def coarser_classification(sums: Mapping[str, Any], minimum: int) -> dict[str, Any]:
    """Return sums with at least ``minimum`` patients behind each number."""
    by_class = {}
    fewer = {name: min(_in(one["with"]), _in(one["without"])) for name, one in sums["classes"].items()}
    # A class that nobody or everybody has discloses nobody.
    hidden = withheld_counts({name: count for name, count in fewer.items() if count}, sums["patients"], minimum)
    hidden |= _beside_hidden(sums["classes"], hidden, minimum)
    for name, one in sums["classes"].items():
        if name in hidden:
            continue
        cells = {kind: coarser(one[kind], minimum) for kind in ("with", "without")}
        if all(bool(cells[kind]) == bool(one[kind]) for kind in cells):
            by_class[name] = {**one, **cells}
    sure = sums["reliability"]
    rows = coarser_rows(sure["cells"], minimum) if sure else []
    coarse_rows = [[*map(int, row[:2]), *(round(float(part), DIGITS) for part in row[2:])] for row in rows]
    return {**sums, "classes": by_class, "reliability": {**sure, "cells": coarse_rows} if coarse_rows else None}


def _beside_hidden(by_class: Mapping[str, Any], hidden: Collection[str], minimum: int) -> set[str]:
    """Return further classes to hide, until those that are not told have enough patients together.

    The site itself may have hidden some: they are all patients less those of the classes that are told.
    """
    told = {name: _in(one["with"]) for name, one in by_class.items() if name not in hidden}
    more: set[str] = set()
    for name in sorted(told, key=lambda name: (told[name], name)):
        rest = _in(by_class[name]["without"]) + told[name] - sum(n for other, n in told.items() if other not in more)
        if not 0 < rest < minimum:
            break
        more.add(name)
    return more


def without_telling_rows(sums: Mapping[str, Any], classes: int) -> dict[str, Any]:
    """Return a target's sums without reliability where a class is withheld.

    Of a class of few, which no patient is said to have, the wrong answers would be its patients.

    Args:
        sums: of ``site_sums.classification_sums``.
        classes: number of them; of two, cells are of one.
    """
    cells = 1 if classes == 2 else classes
    return dict(sums) if len(sums["classes"]) == cells else {**sums, "reliability": None}


def is_ranked(value: Any) -> bool:
    """Return whether a value is an input of ``pooled.ranking``."""
    if not isinstance(value, Mapping) or set(value) != {"with", "without", "pairs"}:
        return False
    if not all(are_cells(value[kind]) for kind in ("with", "without")):
        return False
    counts = [sum(cell[1] for cell in value[kind]) for kind in ("with", "without")]
    return (
        any(counts) and is_sum(value["pairs"], 0, counts[0] * counts[1], 1) and float(2 * value["pairs"]).is_integer()
    )


def are_cells(value: Any) -> bool:
    """Return whether a value is a list of descending cells."""
    if not isinstance(value, list) or not all(map(_is_cell, value)):
        return False
    lowest = [cell[0] for cell in value]
    return not value or (lowest[-1] == 0 and lowest == sorted(set(lowest), reverse=True))


def _is_cell(value: Any) -> bool:
    """Return whether a value is a valid cell.

    [lowest bin, patients, sum of log odds, sum of their squares]
    """
    if not isinstance(value, list) or len(value) != 4 or not is_patients(value[1]):
        return False
    most = FURTHEST * value[1]
    return (
        is_count(value[0], BINS - 1)
        and is_sum(value[2], -most, most, DIGITS_OF_ODDS)
        and is_sum(value[3], 0, FURTHEST * most, DIGITS_OF_ODDS)
    )


def is_reliability(value: Any) -> bool:
    """Return whether a value is an input of ``pooled.reliability``."""
    if not isinstance(value, Mapping) or set(value) != {"cells", "brier", "log_loss"}:
        return False
    rows, brier, loss = value["cells"], value["brier"], value["log_loss"]
    if not all(isinstance(part, list) for part in (rows, brier, loss)) or len(brier) not in (1, 2):
        return False
    if len(loss) != len(brier) or not rows or not all(_is_row(row, len(brier)) for row in rows):
        return False
    patients = sum(row[0] for row in rows)
    return all(is_sum(one, 0, 2 * patients, DIGITS) for one in brier) and all(
        is_sum(one, 0, LARGEST_LOSS * patients, DIGITS) for one in loss
    )


def _is_row(value: Any, sums: int) -> bool:
    """Return whether a value is a valid reliability row.

    [patients, correct ones, sum of confidence, the same with temperature]
    """
    return (
        isinstance(value, list)
        and len(value) == 2 + sums
        and is_patients(value[0])
        and is_count(value[1], value[0])
        and all(is_sum(one, 0, value[0], DIGITS) for one in value[2:])
    )


def are_named(value: Any, names: Sequence[str]) -> bool:
    """Return whether a value maps declared names alone."""
    return isinstance(value, Mapping) and all(name in names for name in value)


def _in(cells: Sequence[Sequence[int]]) -> int:
    """Return the number of patients in cells."""
    return sum(cell[1] for cell in cells)


def is_part(count: int, whole: int, least: int = LEAST_PATIENTS) -> bool:
    """Return whether a count is all, or omits enough patients."""
    return count == whole or 0 <= count <= whole - least


def is_patients(value: Any, most: int = MOST_PATIENTS) -> bool:
    """Return whether a value counts enough patients."""
    return is_count(value, most) and value >= LEAST_PATIENTS


def is_count(value: Any, most: int) -> bool:
    """Return whether a value is a whole number up to ``most``."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def is_sum(value: Any, low: float, high: float, digits: int) -> bool:
    """Return whether a value is in range, with limited digits."""
    return (
        isinstance(value, float | int)
        and not isinstance(value, bool)
        and math.isfinite(value)
        # Tolerance for rounding errors of sums.
        and low - 0.01 <= value <= high + 0.01
        and value == round(value, digits)
    )
