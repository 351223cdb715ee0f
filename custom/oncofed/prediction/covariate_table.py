"""A table of covariates beside the images that are predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from oncofed.data.covariates import Covariate, row_faults, stated
from oncofed.data.grouping import counted
from oncofed.data.label_mapping import name_key
from oncofed.errors import SpecError
from oncofed.prediction.evaluation.subgroup_columns import table_columns
from oncofed.prediction.sources import SetAside, Sources


def with_table(sources: Sources, path: Path, columns: Sequence[Covariate]) -> Sources:
    """Return sources with a table's values of the job's columns.

    Args:
        sources: as gathered.
        path: of the table, with a column case (or image), study or patient.
        columns: of the job (``data.covariates``).

    Raises:
        DataError: it is no table, or names none of the cases.
        SpecError: the job reads no columns, or the table has none of them.
    """
    names = {name_key(column.name) for column in columns}
    if not names:
        raise SpecError(f"--table {path}: the job reads no columns of a table (data.covariates). Leave it out")
    cases = [replace(source.case, name=source.name) for source in sources.cases]
    if not cases:
        return sources
    found, unmatched = table_columns(path, cases, cases[0].folder or path.parent)
    read = {column: values for column, values in found.items() if name_key(column) in names}
    if not read:
        wanted = ", ".join(column.name for column in columns)
        raise SpecError(f"{path}: found the columns {', '.join(found)}, expected some of {wanted}")
    if unmatched:
        sources.notes.append(f"{counted(unmatched, 'row')} of {path.name} are of no case that is predicted")
    kept, aside = [], list(sources.set_aside)
    for source in sources.cases:
        tags = {column: values[source.name] for column, values in read.items() if values.get(source.name)}
        known = {name_key(column) for column in tags}
        own = {name: text for name, text in source.entry.tags.items() if name_key(name) not in known}
        entry = source.entry.model_copy(update={"tags": {**own, **tags}})
        faults = row_faults(entry, columns)
        if faults:
            aside.append(SetAside(source.name, "; ".join(faults), source.entry.source or ""))
        else:
            kept.append(replace(source, entry=entry, case=replace(source.case, entry=entry)))
    return replace(sources, cases=kept, set_aside=aside)


def table_notes(sources: Sources, columns: Sequence[Covariate]) -> list[str]:
    """Return how many cases state none of the columns that the job reads; empty where all do."""
    bare = [one for one in sources.cases if columns and not any(stated(one.entry, column) for column in columns)]
    if not bare:
        return []
    names = ", ".join(column.name for column in columns)
    return [f"{len(bare)} of {counted(len(sources.cases), 'case')} state none of {names}: taken as missing (--table)"]
