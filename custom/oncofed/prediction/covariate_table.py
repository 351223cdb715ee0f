"""A table beside the images that are predicted: covariates, and what is known of targets.

It is read as ``oncofed data register`` reads it, so that the table of a registered dataset serves as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from oncofed.data.case import Case, with_targets
from oncofed.data.covariates import Covariate, row_faults, stated
from oncofed.data.grouping import counted
from oncofed.data.label_mapping import Supervision, Vocabulary
from oncofed.data.label_names import name_key
from oncofed.data.layouts.tables import Row, Table
from oncofed.data.layouts.targets import differing_targets, read_with_targets
from oncofed.data.manifest import Manifest
from oncofed.data.target_columns import TableTargets
from oncofed.data.targets import is_known
from oncofed.errors import DataError, SpecError
from oncofed.prediction.evaluation.subgroup_columns import KEYS, agreed, rows_of_cases
from oncofed.prediction.sources import SetAside, Source, Sources

_MOST_NAMED = 12


@dataclass(frozen=True)
class TableReading:
    """How to read a table for a model.

    Attributes:
        columns: that the job reads (``data.covariates``).
        said: what the user says of the table's columns, as for ``oncofed data register --targets``; None: nothing.
        supervision: what the job learns; of one with targets, the table's are those that its answers stand beside.
    """

    columns: Sequence[Covariate]
    said: TableTargets | None = None
    supervision: Supervision | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """The job's targets that the table may state."""
        wanted = self.supervision.targets if self.supervision and self.said and self.said.targets else ()
        return tuple(target.name for target in wanted)


def with_table(sources: Sources, path: Path, reading: TableReading) -> Sources:
    """Return sources with a table's values of the job's columns and targets.

    A case whose rows contradict one another, or cannot be read, is set aside; other columns may say anything.

    Args:
        sources: as gathered.
        path: of the table, with a column case (or image, file), series, study or patient.
        reading: what is read of it.

    Raises:
        DataError: it is no table, names none of the cases, or a target's column cannot be read.
        SpecError: the job reads no columns, or the table has none of them.
    """
    if not reading.columns and not reading.targets:
        more = " and no target of --targets" if reading.said else ""
        raise SpecError(f"--table {path}: the job reads no columns of a table (data.covariates){more}. Leave it out")
    if not sources.cases:
        return sources
    table = read_with_targets(path, reading.said)
    names = {name_key(column.name) for column in reading.columns}
    read = [column for column in table.columns if name_key(column) in names]
    sources.notes += _missing(path, table, reading, read)
    rows, unmatched = _rows(path, table, sources)
    if unmatched:
        sources.notes.append(f"{counted(unmatched, 'row')} of {path.name} are of no case that is predicted")
    kept, aside = [], list(sources.set_aside)
    for source in sources.cases:
        own = rows.get(source.name, [])
        if fault := _fault(own, read, path):
            aside.append(SetAside(source.name, fault, source.entry.source or ""))
            continue
        found = _with_rows(source, own, read, reading, table)
        faults = [*row_faults(found.entry, reading.columns), *filter(None, [found.case.target_fault])]
        if faults:
            aside.append(SetAside(source.name, "; ".join(faults), source.entry.source or ""))
        else:
            kept.append(found)
    return replace(sources, cases=kept, set_aside=aside)


def table_notes(sources: Sources, columns: Sequence[Covariate]) -> list[str]:
    """Return how many cases do not state what the job reads; empty where all do."""
    everybody = counted(len(sources.cases), "case")
    some = [one for one in sources.cases if any(stated(one.entry, column) for column in columns)]
    notes = []
    if columns and len(some) < len(sources.cases):
        names = ", ".join(column.name for column in columns)
        bare = len(sources.cases) - len(some)
        notes.append(f"{bare} of {everybody} state none of {names}: taken as missing (--table)")
    lacking = {column.name: sum(not stated(one.entry, column) for one in some) for column in columns}
    return notes + [
        f"{number} of {everybody} state other columns, and no {name}: taken as missing"
        for name, number in lacking.items()
        if number
    ]


def _missing(path: Path, table: Table, reading: TableReading, read: Sequence[str]) -> list[str]:
    """Return which columns and targets of the job the table does not have.

    Raises:
        SpecError: it has none of them.
    """
    found = [column for column in table.columns if column and column not in KEYS]
    shown = ", ".join(found[:_MOST_NAMED]) + (", …" if len(found) > _MOST_NAMED else "") or "no other column"
    keys = {name_key(column) for column in read}
    lacking = [column.name for column in reading.columns if name_key(column.name) not in keys]
    untold = [name for name in reading.targets if name not in table.targets]
    dates = f"; left out because they hold dates: {', '.join(table.dates)}" if table.dates else ""
    if len(lacking) == len(reading.columns) and len(untold) == len(reading.targets):
        wanted = ", ".join([*lacking, *untold])
        raise SpecError(f"{path}: found the columns {shown}, expected some of {wanted}{dates}")
    notes = [f"{path.name} has no column {name}, which the model reads; found {shown}{dates}" for name in lacking]
    return notes + [f"{path.name} states no target {name} (--targets {name}=KIND:COLUMN)" for name in untold]


def _rows(path: Path, table: Table, sources: Sources) -> tuple[Mapping[str, list[Row]], int]:
    """Return the rows of each case, by its name, and how many rows are of none.

    Raises:
        DataError: the table names no case of any input.
    """
    inputs: dict[Path, list[Case]] = {}
    for source in sources.cases:
        folder = source.case.folder or path.parent
        inputs.setdefault(folder, []).append(replace(source.case, name=source.name))
    found: dict[str, list[Row]] = {}
    for number, (folder, cases) in enumerate(inputs.items(), start=1):
        # The last one refuses a table that names a case of none.
        least = 1 if number == len(inputs) and not found else 0
        found |= rows_of_cases(path, table, cases, folder, least)[0]
    matched = {row.line for own in found.values() for row in own}
    return found, sum(row.line not in matched for row in table.rows)


def _fault(rows: Sequence[Row], read: Sequence[str], path: Path) -> str:
    """Return why the rows of a case cannot be used; empty if they can."""
    faults = (row.fault or "; ".join(row.unread.values()) for row in rows)
    if fault := next(filter(None, faults), ""):
        return fault
    for row in rows[1:]:
        if other := differing_targets(rows[0], row):
            lines = f"lines {rows[0].line} and {row.line}"
            return f"{lines} of the table are of one case and say another {' and '.join(other)} each. Correct the table"
    try:
        for column in read:
            agreed(rows, column, path)
    except DataError as error:
        return str(error)
    return ""


def _with_rows(source: Source, rows: Sequence[Row], read: Sequence[str], reading: TableReading, table: Table) -> Source:
    """Return a case with what its rows say."""
    tags = {column: text for column in read for row in rows if (text := row.cells.get(column))}
    known = {name_key(column) for column in tags}
    own = {name: text for name, text in source.entry.tags.items() if name_key(name) not in known}
    entry = source.entry.model_copy(update={"tags": {**own, **tags}})
    source = replace(source, entry=entry, case=replace(source.case, entry=entry))
    stated_here = rows[0].targets if rows and reading.targets else {}
    if not stated_here or reading.supervision is None:
        return source
    of_table = Manifest(training=[], targets=dict(table.targets))
    bare = entry.model_copy(update={"targets": dict(stated_here)})
    # A mask beside them stays what the folder holds.
    told = Supervision("targets", targets=reading.supervision.targets)
    found = with_targets(source.case, of_table, bare, told, Vocabulary())
    if found is None:
        return source
    before = source.case.targets
    targets = {name: new if is_known(new) else before.get(name, new) for name, new in found.targets.items()}
    entry = entry.model_copy(update={"targets": {**entry.targets, **stated_here}})
    return replace(source, entry=entry, case=replace(found, entry=entry, targets=targets), labelled=True)
