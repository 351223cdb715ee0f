"""Units of numbers: which are units, and conversions that hold whatever is measured.

Codes are UCUM's (ucum.org/ucum), case-sensitive, beside what people commonly write (``cc``, ``years``). Units of one
dimension differ by a factor. What depends on the substance, the charge or the kind of radiation has a dimension of its
own: an amount of substance (mmol/L) does not become a mass. Units with another zero, such as Cel, become no other.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Annotated, NamedTuple

from pydantic import AfterValidator

from oncofed.data.time_units import TIME_UNITS
from oncofed.errors import DataError

# UCUM, table 1: prefixes of metric units.
_PREFIXES: Mapping[str, int] = {
    "Y": 24, "Z": 21, "E": 18, "P": 15, "T": 12, "G": 9, "M": 6, "k": 3, "h": 2, "da": 1,
    "d": -1, "c": -2, "m": -3, "u": -6, "n": -9, "p": -12, "f": -15, "a": -18, "z": -21, "y": -24,
}  # fmt: skip
# Metric atoms: how much they are, of which others. What has no other is a dimension of its own.
_METRIC: Mapping[str, tuple[str, str]] = {
    "m": ("1", ""), "g": ("1", ""), "s": ("1", ""), "mol": ("1", ""), "K": ("1", ""), "Cel": ("1", ""), "A": ("1", ""),
    "cd": ("1", ""), "rad": ("1", ""), "eq": ("1", ""), "osm": ("1", ""), "Bq": ("1", ""), "Sv": ("1", ""),
    "B": ("1", ""), "[iU]": ("1", ""), "[arb'U]": ("1", ""), "Hz": ("1", "s-1"), "L": ("0.001", "m3"),
    "N": ("1000", "g.m/s2"), "Pa": ("1000", "g/m.s-2"), "bar": ("100000", "Pa"), "m[Hg]": ("133322", "Pa"),
    "m[H2O]": ("9806.65", "Pa"), "J": ("1", "N.m"), "W": ("1", "J/s"), "cal": ("4.184", "J"), "eV": ("1", ""),
    "C": ("1", "A.s"), "V": ("1", "J/C"), "F": ("1", "C/V"), "Ohm": ("1", "V/A"), "S": ("1", "A/V"),
    "Wb": ("1", "V.s"), "T": ("1", "Wb/m2"), "Gy": ("1", "J/kg"), "RAD": ("0.01", "Gy"), "Ci": ("37000000000", "Bq"),
    "REM": ("0.01", "Sv"), "kat": ("1", "mol/s"), "U": ("1", "umol/min"), "lm": ("1", ""), "lx": ("1", "lm/m2"),
    "t": ("1000000", "g"), "u": ("1", ""), "P": ("0.1", "Pa.s"),
}  # fmt: skip
# Others. A year is Julian, and a month a twelfth of it, as everywhere here and in UCUM.
_OTHERS: Mapping[str, tuple[str, str]] = {
    "10*": ("10", ""), "10^": ("10", ""), "%": ("0.01", "1"), "[ppth]": ("0.001", "1"), "[ppm]": ("0.000001", "1"),
    "[ppb]": ("0.000000001", "1"), "min": ("60", "s"), "h": ("3600", "s"), "d": ("86400", "s"), "wk": ("604800", "s"),
    "mo": ("2629800", "s"), "a": ("31557600", "s"), "deg": ("1", ""), "'": ("1/60", "deg"), "''": ("1/3600", "deg"),
    "[in_i]": ("0.0254", "m"), "[ft_i]": ("0.3048", "m"), "[lb_av]": ("453.59237", "g"),
    "[oz_av]": ("28.349523125", "g"),
    "[degF]": ("1", ""), "[pH]": ("1", ""), "[IU]": ("1", "[iU]"), "[hnsf'U]": ("1", ""), "[CFU]": ("1", ""),
    "[cfu_i]": ("1", ""), "[diop]": ("1", "/m"), "[drp]": ("0.05", "mL"),
}  # fmt: skip
# In lower case: what people and tables write -> UCUM.
_COMMON: Mapping[str, str] = {
    **{name: {"days": "d", "weeks": "wk", "months": "mo", "years": "a"}[unit] for name, unit in TIME_UNITS.items()},
    **dict.fromkeys(("hour", "hours", "hrs", "stunde", "stunden"), "h"),
    **dict.fromkeys(("mins", "minute", "minutes", "minuten"), "min"),
    **dict.fromkeys(("sec", "second", "seconds", "sekunden"), "s"),
    **dict.fromkeys(("share", "ratio", "fraction"), "1"),
    "percent": "%", "cc": "cm3", "mmhg": "mm[Hg]", "cmh2o": "cm[H2O]", "hu": "[hnsf'U]", "iu": "[iU]", "gray": "Gy",
    "px": "{px}", "pixel": "{px}", "pixels": "{px}", "kgs": "kg", "mcg": "ug", "ul": "uL", "iu/l": "[iU]/L",
    "iu/ml": "[iU]/mL", "u/l": "U/L", "u/ml": "U/mL", "°c": "Cel",
}  # fmt: skip
# Units that are lower case in UCUM, or that tables write so; a table in capitals means them.
_LOWER = frozenset(
    ["mm", "um", "cm", "dm", "m", "mm2", "cm2", "m2", "mm3", "cm3", "ml", "dl", "l", "kg", "g", "mg", "ug", "ng", "pg"]
)
_NEAR = (
    "mm", "um", "cm", "m", "mm2", "cm2", "m2", "mm3", "cm3", "mL", "dL", "L", "ug", "mg", "g", "kg", "ng/mL", "ug/L",
    "mg/dL", "mg/L", "g/dL", "g/L", "mmol/L", "umol/L", "nmol/L", "mol/L", "mmol/mol", "U/L", "[iU]/L", "m[iU]/L",
    "10*9/L", "10*12/L", "/uL", "fL", "pg", "mm[Hg]", "kPa", "Gy", "mSv", "MBq", "kBq/mL", "[hnsf'U]", "%", "s",
    "min", "h", "d", "wk", "mo", "a", "days", "weeks", "months", "years", "share", "mL/min", "L/min",
    "mL/min/{1.73_m2}", "kg/m2", "cm/s", "/min", "mm/h", "Cel",
)  # fmt: skip
_FEW = 3
_ATOMS = sorted({*_METRIC, *_OTHERS}, key=len, reverse=True)
_TOKEN = re.compile(r"(?P<operator>[./()])|(?P<annotation>\{[^{}]{0,60}\})|(?P<unit>[^./(){}\s]+)")
_POWER = re.compile(r"(?P<atom>.*?)(?P<power>[+-]?\d{1,2})?\Z", re.DOTALL)
_TEN = re.compile(r"10[*^](?P<power>[+-]?\d{1,2})?\Z")
_NUMBER = re.compile(r"\d{1,6}\Z")
# Of somebody, perhaps; units have a factor of ten, or a power.
_LONG_NUMBER = re.compile(r"\d{3}|^\d+$")
_DIGIT = re.compile(r"\d")


class _Unit(NamedTuple):
    """A unit.

    Attributes:
        times: how many of its dimension's own units it is.
        dimension: dimension -> power, none of which is 0.
    """

    times: Fraction
    dimension: Mapping[str, int]


class _NoUnitError(Exception):
    """A text is no unit of UCUM."""


def factor(given: str, wanted: str) -> float | None:
    """Return what a number in one unit is multiplied by to be in another; None: they do not compare.

    Args:
        given: unit that the number has.
        wanted: unit that it becomes.

    Example:
        >>> factor("cm", "mm"), factor("yrs", "Years"), factor("mmol/l", "mg/dl")
        (10.0, 1.0, None)
    """
    if given.strip() == wanted.strip():
        return 1.0
    first, second = _unit(given), _unit(wanted)
    if first is None or second is None or first.dimension != second.dimension:
        return None
    return float(first.times / second.times)


def is_unit(text: str) -> bool:
    """Return whether a text is a unit, and nothing else that somebody typed: annotations are such.

    Example:
        >>> is_unit("mmol/L"), is_unit("10*9/L"), is_unit("Smith 1970"), is_unit("mL{Smith}")
        (True, True, False, False)
    """
    return "{" not in text and not _LONG_NUMBER.search(text) and _unit(text) is not None


def checked_unit(text: str) -> str:
    """Return a unit that somebody wrote into settings, as it is written; empty: none.

    Raises:
        ValueError: it is none; the message names near ones.

    Example:
        >>> checked_unit("mg/dl")
        'mg/dl'
    """
    if not text or _unit(text):
        return text
    names = {name.lower(): name for name in (*_COMMON, *_NEAR)}
    near = [names[name] for name in difflib.get_close_matches(text.lower(), names, _FEW, 0.6)]
    meant = f"perhaps {' or '.join(near)}" if near else "such as mm, mg/dL, 10*9/L or months"
    raise ValueError(
        f"found the unit {text!r}, expected one of UCUM (ucum.org), {meant}. What has no unit, such as a score, "
        "has none, or a word in braces: {score}"
    )


# A unit in settings; empty: none.
Unit = Annotated[str, AfterValidator(checked_unit)]


def conversion_factor(given: str, wanted: str) -> float:
    """Return the factor from one unit to another; see ``factor``.

    Raises:
        DataError: they are not of one dimension, or one of them is not known.
    """
    found = factor(given, wanted)
    if found is None:
        of = _unit(wanted)
        known = ", ".join(name for name in _NEAR if of and name != wanted and _is_like(name, of))
        raise DataError(
            f"found the unit {given or 'none'}, expected {wanted or 'none'}"
            + (f" or one that becomes it, such as {known}" if known else "")
            + ": no factor between them holds for everything. Convert the values, and register the table again with "
            "their unit"
        )
    return found


def _is_like(name: str, other: _Unit) -> bool:
    found = _unit(name)
    return bool(found and found.dimension == other.dimension)


@lru_cache(maxsize=1024)
def _unit(text: str) -> _Unit | None:
    """Return a unit by UCUM's code, or by what people call it; None: it is none."""
    # Compatibility forms make one letter of the two for micro, and digits of ² and ³.
    plain = unicodedata.normalize("NFKC", text).strip().replace("μ", "u").replace("µ", "u")
    common = _COMMON.get(plain.lower())
    if common is None and all(part in _LOWER for part in re.split(r"[./]", plain.lower())):
        common = plain.lower().replace("ml", "mL").replace("dl", "dL")
        # G/L is gauss, or thousands of millions, by litre: who knows.
        common = None if plain.startswith("G/") else re.sub(r"\bl\b", "L", common)
    for code in (common, plain):
        if code:
            try:
                return _parsed(code)
            except _NoUnitError:
                continue
    return None


def _parsed(code: str) -> _Unit:
    """Read a term of UCUM: components, joined by . and /, in parentheses where they are one."""
    tokens = list(_tokens(code))
    if len(tokens) == 1 and tokens[0].startswith("{"):
        return _Unit(Fraction(1), {tokens[0]: 1})
    unit, rest = _term(tokens)
    if rest or not tokens:
        raise _NoUnitError
    return unit


def _tokens(code: str) -> Iterator[str]:
    at = 0
    while at < len(code):
        found = _TOKEN.match(code, at)
        if not found:
            raise _NoUnitError
        yield found[0]
        at = found.end()


def _term(tokens: list[str]) -> tuple[_Unit, list[str]]:
    """Return the unit of a term, and what follows it; all operators are of one rank, from the left."""
    times, powers = Fraction(1), Counter[str]()
    sign = 1
    if tokens[:1] == ["/"]:
        sign, tokens = -1, tokens[1:]
    while True:
        unit, tokens = _component(tokens)
        times *= unit.times**sign
        for name, power in unit.dimension.items():
            powers[name] += sign * power
        if not tokens or tokens[0] == ")":
            return _Unit(times, {name: power for name, power in powers.items() if power}), tokens
        if tokens[0] not in {".", "/"}:
            raise _NoUnitError
        sign, tokens = (-1 if tokens[0] == "/" else 1), tokens[1:]


def _component(tokens: list[str]) -> tuple[_Unit, list[str]]:
    if not tokens:
        raise _NoUnitError
    first, rest = tokens[0], tokens[1:]
    if first == "(":
        unit, rest = _term(rest)
        if rest[:1] != [")"]:
            raise _NoUnitError
        return unit, rest[1:]
    if first.startswith("{"):
        # UCUM gives annotations no meaning; by 1.73 square metres of body is not by nothing, though.
        return _Unit(Fraction(1), {first: 1} if _DIGIT.search(first) else {}), rest
    unit = _simple(first)
    return unit, rest[1:] if rest and rest[0].startswith("{") else rest


@lru_cache(maxsize=1024)
def _simple(text: str) -> _Unit:
    """Return the unit of an atom with prefix and power, or of a number."""
    if ten := _TEN.match(text):
        return _Unit(Fraction(10) ** int(ten["power"] or 1), {})
    if _NUMBER.match(text):
        if int(text) == 0:
            raise _NoUnitError
        return _Unit(Fraction(int(text)), {})
    found = _POWER.match(text)
    assert found
    unit, power = _atom(found["atom"]), int(found["power"] or 1)
    return _Unit(unit.times**power, {name: of * power for name, of in unit.dimension.items()})


def _atom(text: str) -> _Unit:
    text = "L" if text == "l" else text
    if text in _METRIC or text in _OTHERS:
        amount, of = _METRIC.get(text) or _OTHERS[text]
        own = _parsed(of) if of else _Unit(Fraction(1), {text: 1})
        return _Unit(Fraction(amount) * own.times, own.dimension)
    for prefix, power in _PREFIXES.items():
        metric = text.removeprefix(prefix)
        metric = "L" if metric == "l" else metric
        if metric != text and metric in _METRIC:
            unit = _atom(metric)
            return _Unit(unit.times * Fraction(10) ** power, unit.dimension)
    raise _NoUnitError
