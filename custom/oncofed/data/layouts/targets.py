"""A table with its targets read: its rows state them, and their columns are gone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

from oncofed.data.layouts.tables import Row, Table, read_table
from oncofed.data.target_columns import TableTargets
from oncofed.data.target_columns.base import ReadTarget, coded
from oncofed.data.target_columns.cells import is_unknown
from oncofed.data.target_columns.dates import DAYS, days_since_first, hold_dates, read_dates
from oncofed.data.target_columns.section import SplitByDate
from oncofed.errors import DataError

_LOOKED_FOR = "looked_for"
_DATE = "date"  # of the examination


def read_with_targets(path: Path, wanted: TableTargets | None) -> Table:
    """Read a table and its targets.

    Columns of targets and columns that hold dates are left out of the rows: neither becomes a tag.

    Args:
        path: of the table.
        wanted: what the user says of its targets; None: it states none.

    Raises:
        DataError: it cannot be read, lacks a column, or a column may be read in two ways.
    """
    table = read_renamed(path, wanted)
    rows = {row.line: row for row in table.rows}
    faults: dict[int, str] = {}
    unread: dict[int, dict[str, str]] = defaultdict(dict)
    read: dict[str, ReadTarget] = {}
    used: set[str] = set()
    for name, target in wanted.targets.items() if wanted else ():
        _require(path, table, name, target.columns)
        lines = [(row.line, row.cells) for row in table.rows if not row.fault]
        try:
            found = target.read(lines)
            read[name] = replace(found, declared=coded(found.declared, target))
        except DataError as error:
            raise DataError(f"{path}: target {name}: {error}") from None
        used |= set(target.columns)
        wrong = read[name].faults | (_contradictions(read[name], rows) if target.per == "patient" else {})
        for line, why in wrong.items():
            unread[line][name] = f"line {line}: target {name}: {why}"
    splits: dict[int, str] = {}
    if wanted and wanted.split:
        used.add(wanted.split.column)
        splits = _splits(path, table, wanted.split, faults)
    days = days_since_first(_examined(path, table, wanted))
    dates = _with_dates(table, used)
    gone = used | set(dates) | {_LOOKED_FOR, *([_DATE] if days else [])}
    kept = [
        replace(
            row,
            cells={column: text for column, text in row.cells.items() if column not in gone}
            | ({"split": splits[row.line]} if row.line in splits else {})
            | ({DAYS: days[row.line]} if row.line in days else {}),
            fault=row.fault or faults.get(row.line, ""),
            targets={
                name: one.values[row.line]
                for name, one in read.items()
                if row.line in one.values and name not in unread[row.line]
            },
            unread=unread[row.line],
            looked_for=_names(row.cells.get(_LOOKED_FOR, "")),
        )
        for row in table.rows
    ]
    declared = {name: one.declared for name, one in read.items()}
    columns = [column for column in table.columns if column not in gone] + (["split"] if splits else [])
    columns += [DAYS] if days and DAYS not in columns else []
    return Table(columns, kept, declared, dates)


def dates_left_out(table: Table) -> list[str]:
    """Return a remark on columns that hold dates, if any."""
    if not table.dates:
        return []
    return [f"columns of the table that hold dates, which are left out of the dataset: {', '.join(table.dates)}"]


def differing_targets(one: Row, other: Row) -> list[str]:
    """Return the targets of which two rows say something else."""
    names = sorted({*one.targets, *other.targets})
    return [name for name in names if one.targets.get(name) != other.targets.get(name)]


def merged_targets(one: Row, other: Row, what: str) -> Row:
    """Return a row with the targets that two rows of one image or patient agree on.

    Args:
        one: the row.
        other: of the same.
        what: both are of, such as "image".
    """
    unread = {**other.unread, **one.unread}
    for name in differing_targets(one, other):
        unread.setdefault(name, contradiction_problem([one.line, other.line], what, name))
    return replace(one, targets={n: v for n, v in one.targets.items() if n not in unread}, unread=unread)


def contradiction_problem(lines: Sequence[int], what: str, differing: str, said: str = "") -> str:
    """Return that lines of one image or patient say something else each."""
    listed = " and ".join(map(str, lines[:3]))
    article = "an" if what == "image" else "a"
    return (
        f"lines {listed} of the table name one {what} and say another {differing} each{said}. "
        f"Leave one row {article} {what}"
    )


def read_renamed(path: Path, wanted: TableTargets | None) -> Table:
    """Read a table, with its columns called as they are looked for; see ``read_with_targets``."""
    table = read_table(path)
    return _renamed(path, table, wanted) if wanted else table


def _renamed(path: Path, table: Table, wanted: TableTargets) -> Table:
    """Return a table with its own columns called as they are looked for.

    Raises:
        DataError: it lacks one, or has another of that name.
    """
    names = {own: meaning for meaning, own in wanted.columns.items() if own != meaning}
    _require(path, table, "columns", tuple(wanted.columns.values()))
    for own, meaning in names.items():
        if meaning in table.columns:
            raise DataError(f"{path}: has a column {meaning}, and columns says that it is {own}. Leave one of them out")
    read_as_target = {column for target in wanted.targets.values() for column in target.columns}
    columns = [names.get(column, column) for column in table.columns]
    rows = []
    for row in table.rows:
        cells = {names.get(column, column): text for column, text in row.cells.items()}
        # A column may be both, such as the diagnosis that is the label and a target.
        both = {column: text for column, text in row.cells.items() if column in names and column in read_as_target}
        rows.append(replace(row, cells=cells | both))
    return Table([*columns, *(column for column in names if column in read_as_target)], rows)


def _require(path: Path, table: Table, what: str, columns: tuple[str, ...]) -> None:
    missing = [column for column in columns if column not in table.columns]
    if missing:
        found = ", ".join(table.columns[:20]) + (", …" if len(table.columns) > 20 else "")
        what = "columns" if what == "columns" else f"target {what}"
        raise DataError(f"{path}: {what}: has no column {missing[0]}, found {found}. Name it as the table does")


def _splits(path: Path, table: Table, by: SplitByDate, faults: dict[int, str]) -> dict[int, str]:
    """Return line -> list, by the latest date of the line's patient; a line without a date is a fault.

    Raises:
        DataError: the column is missing, its dates may be read in two ways, or the table has a column split.
    """
    _require(path, table, "columns", (by.column,))
    if "split" in table.columns:
        raise DataError(f"{path}: has a column split, and --targets deals by {by.column}. Leave one of them out")
    cells = [(row.line, row.cells.get(by.column, "")) for row in table.rows if not row.fault]
    try:
        days = read_dates([(line, text) for line, text in cells if not is_unknown(text)], by.column, by.dates)
    except DataError as error:
        raise DataError(f"{path}: split: {error}") from None
    latest: dict[str, date] = {}
    patients = {row.line: row.cells.get("patient") or f"line {row.line}" for row in table.rows}
    for line, _ in cells:
        day = days.get(line)
        if day is None:
            faults[line] = f"line {line}: column {by.column} has no date, by which it is dealt to a list"
        else:
            latest[patients[line]] = max(day, latest.get(patients[line], day))
    return {line: by.split(latest[patients[line]]) for line in patients if patients[line] in latest}


def _examined(path: Path, table: Table, wanted: TableTargets | None) -> Mapping[int, date | None]:
    """Return line -> date of the examination; empty where no column says it beyond doubt.

    Raises:
        DataError: the column that the user names may be read in two ways.
    """
    named = wanted is not None and _DATE in wanted.columns
    by = wanted.split if wanted and not named else None
    column = by.column if by else _DATE
    cells = [(row.line, text) for row in table.rows if not is_unknown(text := row.cells.get(column, ""))]
    try:
        return read_dates(cells, column, by.dates if by else "")
    except DataError as error:
        if named:
            raise DataError(f"{path}: columns: date: {error}") from None
        return {}


def _contradictions(read: ReadTarget, rows: Mapping[int, Row]) -> dict[int, str]:
    """Return line -> why its patient's lines contradict each other."""
    by_patient: dict[str, list[int]] = defaultdict(list)
    for line in read.values:
        if patient := rows[line].cells.get("patient"):
            by_patient[patient].append(line)
    found: dict[int, str] = {}
    for lines in by_patient.values():
        first = read.same.get(lines[0], read.values[lines[0]])
        other = next((line for line in lines if read.same.get(line, read.values[line]) != first), None)
        if other is not None:
            found |= dict.fromkeys(lines, f"lines {lines[0]} and {other} are of one patient and contradict each other")
    return found


def _with_dates(table: Table, used: set[str]) -> list[str]:
    """Return the other columns that hold dates."""
    others = [column for column in table.columns if column not in used and column not in _NO_DATES]
    return [column for column in others if hold_dates(row.cells.get(column, "") for row in table.rows)]


_NO_DATES = {"image", "label", "patient", "study", "series", "split", "modality"}


def _names(text: str) -> tuple[str, ...] | None:
    names = tuple(name.strip() for name in text.split("|") if name.strip())
    return names or None
