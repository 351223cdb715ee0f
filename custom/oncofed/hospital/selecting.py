"""Select a cohort from a site's records: read, recorded, selected, written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from oncofed.audit import AuditLog
from oncofed.records import Cohort, CohortSpec, open_source, select_cohort, write_cohort
from oncofed.records.crosswalk import read_crosswalk
from oncofed.records.files import Changes
from oncofed.records.model import Doing, Records

SELECTED, LISTED = "cohort selected", "vocabulary of records listed"


@dataclass(frozen=True)
class Selected:
    """A cohort that was selected and written.

    Attributes:
        spec: its settings.
        cohort: who belongs to it.
        changes: since the last time; None: it is the first.
        notes: what a person should know of it; they name no patient.
    """

    spec: CohortSpec
    cohort: Cohort
    changes: Changes | None
    notes: tuple[str, ...]

    @property
    def patients(self) -> int:
        """Number of patients of the images."""
        return len({row.link.patient for row in self.cohort.rows})


def select(
    spec: CohortSpec,
    folder: Path,
    kit: Path | None,
    doing: Doing,
    named: Callable[[str], str] = str,
) -> Selected:
    """Select a cohort, record its queries in the site's audit log, and write its tables.

    Args:
        spec: the cohort's settings.
        folder: for the tables; those of an earlier selection are replaced.
        kit: of the site; None: nothing is recorded.
        doing: called as work goes on.
        named: PatientID -> what the registered images call the patient.

    Raises:
        DataError: the records cannot be read, or nobody is left.
    """
    links = read_crosswalk(spec.crosswalk)
    records = read_records(spec, kit, doing)
    cohort = select_cohort(records, spec, links)
    changes = write_cohort(cohort, spec, records, folder, named)
    counted = (
        (links.ambiguous, "patients of the crosswalk belong to several persons, and were left out"),
        (links.several, "persons have images under several patients: let the PACS merge them, else they count apart"),
    )
    crossed = [f"{count:,} {what}" for count, what in counted if count]
    return Selected(spec, cohort, changes, (*records.notes, *cohort.notes, *crossed))


def read_records(spec: CohortSpec, kit: Path | None, doing: Doing, what: str = SELECTED) -> Records:
    """Return the records that a cohort asks for; the digests of the queries are in the site's audit log.

    Raises:
        DataError: they cannot be read.
        AuditError: it cannot be recorded.
    """
    records = open_source(spec, doing).read(spec)
    if kit:
        AuditLog(kit).write(what, cohort=spec.name, queries=[digest for _, digest in records.queries])
    return records
