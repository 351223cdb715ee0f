"""Read CSV and TSV tables in any usual encoding.

Excel writes UTF-8 with a byte order mark, UTF-16 ("Unicode text", with tabs), or the machine's code page, and may put
``sep=;`` before the columns.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from oncofed.data.targets import DatasetTarget, TargetValue
from oncofed.errors import DataError

TABLES = (".csv", ".tsv", ".tab", ".txt")
WORKBOOKS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")
WANTED = ("image", "label", "patient", "split", "modality")
_KEYS = ("image", "patient", "study", "series")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SEPARATORS = (",", ";", "\t", "|")
_DECLARED = re.compile(r'^"?sep=(.)"?[,;\t| ]*(?:\r\n|\r|\n)', re.IGNORECASE)
_LARGEST = 1 << 28
_HEAD = 1 << 16


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        line: in the file, from 1.
        cells: column -> text without surrounding spaces.
        fault: why it cannot be used; empty if it can.
        targets: stated values, by name.
        looked_for: names of the mask's classes that were looked for; None: not stated.
        unread: target -> why what the row says of it is not used; "": the same of the row as a whole.
    """

    line: int
    cells: dict[str, str]
    fault: str = ""
    targets: Mapping[str, TargetValue] = field(default_factory=dict)
    looked_for: tuple[str, ...] | None = None
    unread: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table's columns, in lower case, and its rows.

    Attributes:
        columns: without those of targets.
        rows: with the targets that they state.
        targets: name -> declaration.
        dates: columns that are left out because they hold dates.
    """

    columns: list[str]
    rows: list[Row]
    targets: Mapping[str, DatasetTarget] = field(default_factory=dict)
    dates: Sequence[str] = ()


def read_table(path: Path) -> Table:
    """Read a table.

    Raises:
        DataError: it cannot be read as a table.
    """
    return _parse(path, _decode(path, _contents(path)))


def columns_of(path: Path) -> list[str] | None:
    """Return a table's columns; None where it is none."""
    try:
        head = _contents(path, _HEAD)
        text = _decode(path, head, cut=len(head) == _HEAD)
        first = text.splitlines()[:2]
        return _parse(path, "\n".join(first), strict=False).columns if first else None
    except DataError:
        return None


def expected_columns(columns: Sequence[str]) -> str:
    """Return the columns, found and expected, for messages."""
    found = ", ".join(column or "(no name)" for column in columns[:12]) + (", …" if len(columns) > 12 else "")
    return f"found the columns {found or '(none)'}; expected image, and label, patient, split where they are known"


def _contents(path: Path, most: int = _LARGEST + 1) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(most)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Expected a table with columns image, label, patient, split.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read as a table ({error.strerror}).") from None
    if len(data) > _LARGEST:
        raise DataError(f"{path}: larger than {_LARGEST >> 20} MB, expected a table of images.")
    return data


def _decode(path: Path, data: bytes, cut: bool = False) -> str:
    """Return a table's text, its encoding detected."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _decoded(path, data, encoding, cut)
    if data.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise DataError(f"{path}: is a workbook. Save it as CSV (UTF-8).")
    if zeros := data.count(0):
        # In UTF-16, every other byte of Latin text is zero: the first of each two in big endian.
        first = data[::2].count(0)
        if 3 * zeros < len(data):
            raise DataError(f"{path}: holds bytes that are no text. Save it as CSV (UTF-8).")
        return _decoded(path, data, "utf-16-be" if 2 * first > zeros else "utf-16-le", cut)
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(data, final=not cut)
    except UnicodeDecodeError:
        return _decoded(path, data, "cp1252", cut)


def _decoded(path: Path, data: bytes, encoding: str, cut: bool) -> str:
    try:
        return codecs.getincrementaldecoder(encoding)().decode(data, final=not cut).lstrip("\ufeff")
    except UnicodeDecodeError:
        raise DataError(
            f"{path}: its text is in an encoding that was not recognised, expected UTF-8, UTF-16 or Windows-1252. "
            "Save it as CSV (UTF-8)."
        ) from None


def _parse(path: Path, text: str, strict: bool = True) -> Table:
    declared = _DECLARED.match(text)
    skipped = 1 if declared else 0
    text = text[declared.end() :] if declared else text
    separator = declared[1] if declared else _separator(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        columns = [name.strip().lower() for name in next(reader, [])]
        _refuse_twice(path, columns)
        rows = []
        line = reader.line_num
        for cells in reader if strict else ():
            # A row may span several lines; its first one counts.
            rows += _row(columns, [cell.strip() for cell in cells], line + 1 + skipped)
            line = reader.line_num
    except csv.Error:
        raise DataError(
            f"{path}: cannot be read as a table: a field has no end. Close the quote, or save it again as CSV (UTF-8)."
        ) from None
    while rows and not any(rows[-1].cells.values()):
        rows.pop()  # Excel leaves empty rows where cells were cleared
    return Table(columns, rows)


def _row(columns: Sequence[str], cells: Sequence[str], line: int) -> list[Row]:
    if not cells:
        return []
    fault = ""
    if len(cells) > len(columns) and any(cells[len(columns) :]):
        fault = f"line {line} has {len(cells)} fields, expected {len(columns)}: quote a field that holds the separator"
    return [Row(line, {name: cell for name, cell in zip(columns, cells, strict=False) if name}, fault)]


def _separator(text: str) -> str:
    """Return the separator of columns.

    The one that gives the wanted columns, else the most columns.
    """
    first = re.split(r"[\r\n]", text, maxsplit=1)[0]

    def found(separator: str) -> tuple[int, int]:
        columns = [name.strip().lower() for name in next(csv.reader([first], delimiter=separator), [])]
        return len({*WANTED, *_KEYS} & set(columns)), len(columns)

    return max(_SEPARATORS, key=found)


def _refuse_twice(path: Path, columns: Sequence[str]) -> None:
    twice = [name for name in (*WANTED, "study", "series") if columns.count(name) > 1]
    if twice:
        raise DataError(f"{path}: has {columns.count(twice[0])} columns called {twice[0]}, expected one.")
