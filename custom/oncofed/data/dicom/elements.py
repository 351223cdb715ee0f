"""Read only the wanted elements of a DICOM header."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, BinaryIO, cast

import numpy as np
import pydicom
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.filereader import data_element_generator
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from oncofed.errors import DataError

Elements = dict[int, Any]

SYNTAX = int(Tag("TransferSyntaxUID"))
_UNCOMMON_SYNTAXES = {DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian}
# Types of binary numbers: PS3.5, table 6.2-1.
_BINARY = {"FD": "f8", "FL": "f4", "US": "u2", "UL": "u4", "SS": "i2", "SL": "i4"}


def walked(file: BinaryIO, wanted: list[BaseTag | int]) -> Elements:
    """Return the wanted elements of a Part 10 file.

    Meta information too; empty if the file is unusual.

    This walks as pydicom's ``dcmread`` does, but builds no data sets, which take four times as long as the walk.
    """
    if file.read(132)[128:] != b"DICM":
        return {}
    try:
        elements = {int(e.tag): e for e in data_element_generator(file, False, True, stop_when=_after_meta)}
        syntax = text(elements, SYNTAX)
        if syntax in _UNCOMMON_SYNTAXES or not syntax.startswith(ImplicitVRLittleEndian):
            return {}
        implicit = syntax == ImplicitVRLittleEndian
        first = file.read(6)
        file.seek(-len(first), 1)
        # The first element has a VR of two capitals only where VRs are explicit: PS3.5, section 7.1.
        if first[4:].isupper() == implicit:
            return {}
        walk = data_element_generator(file, implicit, True, stop_when=_at_pixels, specific_tags=wanted)
        elements |= {int(e.tag): e for e in walk}
    except Exception:  # noqa: BLE001 - a broken header raises any type of error; dcmread copes with more, or names the fault
        return {}
    # If it is missing, the file may not have the syntax that it states.
    return elements if tag_of("SOPClassUID") in elements else {}


def any_elements(file: BinaryIO, wanted: list[BaseTag | int]) -> tuple[Elements, str]:
    """Return wanted elements and transfer syntax, by pydicom.

    The syntax is "" where it is unknown.
    """
    file.seek(0)
    dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=wanted)
    parts = (dataset.file_meta, dataset)
    elements = {int(tag): cast("Any", part.get_item(tag)) for part in parts for tag in part.keys()}  # noqa: SIM118
    syntax = text(elements, SYNTAX)
    return elements, syntax or syntax_of(dataset)


def syntax_of(dataset: Any) -> str:
    """Return the transfer syntax of an uncompressed data set."""
    implicit, little = dataset.original_encoding
    if implicit is None or little is None:
        return ""
    return str(ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian)


def text(elements: Elements, tag: int) -> str:
    """Return an element as text.

    Its bytes are decoded here, because pydicom's conversion takes ten times as long.
    """
    element = elements.get(tag)
    if element is None or not element.value:
        return ""
    value = element.value
    if isinstance(value, bytes):
        return value.decode("latin-1").rstrip("\0 ").lstrip()
    return "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value)


def texts(elements: Elements, keyword: str) -> list[str]:
    """Return an element's values as texts."""
    found = text(elements, tag_of(keyword))
    return [part.strip() for part in found.split("\\")] if found else []


def floats(elements: Elements, keyword: str, count: int) -> list[float]:
    """Return ``count`` numbers stored as text (DS), else none.

    Raises:
        DataError: a value is not a number.
    """
    values = texts(elements, keyword)
    return [_decimal(value, keyword) for value in values] if len(values) == count else []


def number(elements: Elements, keyword: str, default: float) -> float:
    """Return a number that is stored as text (DS, IS).

    Raises:
        DataError: it is not a number.
    """
    values = texts(elements, keyword)
    return _decimal(values[0], keyword) if values and values[0] else default


def _decimal(value: str, keyword: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise DataError(
            f"its header is damaged: what stands in its {keyword} is no number. Copy it again, or export it anew"
        ) from None


def integer(elements: Elements, keyword: str, default: int) -> int:
    """Return a binary number (US), or pydicom's conversion of it."""
    element = elements.get(tag_of(keyword))
    if element is None or element.value in {None, b"", ""}:
        return default
    if isinstance(element.value, bytes):
        little = getattr(element, "is_little_endian", True)
        return int.from_bytes(element.value[:2], "little" if little else "big")
    return int(element.value)


def shown(elements: Elements, keyword: str) -> str:
    """Return any element as text, binary numbers too."""
    found = binaries(elements, keyword)
    return text(elements, tag_of(keyword)) if found is None else "\\".join(f"{value:g}" for value in found)


def binaries(elements: Elements, keyword: str) -> list[float] | None:
    """Return numbers stored in binary (UL, FL); None without them."""
    element = elements.get(tag_of(keyword))
    kind = _binary(keyword)
    if element is None or kind is None or not isinstance(element.value, bytes):
        return None
    order = "<" if getattr(element, "is_little_endian", True) else ">"
    length = len(element.value) // int(kind[1]) * int(kind[1])
    found: list[float] = np.frombuffer(element.value[:length], order + kind).tolist()
    return found


@lru_cache(maxsize=200)
def tag_of(keyword: str) -> int:
    """Return the tag of a keyword as a number."""
    return int(tag_for_keyword(keyword) or 0)


@lru_cache(maxsize=200)
def _binary(keyword: str) -> str | None:
    return _BINARY.get(dictionary_VR(keyword))


def _after_meta(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag.group != 2


def _at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
    return int(tag) >= 0x7FE00008  # float, double or plain pixel data
