"""Mean and spread of a table's numbers, and of slides' stains, at one site and over all.

A number is counted from the middle of its plausible range, in widths of it: sums are then bounded, and their squares
lose no digits. A patient's images count as one.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from oncofed.data.case import Case
from oncofed.data.covariates import Covariate, row_of
from oncofed.data.harmonization.landmarks import IntensityColumn
from oncofed.data.stain.columns import StainColumn
from oncofed.data.stain.of_case import stain_row
from oncofed.suppression import LEAST_PATIENTS

# Numbers of a case's image, by column.
Measured = Callable[[Case], Mapping[str, float]]
# Of one column: patients, sum, and sum of squares.
Sums = Sequence[float]
Moments = dict[str, tuple[float, float]]
# Decimals of sums that leave a site: further ones could carry hidden information.
DECIMALS = 4
# A spread below this share of the range is that of a column that hardly varies.
_LEAST_SPREAD = 1e-3


def numbers_of(columns: Sequence[Covariate]) -> list[str]:
    """Return the names of the columns that are numbers."""
    return [column.name for column in columns if column.range]


def known_patients(
    cases: Iterable[Case], columns: Sequence[Covariate], measured: Measured | None = None
) -> dict[str, dict[str, float]]:
    """Return each number's values by patient, the mean of the patient's cases; of a stain, of all slides.

    Args:
        cases: of the patients.
        columns: of the job.
        measured: tells a case's landmarks of intensity; None: no column is one.
    """
    values: dict[str, dict[str, list[float]]] = {name: {} for name in numbers_of(columns)}
    of_stain = [column for column in columns if isinstance(column, StainColumn)]
    of_table = [column for column in columns if not isinstance(column, StainColumn | IntensityColumn)]
    for case in cases:
        row = zip((column.name for column in of_table), row_of(case.entry, of_table), strict=True)
        stains = (pair for slide in case.slides for pair in stain_row(slide, of_stain).items())
        for name, value in (*row, *stains, *(measured(case).items() if measured else ())):
            if name in values and not math.isnan(value):
                values[name].setdefault(case.patient, []).append(value)
    return {name: {patient: float(np.mean(some)) for patient, some in of.items()} for name, of in values.items()}


def site_sums(
    cases: Sequence[Case], columns: Sequence[Covariate], measured: Measured | None = None
) -> tuple[dict[str, list[float]], list[list[str]]]:
    """Return the sums that may leave a site, and the patients behind each.

    A column is left out that fewer than five patients have, or in which fewer than five differ from the commonest
    value, so that a rare value is in no sum. Of a column that one to four lack, others are left out too, up to five.

    Args:
        cases: for training.
        columns: of the job.
        measured: see ``known_patients``.

    Returns:
        Column -> [patients, sum, sum of squares], and keys of patients.
    """
    everybody = len({case.patient for case in cases})
    found: dict[str, list[float]] = {}
    groups = set()
    by_name = {column.name: column for column in columns}
    for name, values in known_patients(cases, columns, measured).items():
        # By a hash, so that the next job leaves out the same.
        patients = sorted(values, key=lambda patient: hashlib.sha256(patient.encode()).digest())
        if len(patients) < everybody:
            patients = patients[: max(everybody - LEAST_PATIENTS, 0)]
        known = [values[patient] for patient in patients]
        commonest = max(Counter(known).values(), default=0)
        if len(known) - commonest < LEAST_PATIENTS:
            continue
        scaled = np.array([_scaled(value, by_name[name]) for value in known])
        sums = [float(scaled.sum()), float(scaled @ scaled)]
        found[name] = [len(known), *(round(part, DECIMALS) for part in sums)]
        groups.add(tuple(sorted(patients)))
    return found, [list(group) for group in sorted(groups)]


def moments_of(of_sites: Iterable[Mapping[str, Sums]], columns: Sequence[Covariate]) -> Moments:
    """Return mean and spread over the patients of several sites.

    Args:
        of_sites: what ``site_sums`` made at each.
        columns: of the job.

    Returns:
        Column -> mean and standard deviation; without those of which no site told.
    """
    parts = list(of_sites)
    found: Moments = {}
    for column in columns:
        own = [part[column.name] for part in parts if column.name in part]
        if column.range and own:
            patients, total, squares = (math.fsum(sums[place] for sums in own) for place in range(3))
            mean = total / patients
            found[column.name] = _unscaled(mean, math.sqrt(max(squares / patients - mean**2, 0.0)), column)
    return found


def own_moments(cases: Sequence[Case], columns: Sequence[Covariate], measured: Measured | None = None) -> Moments:
    """Return mean and spread over the patients of cases that are at hand."""
    found: Moments = {}
    by_name = {column.name: column for column in columns}
    for name, values in known_patients(cases, columns, measured).items():
        if values:
            scaled = np.array([_scaled(value, by_name[name]) for value in values.values()])
            found[name] = _unscaled(float(scaled.mean()), float(scaled.std()), by_name[name])
    return found


def _scaled(value: float, column: Covariate) -> float:
    assert column.range
    low, high = column.range
    return (value - (low + high) / 2) / (high - low)


def _unscaled(mean: float, spread: float, column: Covariate) -> tuple[float, float]:
    assert column.range
    low, high = column.range
    usual = column.usual[1]
    return (low + high) / 2 + mean * (high - low), spread * (high - low) if spread > _LEAST_SPREAD else usual
