"""Tables of what was found, as CSV that a spreadsheet program opens as it is meant."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from oncofed.data.manifest import write_whole
from oncofed.prediction.permissions import OWNER_ONLY_FILE

# With these a formula begins, or a cell in which one can.
_BEGINS_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def escape_formula(cell: Any) -> Any:
    """Return a cell that no spreadsheet program takes for a formula: text that begins as one has an apostrophe first.

    Names of files and classes may be anybody's. Numbers, also those written as text, stay as they are.
    """
    if not isinstance(cell, str) or not cell.startswith(_BEGINS_FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table that its owner alone reads, whole or not at all.

    Args:
        path: of the file.
        columns: their headings.
        rows: cells in the order of the columns.
    """
    text = io.StringIO()
    table = csv.writer(text)
    table.writerows([escape_formula(cell) for cell in row] for row in (columns, *rows))
    write_whole(path, text.getvalue(), OWNER_ONLY_FILE)


def write_table(path: Path, rows: Sequence[dict[str, Any]], first: Sequence[str]) -> None:
    """Write rows as CSV, whole or not at all; what is no number or text is left out.

    Args:
        path: of the file.
        rows: column -> value.
        first: columns that come first, also without a row.
    """
    columns = list(dict.fromkeys([*first, *(n for row in rows for n, v in row.items() if not isinstance(v, list))]))
    write_rows(path, columns, ([row.get(column) for column in columns] for row in rows))
