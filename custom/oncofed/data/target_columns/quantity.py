"""A column of a number with a unit, such as a volume."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, field_validator

from oncofed.data.target_columns.base import Lines, ReadTarget, TargetColumns, each_cell
from oncofed.data.target_columns.cells import Mark, Notation, is_unknown, shown
from oncofed.data.target_columns.mixed_units import find_jump
from oncofed.data.target_columns.names import Column
from oncofed.data.targets import DatasetTarget
from oncofed.data.units import Unit, factor
from oncofed.errors import DataError

# Two units of the same kind, such as mg and g.
_JUMPS = ((500.0, 2000.0, "two units, of which one is 1000 of the other,"),)
_LEAST_GAP = 20.0


class ValueColumn(TargetColumns):
    """A value."""

    kind: Literal["value"] = "value"
    column: Column = Field("", description="the column; left out: called as the target")
    unit: Unit = Field("", description="of the numbers, by UCUM; cells that name another unit are converted")
    range: tuple[float, float] | None = Field(None, description="smallest and largest plausible value, in the unit")
    decimal: Mark | None = Field(None, description="the decimal mark, where the column does not tell")

    @field_validator("range")
    @classmethod
    def _is_a_range(cls, pair: tuple[float, float] | None) -> tuple[float, float] | None:
        if pair and not pair[0] < pair[1]:
            raise ValueError(f"{pair[0]:g} to {pair[1]:g}, expected the smaller number first")
        return pair

    @property
    def columns(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)

    def named(self, name: str) -> TargetColumns:
        """Return the same with a column of the target's name, where none is given."""
        return self if self.column else self.model_copy(update={"column": name})

    def read(self, lines: Lines) -> ReadTarget:
        """Read the column.

        Raises:
            DataError: its numbers, or their units, may be read in two ways.
        """
        cells = each_cell(lines, self.column, lambda text: is_unknown(text, self.unknown))
        notation = Notation(cells, self.column, self.decimal)
        found = {line: notation.read(text) for line, text in cells}
        units = {number[1]: line for line, number in found.items() if number and number[1]}
        unit = self.unit or next(iter(units), "")
        bare = next((line for line, number in found.items() if number and not number[1]), None)
        if units and not self.unit and bare is not None:
            named, line = next(iter(units.items()))
            raise DataError(
                f"column {self.column} has numbers with a unit (line {line}) and without (line {bare}). Say the unit "
                f"of those without: unit: {named}"
            )
        read = ReadTarget(DatasetTarget(kind="value", unit=unit))
        for line, text in cells:
            reason = self._take(line, found[line], unit, read)
            if reason:
                read.faults[line] = f"column {self.column} {reason.format(shown(text))}"
        numbers = {line: value for line, value in read.values.items() if isinstance(value, float)}
        jump = None if self.range else find_jump(numbers, _JUMPS, _LEAST_GAP)
        if jump:
            mixed, below, above = jump
            raise DataError(
                f"column {self.column}: its numbers jump (from line {below} to line {above} in the order of their "
                f"size) as {mixed} in one column do. Write the unit in the cells, or say what is plausible: "
                "range: [LOW, HIGH]"
            )
        return read

    def _take(self, line: int, number: tuple[float, str] | None, unit: str, read: ReadTarget) -> str:
        """Add a line's value, or return why it is none; ``{}`` stands for the cell."""
        if number is None:
            return "says {}, expected one number"
        times = factor(number[1], unit) if number[1] else 1.0
        if times is None:
            return f"has another unit, expected {unit}"
        value = number[0] * times
        if not math.isfinite(value):
            return "says {}, expected one number"
        if self.range and not self.range[0] <= value <= self.range[1]:
            return f"is outside {self.range[0]:g} to {self.range[1]:g} {unit}".rstrip()
        read.values[line] = value
        return ""
