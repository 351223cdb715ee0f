"""CSV tables that spreadsheet programs open safely."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from oncofed.private_files import write_private

# Characters that can begin a formula.
_BEGINS_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def escape_formula(cell: Any) -> Any:
    """Escape text that a spreadsheet would run as a formula.

    Such text gets an apostrophe in front: names of files and classes come from anybody. Numbers, also written as text,
    are kept.
    """
    if not isinstance(cell, str) or not cell.startswith(_BEGINS_FORMULA):
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a private table atomically.

    Args:
        path: of the file.
        columns: headings.
        rows: cells in the order of the columns.
    """
    text = io.StringIO()
    table = csv.writer(text)
    table.writerows([escape_formula(cell) for cell in row] for row in (columns, *rows))
    write_private(path, text.getvalue().encode())


def write_table(path: Path, rows: Sequence[dict[str, Any]], first: Sequence[str]) -> None:
    """Write rows as CSV atomically, without list values.

    Args:
        path: of the file.
        rows: column -> value.
        first: columns that come first, also without a row.
    """
    columns = list(dict.fromkeys([*first, *(n for row in rows for n, v in row.items() if not isinstance(v, list))]))
    write_rows(path, columns, ([row.get(column) for column in columns] for row in rows))
