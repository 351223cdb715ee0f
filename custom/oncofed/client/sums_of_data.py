"""The sums over training patients that a site tells before the first round."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from oncofed.client.local_training import PATIENTS_OF_SUMS, ProgressReporter
from oncofed.client.progress import ThrottledProgress
from oncofed.data.case import Case
from oncofed.data.harmonization.agreed import enough_patients
from oncofed.data.harmonization.sums import ToldSums, told_sums
from oncofed.data.manifest import Entry
from oncofed.data.moments import Measured, site_sums
from oncofed.data.slides.site_tiles import site_tiles
from oncofed.data.spec import DataSpec
from oncofed.data.transforms import image_landmarks
from oncofed.training import Trainer


def sums_of_data(
    trainer: Trainer,
    images: Sequence[tuple[str, Entry | None]],
    progress: ThrottledProgress,
    reporter: ProgressReporter,
) -> dict[str, Any]:
    """Return sums over the training patients, and by name whom they are of.

    Args:
        trainer: of the site.
        images: for training, each with its patient's key.
        progress: of reading landmarks of intensity.
        reporter: is told why sums stay here.

    Raises:
        DataError: ComBat needs more patients than there are.
    """
    data, cases = trainer.plan.data, trainer.cases.train
    measured = _landmarks(cases, data, progress) if data.intensity_columns else None
    if not data.harmonization.groups:
        return _sums(cases, images, data, measured)
    columns, values = data.combat_columns, trainer.patient_values()
    enough_patients(values)
    told = told_sums(values, columns.preserved_names, [column.name for column in columns.moved])
    if told.withheld:
        reporter.note(f"no sums for data.harmonization leave this site: {told.withheld}", logging.WARNING)
    return _sums(cases, images, data, measured, told)


def _landmarks(cases: Sequence[Case], data: DataSpec, progress: ThrottledProgress) -> Measured:
    """Return what reads a case's landmarks of intensity, and reports how far it is."""
    report, done = progress.counter("loading data"), itertools.count(1)

    def measured(case: Case) -> Mapping[str, float]:
        found = image_landmarks(case, data)
        report(next(done), len(cases))
        return found

    return measured


def _sums(
    cases: Sequence[Case],
    images: Sequence[tuple[str, Entry | None]],
    data: DataSpec,
    measured: Measured | None = None,
    combat: ToldSums | None = None,
) -> dict[str, Any]:
    """Return sums over the training patients, and by name whom they are of."""
    found: dict[str, Any] = {}
    groups: dict[str, list[list[str]]] = {}
    if combat and combat.message:
        found["harmonization"], groups["harmonization"] = combat.message, [list(combat.patients)]
    if data.agreed_columns:
        # A number that is in both sums is of the same patients: else their difference would be of few.
        of_both = set(data.combat_columns.names) if combat and combat.message else set()
        alone = [column for column in data.agreed_columns if column.name not in of_both]
        both = [column for column in data.agreed_columns if column.name in of_both]
        told, groups["covariates"] = site_sums(cases, alone, measured)
        if both and combat:
            same = [case for case in cases if case.patient in set(combat.patients)]
            of_same, others = site_sums(same, both)
            told, groups["covariates"] = told | of_same, [*groups["covariates"], *others]
        found["covariates"] = told
    if data.may_be_slides:
        tiles, patients = site_tiles((patient, entry.tile_quality if entry else None) for patient, entry in images)
        if tiles:
            found["tiles"], groups["tiles"] = tiles, [patients]
    return {**found, PATIENTS_OF_SUMS: groups} if found else {}
