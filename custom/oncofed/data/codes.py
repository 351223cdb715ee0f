"""Codes of clinical terms: SNOMED CT, LOINC, RadLex, ICD and others, as ``SCHEME:CODE``.

Schemes are called as in DICOM (PS3.16, table 8-1); OMOP's and other common names of the same scheme count as it. Codes
of SNOMED's retired scheme SRT are the same as those of SCT (PS3.16, annex O).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Annotated

from pydantic import AfterValidator
from pydicom.sr.coding import Code as DicomCode

from oncofed.data.label_names import name_key

# In capitals, without spaces, dashes and underscores -> DICOM's designator.
_SCHEMES: Mapping[str, str] = {
    **dict.fromkeys(("SNOMED", "SNOMEDCT"), "SCT"),
    "LOINC": "LN",
    "RADLEX": "RADLEX",
    **dict.fromkeys(("ICDO", "ICDO3"), "ICDO3"),
    **dict.fromkeys(("ICD10", "ICD10WHO"), "I10"),
    "ICD10CM": "I10C",
    "ICD9CM": "I9C",
}
_CODE = re.compile(r"[A-Za-z][\w.-]{0,15}:[^\s:+*]{1,32}(\+[A-Za-z][\w.-]{0,15}:[^\s:+*]{1,32}){0,3}\Z")


def checked_code(text: str) -> str:
    """Return a code as it is written; empty: none.

    Raises:
        ValueError: it is none.
    """
    if text and not _CODE.match(text):
        raise ValueError(f"found {text!r}, expected SCHEME:CODE, such as SCT:78961009, LN:21908-9 or RADLEX:RID5741")
    return text


# A code in settings; empty: none.
Code = Annotated[str, AfterValidator(checked_code)]


def is_same(first: str, second: str) -> bool:
    """Return whether two codes with their modifiers mean the same, also across schemes' names, SRT and SCT.

    Example:
        >>> is_same("SNOMED:10200004", "SCT:10200004"), is_same("SRT:T-62000", "SCT:10200004")
        (True, True)
    """
    return _parsed(first) == _parsed(second)


def led_by_codes(own: Mapping[str, str], wanted: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield name, code and the name that is wanted, of each that a code leads there.

    A code counts where it is of one name on either side: programs that code nothing give all names one code.

    Args:
        own: name -> code.
        wanted: the same of what they become.
    """
    for name, code in own.items():
        here = [other for other, of in own.items() if is_same(of, code)]
        there = [other for other, of in wanted.items() if is_same(of, code)]
        if len(here) == len(there) == 1:
            yield name, code, there[0]


def codes_problem(codes: Mapping[str, str], names: tuple[str, ...]) -> str:
    """Return why codes cannot be those of names; empty if they can.

    Args:
        codes: name -> code.
        names: that may have one.
    """
    known = {name_key(name) for name in names}
    if strange := next((name for name in codes if name_key(name) not in known), None):
        return f"codes: found {strange!r}, expected one of {', '.join(names)}"
    for name, code in codes.items():
        if other := next((one for one, of in codes.items() if one != name and is_same(of, code)), None):
            return f"codes: {name} and {other} have one code, {code}: expected one of its own for each"
    return ""


def require_apart(codes: Mapping[str, str], names: tuple[str, ...]) -> None:
    """Refuse codes of names that are not there, or one code of two.

    Raises:
        ValueError: see ``codes_problem``.
    """
    if problem := codes_problem(codes, names):
        raise ValueError(problem)


@lru_cache(maxsize=4096)
def _parsed(code: str) -> tuple[DicomCode, ...]:
    parts = (part.partition(":") for part in code.split("+"))
    return tuple(DicomCode(value, _scheme(name), "") for name, _, value in parts)


def _scheme(name: str) -> str:
    return _SCHEMES.get(re.sub(r"[\s_-]", "", name).upper(), name)
