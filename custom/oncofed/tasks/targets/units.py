"""Units of values, and conversions that hold whatever is measured.

Units of one dimension differ by a factor. Amounts of substance (mmol/l) do not become masses: that depends on the
substance.
"""

from __future__ import annotations

from oncofed.errors import DataError

# Dimension -> unit -> how many of the first one it is. A month is a twelfth of a year of 365.25 days (Julian).
_DAYS_A_YEAR = 365.25
_UNITS: dict[str, dict[str, float]] = {
    "length": {"mm": 1.0, "cm": 10.0, "m": 1000.0, "um": 1e-3},
    "area": {"mm2": 1.0, "cm2": 100.0},
    "volume": {"ml": 1.0, "l": 1000.0, "cm3": 1.0, "mm3": 1e-3},
    "mass": {"g": 1.0, "kg": 1000.0, "mg": 1e-3},
    "time": {
        "days": 1.0,
        "weeks": 7.0,
        "months": _DAYS_A_YEAR / 12,
        "years": _DAYS_A_YEAR,
        "hours": 1 / 24,
    },
    "mass by volume": {"g/l": 1.0, "g/dl": 10.0, "mg/dl": 0.01, "mg/l": 1e-3, "ng/ml": 1e-6, "ug/l": 1e-6},
    "share": {"%": 0.01, "share": 1.0},
}
_OTHER_NAMES = {
    "mm²": "mm2",
    "cm²": "cm2",
    "mm³": "mm3",
    "cm³": "cm3",
    "µm": "um",
    "μm": "um",
    "µg/l": "ug/l",
    "μg/l": "ug/l",
    "percent": "%",
    "hour": "hours",
    "h": "hours",
    "d": "days",
    "day": "days",
    "week": "weeks",
    "month": "months",
    "year": "years",
}


def conversion_factor(given: str, wanted: str) -> float:
    """Return the factor from one unit to another.

    Args:
        given: unit that the value has.
        wanted: unit that it becomes.

    Raises:
        DataError: they are not of one dimension, or one of them is not known.
    """
    first, second = _named(given), _named(wanted)
    if first == second:
        return 1.0
    for units in _UNITS.values():
        if first in units and second in units:
            return units[first] / units[second]
    known = ", ".join(sorted(unit for units in _UNITS.values() for unit in units if second in units))
    raise DataError(
        f"found the unit {given or 'none'}, expected {wanted or 'none'}"
        + (f" or one of {known}" if known else "")
        + ": no factor between them holds for everything. Convert the values, and register the table again with their "
        "unit"
    )


def _named(unit: str) -> str:
    """Return a unit by its listed name, if it has one."""
    plain = unit.strip().lower()
    return _OTHER_NAMES.get(plain, plain)
