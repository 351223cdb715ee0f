"""Covariates: columns of a table, such as age or stage, that a network sees beside or instead of the image.

A case's values are the other columns of the table that it was registered from, and what its DICOM headers say.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor
from typing_extensions import Self

from oncofed.data.label_names import name_key
from oncofed.data.manifest import Entry
from oncofed.data.target_columns.cells import Notation, is_unknown
from oncofed.data.units import Unit, factor
from oncofed.errors import DataError
from oncofed.settings import StrictModel

# Says that nothing is known, unless it is a category.
_NONE = ("none",)
# A case is read without its column: a point is a decimal mark, as programs write it.
_READ, _COMMA = Notation((), ""), Notation((), "", ",")
# Facts of an image's header that stand for a column of that name, where the table has none.
_OF_HEADER = ("modality", "vendor")
# A plausible range is far wider than the patients are: a quarter of it stands for their spread.
_SHARE_OF_RANGE = 0.25
# Of a column, in lower case.
_NAME = re.compile(r"[a-z][a-z0-9_ .-]{0,39}\Z")


class Covariate(StrictModel):
    """A column: a number within a plausible range, or one of several categories."""

    name: str = Field(description="of the column; case does not matter")
    unit: Unit = Field("", max_length=20, description="of a number, by UCUM, such as years")
    range: tuple[float, float] | None = Field(None, description="of a number: lowest and highest plausible value")
    categories: tuple[str, ...] = Field((), max_length=64, description="the vocabulary; a value outside it is refused")

    @field_validator("name")
    @classmethod
    def _is_plain(cls, name: str) -> str:
        if not _NAME.match(name.lower()):
            raise ValueError(
                f"found {name!r}, expected a letter from a to z, then up to 39 of a to z, 0 to 9, space, '_', '.' and "
                "'-'. Rename the column in the table, and register it again"
            )
        return name.lower()

    @field_validator("categories")
    @classmethod
    def _differ(cls, categories: tuple[str, ...]) -> tuple[str, ...]:
        if categories and len({name_key(name) for name in categories}) < max(2, len(categories)):
            raise ValueError(f"expected two categories or more that differ, found {', '.join(categories)}")
        return categories

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if bool(self.categories) == (self.range is not None):
            raise ValueError(f"the covariate {self.name}: expected either a range, of a number, or categories")
        if self.range and not (math.isfinite(self.range[0]) and self.range[0] < self.range[1] < math.inf):
            raise ValueError(f"range is {self.range[0]:g} to {self.range[1]:g}, expected the smaller number first")
        if self.categories and self.unit:
            raise ValueError(f"the covariate {self.name} has categories and a unit, expected no unit: leave it out")
        return self

    @property
    def usual(self) -> tuple[float, float]:
        """Mean and spread of a number that nobody has measured: the range's middle, and a quarter of its width."""
        assert self.range, "of a number"
        low, high = self.range
        return (low + high) / 2, (high - low) * _SHARE_OF_RANGE

    def encode(self, text: str) -> float:
        """Return a value as the network takes it.

        Returns:
            A number as it is, of a category its index; NaN where it is missing.

        Raises:
            DataError: it is no number, may be two, is in another unit or out of range, or is no category of the job.
        """
        keys = [name_key(name) for name in self.categories]
        if name_key(text) in keys:
            return float(keys.index(name_key(text)))
        if is_unknown(text, _NONE):
            return math.nan
        if not self.range:
            raise DataError(f"column {self.name}: found {text!r}, expected one of {', '.join(self.categories)}")
        low, high = self.range
        wanted = f"{low:g} to {high:g}{f' {self.unit}' if self.unit else ''}"
        number = self._number(text, wanted)
        if not low <= number <= high:
            raise DataError(
                f"column {self.name}: found {text}, expected {wanted}. Correct the table, or widen the range"
            )
        return number

    def _number(self, text: str, wanted: str) -> float:
        """Return a cell's number in the job's unit.

        Raises:
            DataError: it is none, may be two, or has a unit that does not become the job's.
        """
        found = _READ.read(text)
        times = factor(found[1], self.unit) if found and found[1] else 1.0
        if found is None or times is None:
            of_unit = f", or with a unit that becomes {self.unit}" if self.unit else ""
            raise DataError(f"column {self.name}: found {text!r}, expected {wanted} as a plain number{of_unit}")
        if "," in text and _COMMA.read(text) not in (None, found):
            raise DataError(
                f"column {self.name}: found {text!r}, which may be thousands or a fraction, expected {wanted}. "
                "Write it with a point, or without a mark between thousands"
            )
        return found[0] * times


def stated(entry: Entry, column: Covariate) -> str:
    """Return what a case states in a column; empty where nothing."""
    wanted = name_key(column.name)
    for name, text in entry.tags.items():
        if name_key(name) == wanted:
            return text
    return str(getattr(entry, wanted) or "") if wanted in _OF_HEADER else ""


def row_of(entry: Entry | None, columns: Sequence[Covariate]) -> tuple[float, ...]:
    """Return a case's values in the job's columns.

    Args:
        entry: of the case; None: nothing is known of it.
        columns: of the job.

    Returns:
        A number for each column, see ``Covariate.encode``; NaN where it is missing.

    Raises:
        DataError: a value is outside its range or vocabulary.
    """
    return tuple(column.encode(stated(entry, column)) if entry else math.nan for column in columns)


def row_faults(entry: Entry, columns: Sequence[Covariate]) -> list[str]:
    """Return why a case's values cannot be used; empty where all can."""
    return [fault for column in columns if (fault := _fault(entry, column))]


def _fault(entry: Entry, column: Covariate) -> str:
    try:
        column.encode(stated(entry, column))
    except DataError as error:
        return str(error)
    return ""


def table_row(entry: Entry | None, columns: Sequence[Covariate]) -> dict[str, Tensor]:
    """Return ``table``, a case's values (column,) float32; empty where the job has no columns.

    Raises:
        DataError: a value is outside its range or vocabulary.
    """
    return {"table": torch.tensor(row_of(entry, columns), dtype=torch.float32)} if columns else {}
