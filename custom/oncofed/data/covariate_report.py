"""What a dataset's table has of a job's covariates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from oncofed.data.covariates import Covariate, row_faults, row_of
from oncofed.data.decisions import name_of
from oncofed.data.label_names import name_key
from oncofed.data.manifest import Entry
from oncofed.data.quality import Finding
from oncofed.suppression import LEAST_PATIENTS, told_count, withheld_counts


@dataclass(frozen=True)
class CovariateReport:
    """A covariate over a dataset's patients.

    Attributes:
        column: of the job.
        values: of the patients who have it, as the network takes them; a patient with several has the first.
        patients: in all.
    """

    column: Covariate
    values: tuple[float, ...]
    patients: int

    @property
    def found(self) -> str:
        """How many patients have it, and how it is distributed where five or more are behind a number."""
        having = f"{told_count(len(self.values))} of {self.patients} patients have it"
        if len(self.values) < LEAST_PATIENTS:
            return having
        if self.column.range:
            unit = f" {self.column.unit}" if self.column.unit else ""
            mean, spread = float(np.mean(self.values)), float(np.std(self.values))
            return f"{having}; mean {mean:.3g}{unit}, spread {spread:.3g}"
        counted = Counter(self.column.categories[int(value)] for value in self.values)
        counts = {name: counted.get(name, 0) for name in self.column.categories}
        hidden = withheld_counts({name: n for name, n in counts.items() if n}, len(self.values), LEAST_PATIENTS)
        told = ", ".join(f"{name} {'few*' if name in hidden else n}" for name, n in counts.items())
        note = f"; * fewer than {LEAST_PATIENTS}, or such that others would tell of as few" if hidden else ""
        return f"{having}; {told}{note}"

    @property
    def expected(self) -> str:
        """What the job takes."""
        if not self.column.range:
            return f"one of {', '.join(self.column.categories)}"
        low, high = self.column.range
        return f"a number from {low:g} to {high:g}{f' {self.column.unit}' if self.column.unit else ''}"

    @property
    def is_missing(self) -> bool:
        """Whether nobody has it."""
        return not self.values

    @property
    def is_constant(self) -> bool:
        """Whether all who have it have the same value."""
        return len(self.values) >= LEAST_PATIENTS and len(set(self.values)) == 1


def covariate_reports(entries: Sequence[Entry], columns: Sequence[Covariate]) -> list[CovariateReport]:
    """Return a report of each covariate; values outside range or vocabulary are left out.

    Args:
        entries: of the dataset.
        columns: of the job.
    """
    patients = {entry.patient or name_of(entry) for entry in entries}
    found = []
    for column in columns:
        values: dict[str, float] = {}
        for entry in entries:
            value = row_of(entry, [column])[0] if not row_faults(entry, [column]) else np.nan
            if not np.isnan(value):
                values.setdefault(entry.patient or name_of(entry), value)
        found.append(CovariateReport(column, tuple(values.values()), len(patients)))
    return found


def columns_used(entries: Sequence[Entry], columns: Sequence[Covariate]) -> set[str]:
    """Return the dataset's names of the columns that a job uses."""
    wanted = {name_key(column.name) for column in columns}
    return {name for entry in entries for name in entry.tags if name_key(name) in wanted}


def covariate_warnings(entries: Sequence[Entry], reports: Sequence[CovariateReport]) -> Iterator[Finding]:
    """Yield what a person should know: columns that nobody has, and constant ones."""
    known = ", ".join(sorted({name for entry in entries for name in entry.tags})) or "none"
    for report in reports:
        name = report.column.name
        if report.is_missing:
            what = f"no case has a value in column {name}; the table's columns are {known}"
            yield Finding("missing covariate", None, what, severe=False)
        elif report.is_constant:
            what = f"column {name} is the same for all {len(report.values)} patients: it tells nothing here"
            yield Finding("constant covariate", None, what, severe=False)
