"""A site's table of grades, without cells of few patients.

Grades are grouped into steps: neighbouring ones with enough patients together, whose total the counts of at least each
grade reveal. Within a step a cell of few patients is hidden, and the next smallest ones until the hidden cells hold
five patients or more, or nobody (complementary suppression).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed.suppression import LEAST_PATIENTS
from oncofed.tasks.pooled import coarser
from oncofed.tasks.sum_forms import is_count, is_part, is_patients, is_ranked
from oncofed.tasks.targets.base import patients_where

# Of the fit: most steps, and the change of a cell, in patients, at which it ends.
_FITTING_STEPS, _CONVERGED = 50, 0.01
# Patients that the fit adds to each row and column, so that an empty one does not end it.
_LEAST_COUNT = 0.1
_LARGEST_EXPONENT = 30.0


def separable_steps(stated: NDArray[np.int64], patients: Sequence[str], grades: int) -> list[int]:
    """Return the grades at which steps may begin, without the lowest.

    There are at least five patients in each step.

    Args:
        stated: number of each group's grade, (group,).
        patients: key of each group's patient.
        grades: how many there are.
    """
    people = [patients_where(stated == grade, patients) for grade in range(grades)]
    found: list[int] = []
    below: set[str] = set()
    for step in range(1, grades):
        below |= people[step - 1]
        above = set[str]().union(*people[step:])
        if len(below) >= LEAST_PATIENTS and len(above) >= LEAST_PATIENTS:
            found.append(step)
            below = set()
    return found


def table_of(
    stated: NDArray[np.int64], predicted: NDArray[np.int64], patients: Sequence[str], steps: Sequence[int], grades: int
) -> dict[str, list[Any]]:
    """Return the table that may leave the site.

    Args:
        stated: number of each group's grade, (group,).
        predicted: the model's, (group,).
        patients: key of each group's patient.
        steps: as of ``separable_steps``.
        grades: how many there are.

    Returns:
        cells: patients by stated and predicted grade, None of hidden cells; rest: of each step [first grade, patients
        in hidden cells].
    """
    counts = np.zeros((grades, grades), dtype=np.int64)
    np.add.at(counts, (stated, predicted), 1)
    starts = [0, *steps]
    cells: list[list[int | None]] = []
    rest = []
    for start, end in zip(starts, [*steps, grades], strict=True):
        inside = counts[start:end]
        hidden = inside < LEAST_PATIENTS
        while True:
            in_step = np.flatnonzero((stated >= start) & (stated < end))
            people = {patients[int(i)] for i in in_step if hidden[stated[i] - start, predicted[i]]}
            if not people or len(people) >= LEAST_PATIENTS or hidden.all():
                break
            hidden |= inside == inside[~hidden].min()
        cells += [
            [None if hide else int(count) for hide, count in zip(*row, strict=True)]
            for row in zip(hidden, inside, strict=True)
        ]
        rest.append([start, int(inside[hidden].sum())])
    return {"cells": cells, "rest": rest}


def pooled_table(tables: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """Return the estimated table of all sites, (grade, grade).

    Patients of hidden cells are spread by a model of ordered tables, uniform association (Goodman, Journal of the
    American Statistical Association 1979), which is fitted to the reported cells by expectation maximisation.

    Args:
        tables: of each site.
    """
    cells = [np.array(table["cells"], dtype=float) for table in tables]
    grades = len(cells[0])
    model = 0.5 ** np.abs(np.subtract.outer(np.arange(grades), np.arange(grades)))
    whole: NDArray[np.float64] = model
    association = 0.0
    for _ in range(_FITTING_STEPS):
        before = whole
        whole = np.sum([_filled(own, table["rest"], model) for own, table in zip(cells, tables, strict=True)], axis=0)
        if np.abs(whole - before).max() < _CONVERGED:
            break
        model, association = _uniform_association(whole, association)
    return whole


def share_reported(tables: Sequence[Mapping[str, Any]]) -> float:
    """Return the share of all sites' patients in reported cells."""
    rest = sum(row[1] for table in tables for row in table["rest"])
    whole = sum(sum(_totals(table)) for table in tables)
    return float(1 - rest / whole)


def _filled(
    cells: NDArray[np.float64], rest: Sequence[Sequence[int]], model: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return a site's table with hidden patients spread by the model."""
    hidden = np.isnan(cells)
    found: NDArray[np.float64] = np.nan_to_num(cells)
    ends = [*(start for start, _ in rest[1:]), len(cells)]
    for (start, count), end in zip(rest, ends, strict=True):
        share = np.where(hidden[start:end], model[start:end], 0.0)
        if count:
            found[start:end] += count * share / share.sum()
    return found


def _uniform_association(table: NDArray[np.float64], association: float) -> tuple[NDArray[np.float64], float]:
    """Return a table's fit by uniform association, and the association.

    log m(i, j) = row(i) + column(j) + association i j

    Args:
        table: (grade, grade).
        association: where the fit starts.
    """
    places = np.arange(len(table), dtype=float)
    places -= places.mean()
    products = np.outer(places, places)
    rows, columns = table.sum(axis=1) + _LEAST_COUNT, table.sum(axis=0) + _LEAST_COUNT
    columns *= rows.sum() / columns.sum()
    wanted = float((table * products).sum())
    # Without errors the association has no end: it stops where no float overflows.
    largest = _LARGEST_EXPONENT / products.max()
    fit: NDArray[np.float64] = np.exp(association * products)
    for _ in range(_FITTING_STEPS):
        for _ in range(5):
            fit *= (rows / fit.sum(axis=1))[:, None]
            fit *= columns / fit.sum(axis=0)
        mean = (fit * products).sum() / fit.sum()
        variance = (fit * (products - mean) ** 2).sum()
        step = float(np.clip((wanted - mean * fit.sum()) / variance, -0.2, 0.2))
        step = float(np.clip(association + step, -largest, largest)) - association
        association += step
        fit = fit * np.exp(step * products)
        if abs(step) < 1e-4:
            break
    return fit, association


def coarser_table(sums: Mapping[str, Any], minimum: int) -> dict[str, Any] | None:
    """Return sums with at least ``minimum`` patients behind each number.

    None: nothing is left.
    """
    if sums["patients"] < minimum:
        return None
    table = sums["table"]
    totals = _totals(table)
    kept: list[int] = []
    below = 0
    for number, (start, _) in enumerate(table["rest"]):
        if start and below >= minimum and sum(totals[number:]) >= minimum:
            kept.append(start)
            below = 0
        below += totals[number]
    at_least = {}
    for step in kept:
        one = sums["at_least"].get(str(step))
        if one is None:
            continue
        cells = {kind: coarser(one[kind], minimum) for kind in ("with", "without")}
        if all(cells.values()):
            at_least[str(step)] = {**one, **cells}
    counts = np.array(table["cells"], dtype=float)
    rest = []
    cells_left: list[list[int | None]] = []
    for start, end in zip([0, *kept], [*kept, len(counts)], strict=True):
        inside = counts[start:end].copy()
        whole = sum(total for total, (first, _) in zip(totals, table["rest"], strict=True) if start <= first < end)
        inside[inside < minimum] = np.nan
        while 0 < whole - np.nansum(inside) < minimum and np.isfinite(inside).any():
            inside[inside == np.nanmin(inside)] = np.nan
        cells_left += [[None if np.isnan(cell) else int(cell) for cell in row] for row in inside]
        rest.append([start, int(whole - np.nansum(inside))])
    return {**sums, "table": {"cells": cells_left, "rest": rest}, "at_least": at_least}


def is_table(value: Any, grades: int, most: int) -> bool:
    """Return whether a value has the form of a grade's sums.

    Args:
        value: as sent.
        grades: how many there are.
        most: cases that the site has at most.
    """
    if not isinstance(value, Mapping) or set(value) != {"patients", "table", "at_least"}:
        return False
    table, at_least = value["table"], value["at_least"]
    if not isinstance(table, Mapping) or set(table) != {"cells", "rest"} or not isinstance(at_least, Mapping):
        return False
    if not _are_cells(table["cells"], grades, most) or not _are_rests(table["rest"], grades, most):
        return False
    totals = _totals(table)
    starts = [row[0] for row in table["rest"]]
    if not is_patients(value["patients"], most) or not value["patients"] <= sum(totals) <= most:
        return False
    if not all(total >= LEAST_PATIENTS for total in totals) or not _have_places(table):
        return False
    if not set(at_least) <= {str(step) for step in starts[1:]} or not all(map(is_ranked, at_least.values())):
        return False
    return all(
        sum(cell[1] for cell in at_least[str(start)][kind]) == sum(part)
        for number, start in enumerate(starts)
        if str(start) in at_least
        for kind, part in (("with", totals[number:]), ("without", totals[:number]))
    )


def _are_cells(value: Any, grades: int, most: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == grades
        and all(isinstance(row, list) and len(row) == grades for row in value)
        and all(cell is None or is_patients(cell, most) for row in value for cell in row)
    )


def _are_rests(value: Any, grades: int, most: int) -> bool:
    """Return whether a value counts hidden patients by step: enough or none."""
    if not isinstance(value, list) or not value:
        return False
    if not all(isinstance(row, list) and len(row) == 2 and is_count(row[0], grades - 1) for row in value):
        return False
    starts = [row[0] for row in value]
    return (
        starts[0] == 0
        and starts == sorted(set(starts))
        and all(is_count(row[1], most) and is_part(0, row[1]) for row in value)
    )


def _have_places(table: Mapping[str, Any]) -> bool:
    """Return whether steps with hidden patients have hidden cells."""
    starts = [row[0] for row in table["rest"]]
    return all(
        not rest or any(cell is None for row in table["cells"][start:end] for cell in row)
        for (start, rest), end in zip(table["rest"], [*starts[1:], len(table["cells"])], strict=True)
    )


def _totals(table: Mapping[str, Any]) -> list[int]:
    """Return the number of patients of each step."""
    starts = [row[0] for row in table["rest"]]
    ends = [*starts[1:], len(table["cells"])]
    return [
        rest + sum(cell or 0 for row in table["cells"][start:end] for cell in row)
        for (start, rest), end in zip(table["rest"], ends, strict=True)
    ]
