"""Units of numbers, and conversions that hold whatever is measured.

Units of one dimension differ by a factor. Amounts of substance (mmol/l) do not become masses: that depends on the
substance.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from oncofed.data.time_units import DAYS, TIME_UNITS
from oncofed.errors import DataError

# Dimension -> unit -> how many of the dimension's first one it is.
_UNITS: Mapping[str, Mapping[str, float]] = {
    "length": {"mm": 1.0, "um": 1e-3, "cm": 10.0, "dm": 100.0, "m": 1000.0},
    "area": {"mm2": 1.0, "cm2": 100.0},
    "volume": {"ml": 1.0, "mm3": 1e-3, "cm3": 1.0, "cc": 1.0, "dl": 100.0, "l": 1000.0},
    "mass": {"g": 1.0, "mg": 1e-3, "kg": 1000.0},
    "time": {**DAYS, "hours": 1 / 24},
    "mass by volume": {
        "g/l": 1.0,
        "g/dl": 10.0,
        "mg/ml": 1.0,
        "mg/dl": 0.01,
        "mg/l": 1e-3,
        "ug/ml": 1e-3,
        "ug/dl": 1e-5,
        "ug/l": 1e-6,
        "ng/ml": 1e-6,
    },
    "share": {"share": 1.0, "%": 0.01},
}
_OTHER_NAMES: Mapping[str, str] = {**TIME_UNITS, "h": "hours", "hour": "hours", "percent": "%"}

_ATOM = (
    r"(?:10[*^]-?\d{1,2}|%|(?:da|[YZEPTGMkhdcmunpf])?"
    r"(?:mol|osm|eq|cal|bar|Bq|Gy|Sv|Hz|Pa|Cel|kat|\[[iI]U\]|IU|U|g|L|l|m|s|J|W|N|V|A|K)|min|h|d|wk|mo|a|m?m\[Hg\])"
    r"-?[1-4]?"
)
_UCUM = re.compile(rf"/?{_ATOM}(?:[./]{_ATOM}){{0,3}}\Z")


def factor(given: str, wanted: str) -> float | None:
    """Return what a number in one unit is multiplied by to be in another; None: they do not compare.

    Args:
        given: unit that the number has.
        wanted: unit that it becomes.

    Example:
        >>> factor("cm", "mm"), factor("yrs", "Years"), factor("mmol/l", "mg/dl")
        (10.0, 1.0, None)
    """
    first, second = _named(given), _named(wanted)
    if first == second:
        return 1.0
    for units in _UNITS.values():
        if first in units and second in units:
            return units[first] / units[second]
    return None


def is_unit(text: str) -> bool:
    """Return whether a text is a unit, and nothing else that somebody typed.

    Units are those with a factor, and products of UCUM's common atoms, without annotations (ucum.org/ucum).

    Example:
        >>> is_unit("mmol/L"), is_unit("10*9/L"), is_unit("Smith 1970")
        (True, True, False)
    """
    name = _named(text)
    return any(name in units for units in _UNITS.values()) or bool(_UCUM.match(text))


def conversion_factor(given: str, wanted: str) -> float:
    """Return the factor from one unit to another; see ``factor``.

    Raises:
        DataError: they are not of one dimension, or one of them is not known.
    """
    found = factor(given, wanted)
    if found is None:
        known = ", ".join(sorted(unit for units in _UNITS.values() for unit in units if _named(wanted) in units))
        raise DataError(
            f"found the unit {given or 'none'}, expected {wanted or 'none'}"
            + (f" or one of {known}" if known else "")
            + ": no factor between them holds for everything. Convert the values, and register the table again with "
            "their unit"
        )
    return found


def _named(unit: str) -> str:
    """Return a unit by its listed name, if it has one."""
    # Compatibility forms make one letter of the two for micro, and digits of ² and ³.
    plain = unicodedata.normalize("NFKC", unit).strip().lower().replace("μ", "u")
    return _OTHER_NAMES.get(plain, plain)
