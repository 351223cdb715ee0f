"""What a kind of target makes of a table's columns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from oncofed.data.codes import Code, codes_problem
from oncofed.data.targets import DatasetTarget, TargetValue
from oncofed.errors import DataError
from oncofed.settings import StrictModel


def _text(value: Any) -> Any:
    """Return a number of YAML as the text that the table has."""
    if isinstance(value, bool):
        raise ValueError('yes, no, true and false are no texts to YAML: put the text in quotes, such as "yes"')
    return f"{value:g}" if isinstance(value, float) else str(value) if isinstance(value, int) else value


# A text of a cell, as a file says it.
Text = Annotated[str, BeforeValidator(_text)]
# A line's cells, by column.
Cells = Mapping[str, str]
Lines = Sequence[tuple[int, Cells]]


@dataclass
class ReadTarget:
    """A target, read from a table.

    Attributes:
        declared: for ``dataset.json``.
        values: line -> what it states; a line left out states nothing.
        faults: line -> why it cannot be used.
        same: line -> what the lines of a patient must agree on, where that is not the value, such as the date of an
            event; written nowhere.
    """

    declared: DatasetTarget
    values: dict[int, TargetValue] = field(default_factory=dict)
    faults: dict[int, str] = field(default_factory=dict)
    same: dict[int, object] = field(default_factory=dict)


class TargetColumns(StrictModel):
    """Where a table states a target, and how to read it."""

    per: Literal["case", "patient"] = Field(
        "case", description="patient: all rows of a patient say the same; those that do not are set aside"
    )
    unknown: tuple[Text, ...] = Field((), description="texts that say that nothing is known, beside the usual ones")
    code: Code = Field("", description="what the target is, as SCHEME:CODE; a job's target of the same code is it")
    codes: dict[Text, Code] = Field(
        default_factory=dict, description="class, grade or finding -> what it means, as SCHEME:CODE"
    )

    @property
    @abstractmethod
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads, in lower case."""

    @abstractmethod
    def named(self, name: str) -> TargetColumns:
        """Return the same with the columns that a target of this name has where none are given."""

    @abstractmethod
    def read(self, lines: Lines) -> ReadTarget:
        """Read the columns.

        Raises:
            DataError: a column as a whole cannot be read; the message names it and a line, no cell of a patient.
        """


def coded(declared: DatasetTarget, columns: TargetColumns) -> DatasetTarget:
    """Return a declaration with the codes that its columns' settings give.

    Raises:
        DataError: they are of names that the target does not have, or one is of two.
    """
    if problem := codes_problem(columns.codes, tuple(declared.names)):
        raise DataError(problem)
    return declared.model_copy(update={"code": columns.code, "codes": dict(columns.codes)})


def lower(value: Any) -> Any:
    """Return names of columns in lower case, as tables have them."""
    if isinstance(value, str):
        return value.strip().lower()
    if isinstance(value, Mapping):
        return {key: lower(one) for key, one in value.items()}
    return [lower(one) for one in value] if isinstance(value, (list, tuple)) else value


def each_cell(lines: Lines, column: str, is_unknown: Callable[[str], bool]) -> list[tuple[int, str]]:
    """Return line and text of a column's known cells."""
    return [(line, text) for line, cells in lines if not is_unknown(text := cells.get(column, ""))]
