"""Texts of a table's cells as numbers, lengths of time, yes or no, and nothing known.

What could mean two things is not guessed: the rest of the column decides, or the user is asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal

from oncofed.data.time_units import TIME_UNITS
from oncofed.errors import DataError

Mark = Literal[",", "."]

UNKNOWN = frozenset(
    (
        *("", "-", "--", "'--", "---", "–", "—", ".", "?", "na", "n.a.", "n.a", "n/a", "#n/a", "<na>", "nan", "null"),
        *("unknown", "unk", "missing", "not available", "[not available]", "not applicable", "[not applicable]"),
        *("not reported", "not evaluated", "not known", "[unknown]"),
    )
)
YES = frozenset(("1", "yes", "y", "true", "t", "positive", "pos", "present", "+"))
NO = frozenset(("0", "no", "n", "false", "f", "negative", "neg", "absent"))
_SPACES = "\u00a0\u202f\u2009 "
_QUANTITY = re.compile(rf"([-+−]?[.,]?\d(?:[\d.,'’{_SPACES}]*\d)?(?:[eE][-+]?\d+)?)[{_SPACES}]*([^\W\d_]\S*|%)?")
_GROUPED = re.compile(rf"(\d)['’{_SPACES}](?=\d{{3}}(?!\d))")
# Whole, with a decimal mark, or with marks between each three digits: 1,2,3 and 5..6 are no number.
_NUMBER = re.compile(
    r"(?:\d*[.,]?\d+|[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?|[1-9]\d{0,2}(?:\.\d{3})+(?:,\d+)?)(?:[eE][-+]?\d+)?"
)
_ONE_MARK = re.compile(r"[1-9]\d{0,2}[.,]\d{3}")
_DATE_WITHIN = re.compile(r"\d{1,4}([-/. ])(?:\d{1,2}|[A-Za-z]{3,9})\1\d{1,4}")
_UNIT_IN_NAME = re.compile(r"[a-zµ]+")


@lru_cache(maxsize=1 << 16)  # a column has many cells, and few texts
def plain(text: str) -> str:
    """Return a text for comparison: lower case, single spaces, whole numbers without a fraction."""
    text = " ".join(text.casefold().split())
    return re.sub(r"^([-+]?\d+)\.0+$", r"\1", text)


def is_unknown(text: str, more: Iterable[str] = ()) -> bool:
    """Return whether a cell says that nothing is known.

    Args:
        text: of the cell.
        more: texts that say it in this column.
    """
    return plain(text) in UNKNOWN or plain(text) in {plain(one) for one in more}


def shown(text: str) -> str:
    """Return a cell's text for messages, cut after 24 letters; dates in it are left out."""
    text = _DATE_WITHIN.sub("(a date)", text)
    return repr(text if len(text) <= 24 else f"{text[:23]}…")


def time_unit_of(column: str) -> str | None:
    """Return the unit of time that a column's name says, such as os_months."""
    words = _UNIT_IN_NAME.findall(column.lower())
    found = {TIME_UNITS[word] for word in words if word in TIME_UNITS and len(word) > 1}
    return next(iter(found)) if len(found) == 1 else None


class Notation:
    """How a column writes numbers: which of comma and point is the decimal mark.

    Of "1,234" and "1.234" nobody can say alone what they are; another cell of the column may.

    Args:
        texts: the column's known cells.
        column: its name, for messages.
        mark: the decimal mark, where the user says it.

    Raises:
        DataError: a cell may be read in two ways, and no other one tells.
    """

    def __init__(self, texts: Sequence[tuple[int, str]], column: str, mark: Mark | None = None) -> None:
        numbers = [(line, parts[0]) for line, text in texts if (parts := _parts(text))]
        evidence = {found for _, number in numbers if (found := _decimal_mark(number))}
        unclear = [(line, number) for line, number in numbers if _ONE_MARK.fullmatch(number.lstrip("-+−"))]
        if mark is None and unclear and len(evidence) != 1:
            raise DataError(
                f"line {unclear[0][0]}: column {column} has a number with one mark before three digits, which may be "
                'thousands or a fraction, and other cells do not tell. Say which: decimal: "," or decimal: "."'
            )
        self._mark: str = mark or (next(iter(evidence)) if len(evidence) == 1 else ".")
        self._said = mark is not None

    def read(self, text: str) -> tuple[float, str] | None:
        """Return a cell's number and the unit behind it; None: it is no single number."""
        parts = _parts(text)
        if parts is None:
            return None
        number, unit = parts
        own = _decimal_mark(number)
        decimal = self._mark if self._said or own is None else own
        other = "," if decimal == "." else "."
        if own is not None and own != decimal:
            return None
        try:
            return float(number.replace(other, "").replace(decimal, ".").replace("−", "-")), unit
        except ValueError:
            return None


def _parts(text: str) -> tuple[str, str] | None:
    """Return a cell's number, without spaces between thousands, and its unit."""
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        return None
    number = _GROUPED.sub(r"\1", match[1])
    return (number, (match[2] or "").strip()) if _NUMBER.fullmatch(number.lstrip("-+−")) else None


def _decimal_mark(number: str) -> str | None:
    """Return the decimal mark that a number shows beyond doubt."""
    number, *power = re.split("[eE]", number.lstrip("-+−"))
    marks = [letter for letter in number if letter in ",."]
    if not marks:
        return None
    if len(set(marks)) == 2:
        return marks[-1]
    if len(marks) > 1:  # 1,234,567
        return "." if marks[0] == "," else ","
    return None if _ONE_MARK.fullmatch(number) and not power else marks[0]
