"""What ComBat takes of cases: a mean of each patient."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from oncofed.data.case import Case
from oncofed.data.covariates import row_of
from oncofed.data.harmonization.agreed import PatientValues
from oncofed.data.harmonization.combat import Numbers
from oncofed.data.harmonization.spec import COLUMNS, FEATURES
from oncofed.data.spec import DataSpec


def patient_values(cases: Sequence[Case], data: DataSpec, features: Callable[[Case], Tensor]) -> PatientValues:
    """Return what is to be made alike of each patient, and the covariates that are preserved.

    A patient's cases count as one, by their mean; so do a case's tiles.

    Args:
        cases: of one site.
        data: of the job.
        features: of a case's tiles, (tile, feature); asked only where the job makes them alike.

    Raises:
        DataError: a value of the table is outside its range or vocabulary.
    """
    columns, groups = data.combat_columns, data.harmonization.groups
    rows = torch.tensor([row_of(case.entry, data.covariates) for case in cases], dtype=torch.float64)
    rows = rows.reshape(len(cases), len(data.covariates))
    patients = sorted({case.patient for case in cases})
    places = [[n for n, case in enumerate(cases) if case.patient == patient] for patient in patients]

    def by_patient(values: Numbers) -> Numbers:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of a patient of whom nothing is known
            means = [np.nanmean(values[own], axis=0) for own in places]
        return np.stack(means) if means else values

    values = {}
    if FEATURES in groups:
        means = [features(case).double().mean(dim=0).cpu().numpy() for case in cases]
        values[FEATURES] = by_patient(np.stack(means)) if means else np.zeros((0, 0))
    if COLUMNS in groups:
        values[COLUMNS] = by_patient(columns.values(rows).numpy())
    return PatientValues(tuple(patients), by_patient(columns.covariates(rows).numpy()), values)
