"""Dates of a column, in one format that all its cells have.

Dates stay in the table: only the days between two of them become data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from functools import lru_cache

from oncofed.data.target_columns.cells import shown
from oncofed.errors import DataError

EXCEL = "excel"
# A case's tag: days since the table's first date of examination.
DAYS = "days_since_first"
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_TOKENS = {"YYYY": r"(?P<y>\d{4})", "MMM": r"(?P<n>[A-Za-z]{3,9})\.?", "MM": r"(?P<m>\d{1,2})", "DD": r"(?P<d>\d{1,2})"}
_TIME = r"(?:[T ]\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?: ?[AaPp][Mm])?(?:Z|[-+]\d{2}:?\d{2})?)?"
# Tried in this order where the user says none. Day and month with / or - may be either way round.
_FORMATS: tuple[str, ...] = ("YYYY-MM-DD", "YYYY/MM/DD", "YYYY.MM.DD", "YYYYMMDD", "DD.MM.YYYY")
_FORMATS += ("DD MMM YYYY", "DD-MMM-YYYY")
_FORMATS += ("MMM DD, YYYY", "DD/MM/YYYY", "MM/DD/YYYY", "DD-MM-YYYY", "MM-DD-YYYY")
# Days that Excel counts, of the years 1954 to 2064: the number of a day since the end of 1899.
_SERIAL = re.compile(r"[2-5]\d{4}(?:[.,]\d+)?")
_FIRST_SERIAL = date(1899, 12, 30)
_WRITTEN = re.compile(r"\d{1,4}[-/. ](?:\d{1,2}|[A-Za-z]{3,9})[-/. ]\d{1,4}" + _TIME)
# With two digits of the year no order is sure, and so none is read; yet it is a date.
_SHORT_YEAR = re.compile(r"(\d{1,2})([-/. ])(\d{1,2}|[A-Za-z]{3,9})\2(\d{2})" + _TIME)
_NUMBER = re.compile(r"[-+]?\d+(?:[.,]\d+)?")
_YEARS = range(1900, 2101)


def is_date(text: str) -> bool:
    """Return whether a cell is a whole date, in any format that people write."""
    written = bool(_WRITTEN.fullmatch(text)) and any(_read(text, form) for form in _FORMATS)
    return written or _has_short_year(text)


def hold_dates(texts: Iterable[str]) -> bool:
    """Return whether cells of a column hold dates.

    One that is written as a date is enough. Numbers hold dates if all of them may be days: 20210403, or Excel's 44289.

    Args:
        texts: the column's cells; those that say nothing do not count.
    """
    cells = {text.strip() for text in texts}
    numbers = [text for text in cells if _NUMBER.fullmatch(text)]
    in_digits = bool(numbers) and (
        all(_SERIAL.fullmatch(text) for text in numbers)
        or all((day := _read(text, "YYYYMMDD")) and day.year in _YEARS for text in numbers)
    )
    return in_digits or any(map(is_date, cells))


def read_dates(cells: Sequence[tuple[int, str]], column: str, said: str = "") -> Mapping[int, date | None]:
    """Return line -> date; None: a cell that is none in the column's format.

    Args:
        cells: line and text of each cell that is known.
        column: its name, for messages.
        said: the format, where the user says it, such as DD/MM/YYYY; "excel": numbers of days.

    Raises:
        DataError: the cells have two formats, or one that may be read in two ways.
    """
    if said:
        return {line: _read(text, said) for line, text in cells}
    serial = [line for line, text in cells if _SERIAL.fullmatch(text)]
    if serial and len(serial) == len(cells):
        return {line: _read(text, EXCEL) for line, text in cells}
    if serial:
        other = next(line for line, text in cells if not _SERIAL.fullmatch(text))
        raise DataError(
            f"column {column} has Excel's numbers of days (line {serial[0]}) beside dates in letters (line {other}). "
            "Excel turned those into numbers that it could read, perhaps with day for month: write all dates alike, "
            "as YYYY-MM-DD, from the source"
        )
    fitting: dict[str, list[int]] = {}
    for form in _FORMATS:
        if lines := [line for line, text in cells if _read(text, form)]:
            fitting[form] = lines
    if not fitting:
        return {line: None for line, _ in cells}
    most = max(map(len, fitting.values()))
    best = [form for form, lines in fitting.items() if len(lines) == most]
    fits = set(fitting[best[0]])
    others = {line: form for form, lines in fitting.items() for line in lines if line not in fits}
    if others:
        line, form = next(iter(others.items()))
        first = fitting[best[0]][0]
        raise DataError(
            f"column {column} has dates in two formats: {best[0]} (line {first}) and {form} (line {line}). "
            f"Write them alike, or name the one that holds, which leaves the other cells out: dates: {best[0]}"
        )
    if len(best) > 1:
        line = fitting[best[0]][0]
        raise DataError(
            f"column {column}: the dates (line {line} is the first) may be {' or '.join(best)}, and no cell tells "
            f"which. Say it: dates: {best[0]}"
        )
    return {line: _read(text, best[0]) for line, text in cells}


def days_since_first(days: Mapping[int, date | None]) -> dict[int, str]:
    """Return line -> days since the first date, of those that have one."""
    known = {line: day for line, day in days.items() if day is not None}
    first = min(known.values(), default=None)
    return {line: str((day - first).days) for line, day in known.items()} if first else {}


def check_format(said: str) -> str:
    """Return a format of dates.

    Raises:
        ValueError: it is none.
    """
    left = _letters(said)
    if said == EXCEL or (re.fullmatch(r"[-/., ]*", left) and "YYYY" in said and "DD" in said and "MM" in said):
        return said
    raise ValueError(f"found {shown(said)}, expected YYYY, MM (or MMM: Jan) and DD, such as DD/MM/YYYY, or excel")


def _letters(form: str) -> str:
    for token in _TOKENS:
        form = form.replace(token, "", 1)
    return form


@lru_cache(maxsize=1 << 16)  # a table has many rows, and few days
def _read(text: str, form: str) -> date | None:
    if form == EXCEL:
        days = text.replace(",", ".")
        return _FIRST_SERIAL + timedelta(days=int(float(days))) if _SERIAL.fullmatch(text) else None
    pattern = re.escape(form)
    for token, expression in _TOKENS.items():
        pattern = pattern.replace(token, expression, 1) if f"P<{expression[4:5]}>" not in pattern else pattern
    if form == "YYYYMMDD":
        pattern = r"(?P<y>\d{4})(?P<m>\d{2})(?P<d>\d{2})"
    match = re.fullmatch(pattern + _TIME, text.strip())
    if match is None:
        return None
    found = match.groupdict()
    month = int(found["m"]) if found.get("m") else _month(found.get("n") or "")
    try:
        return date(int(found["y"]), month, int(found["d"]))
    except ValueError:
        return None


def _has_short_year(text: str) -> bool:
    match = _SHORT_YEAR.fullmatch(text)
    if match is None:
        return False
    first, middle, last = int(match[1]), int(match[3]) if match[3].isdigit() else _month(match[3]), int(match[4])
    return any(1 <= month <= 12 and 1 <= day <= 31 for day, month in ((first, middle), (middle, first), (last, middle)))


def _month(name: str) -> int:
    return _MONTHS.index(name[:3].lower()) + 1 if name[:3].lower() in _MONTHS else 0
