"""Units of time, what they are called, and how many days each has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

TimeUnit = Literal["days", "weeks", "months", "years"]

# A month is a twelfth of the Julian year of 365.25 days.
DAYS: Mapping[str, float] = {"days": 1.0, "weeks": 7.0, "months": 30.4375, "years": 365.25}
_NAMES: Mapping[TimeUnit, tuple[str, ...]] = {
    "days": ("d", "day", "days", "tag", "tage", "tagen"),
    "weeks": ("w", "wk", "wks", "week", "weeks", "woche", "wochen"),
    "months": ("mo", "mos", "mon", "mth", "mths", "month", "months", "monat", "monate", "monaten"),
    "years": ("y", "yr", "yrs", "a", "year", "years", "jahr", "jahre", "jahren"),
}
# What people and tables call a unit, in lower case -> the unit.
TIME_UNITS: Mapping[str, TimeUnit] = {name: unit for unit, names in _NAMES.items() for name in names}


def days_in(unit: str) -> float | None:
    """Return the days of a unit, or None.

    Args:
        unit: its name in any case, in the singular, the plural or short.

    Example:
        >>> days_in("Month"), days_in("fortnights")
        (30.4375, None)
    """
    name = TIME_UNITS.get(unit.strip().lower())
    return None if name is None else DAYS[name]
