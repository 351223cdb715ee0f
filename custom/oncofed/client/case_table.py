"""Table of single test cases, for the site only."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from oncofed.private_files import open_private


def write_case_table(path: Path, by_case: Sequence[tuple[str, dict[str, float | str]]]) -> None:
    """Write a CSV file with a row for each case.

    Args:
        path: of the file, which its owner alone can read.
        by_case: names of cases and their figures, in the order of the rows.

    Raises:
        OSError: it could not be written.
    """
    columns = list(dict.fromkeys(name for _, figures in by_case for name in figures))
    with open(path, "w", newline="", encoding="utf-8", opener=open_private) as file:
        table = csv.DictWriter(file, ["case", *columns])
        table.writeheader()
        table.writerows({"case": case, **figures} for case, figures in by_case)
