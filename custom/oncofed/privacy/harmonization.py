"""Validates a site's sums for ComBat.

They are of five patients or more, and of numbers that the job declares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from oncofed.data.harmonization.combat import Sums
from oncofed.data.harmonization.sums import BOUNDS, COVARIATE_BOUND, DIGITS, SumsForm, read_sums
from oncofed.privacy.evaluations import is_number
from oncofed.suppression import LEAST_PATIENTS

_ROUNDING = 10.0 ** (1 - DIGITS)
_OF_GROUP = {"sum", "joint", "squares"}


def are_combat_sums(value: Any, form: SumsForm, cases: Any) -> bool:
    """Return whether a value is one that ``data.harmonization.sums.told_sums`` may make.

    Args:
        value: a site's message.
        form: of the job's sums.
        cases: no sum is of more patients.
    """
    if value == {}:
        return True
    if (
        not form.sizes
        or not isinstance(value, Mapping)
        or set(value) != {"patients", "covariates", "scatter", *form.sizes}
    ):
        return False
    if not _is_count(value["patients"], cases) or not _has_shapes(value, form):
        return False
    return all(_are_possible(read_sums(value, group), BOUNDS[group]) for group in form.sizes)


def _is_count(patients: Any, cases: Any) -> bool:
    counts = all(isinstance(one, int) and not isinstance(one, bool) for one in (patients, cases))
    return counts and bool(LEAST_PATIENTS <= patients <= cases)


def _has_shapes(value: Mapping[str, Any], form: SumsForm) -> bool:
    covariates = form.covariates
    if not _is_list(value["covariates"], covariates) or not _is_table(value["scatter"], covariates, covariates):
        return False
    return all(
        isinstance(of, Mapping)
        and set(of) == _OF_GROUP
        and _is_list(of["sum"], size)
        and _is_list(of["squares"], size)
        and _is_table(of["joint"], covariates, size)
        for of, size in ((value[group], size) for group, size in form.sizes.items())
    )


def _is_list(values: Any, length: int) -> bool:
    return isinstance(values, list) and len(values) == length and all(is_number(v) and _is_rounded(v) for v in values)


def _is_table(rows: Any, count: int, length: int) -> bool:
    return isinstance(rows, list) and len(rows) == count and all(_is_list(row, length) for row in rows)


def _is_rounded(value: float) -> bool:
    return float(value) == float(f"{value:.{DIGITS}g}")


def _are_possible(sums: Sums, bound: float) -> bool:
    """Return whether some patients' numbers within their bounds have these sums."""
    slack, most = 1 + _ROUNDING, sums.patients
    scatter = np.diag(sums.scatter)
    # No joint scatter is larger than both own ones allow (Cauchy and Schwarz).
    largest = np.sqrt(np.outer(np.maximum(scatter, 0), np.maximum(sums.squares, 0))) * slack + _ROUNDING * bound
    return bool(
        (np.abs(sums.covariates) <= most * COVARIATE_BOUND * slack).all()
        and (np.abs(sums.values) <= most * bound * slack).all()
        and (scatter >= 0).all()
        and (scatter <= most * COVARIATE_BOUND**2 * slack).all()
        and (sums.squares >= 0).all()
        and (sums.squares <= most * bound**2 * slack).all()
        and np.array_equal(sums.scatter, sums.scatter.T)
        and (np.abs(sums.joint) <= largest).all()
    )
