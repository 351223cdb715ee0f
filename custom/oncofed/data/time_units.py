"""Units of time, and how many days each has."""

from __future__ import annotations

from typing import Literal

TimeUnit = Literal["days", "weeks", "months", "years"]

# A month is a twelfth of a year of 365.25 days.
DAYS: dict[str, float] = {"days": 1.0, "weeks": 7.0, "months": 30.4375, "years": 365.25}


def days_in(unit: str) -> float | None:
    """Return the days of a unit, or None.

    Args:
        unit: its name in any case, in the singular or the plural.

    Example:
        >>> days_in("Month"), days_in("fortnights")
        (30.4375, None)
    """
    name = unit.strip().lower()
    return DAYS.get(name, DAYS.get(f"{name}s"))
