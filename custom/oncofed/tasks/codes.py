"""Coded terms of a job's classes for DICOM.

SNOMED CT, or any other scheme.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field, field_validator, model_validator

from oncofed.settings import StrictModel

_SHORT = re.compile(r"(?P<scheme>[^:\s]+):(?P<value>\S+)")


class CodedTerm(StrictModel):
    """A coded term (PS3.3, section 8.8).

    Lengths are those of SH and LO in PS3.5.
    """

    scheme: str = Field(min_length=1, max_length=16, description="designator of the scheme, such as SCT for SNOMED CT")
    value: str = Field(min_length=1, max_length=16, description="the code")
    meaning: str = Field("", max_length=64, description="in words; empty: the standard's words, else the class's name")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, text: Any) -> Any:
        if not isinstance(text, str):
            return text
        found = _SHORT.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"found {text!r}, expected SCHEME:CODE, such as SCT:78961009")
        return found.groupdict()

    @field_validator("scheme", "value", "meaning")
    @classmethod
    def _plain(cls, text: str) -> str:
        if "\\" in text or not text.isprintable():
            raise ValueError(f"found {text!r}, expected printable characters without a backslash")
        return text.strip()


class ClassCode(CodedTerm):
    """A class's segment property type (PS3.3, section C.8.20.4)."""

    category: CodedTerm | None = Field(None, description="property category, such as SCT:91723000 (structure)")
    modifier: CodedTerm | None = Field(None, description="of the type, such as SCT:7771000 (left)")
    region: CodedTerm | None = Field(None, description="of the body that it lies in, such as SCT:10200004 (liver)")

    @property
    def text(self) -> str:
        """The type with its modifier, such as SCT:64033007+SCT:7771000 (kidney, left)."""
        return "+".join(f"{one.scheme}:{one.value}" for one in (self, self.modifier) if one)


def require_known(codes: Mapping[int, ClassCode], classes: Iterable[int]) -> None:
    """Refuse codes of unknown label values.

    Raises:
        ValueError: a code is of a value that no class has.
    """
    unknown = sorted(set(codes) - set(classes))
    if unknown:
        values = ", ".join(map(str, unknown))
        raise ValueError(f"codes name the label value {values}, expected some of {sorted(classes)}")
