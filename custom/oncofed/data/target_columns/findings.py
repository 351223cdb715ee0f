"""Columns of findings, of which several may hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from oncofed.data.label_names import name_key
from oncofed.data.target_columns.base import Lines, ReadTarget, TargetColumns, Text
from oncofed.data.target_columns.cells import NO, YES, is_unknown, plain, shown
from oncofed.data.target_columns.names import Column
from oncofed.data.targets import DatasetTarget
from oncofed.errors import DataError

# CheXpert (Irvin et al., AAAI 2019): 1 it holds, 0 it does not, -1 uncertain, blank not mentioned.
_UNCERTAIN = frozenset(("-1", "uncertain", "possible", "maybe", "equivocal"))
_NONE = ("no finding", "no findings", "none", "normal", "nothing")


class FindingColumns(TargetColumns):
    """Findings: a column each, or one column that lists those that hold."""

    kind: Literal["labels"] = "labels"
    findings: dict[Text, Column] = Field(default_factory=dict, description="finding -> its column")
    column: Column = Field("", description="instead of findings: the column that lists those that hold")
    separator: str = Field("|", min_length=1, max_length=1, description="between the findings of the column")
    names: tuple[Text, ...] = Field((), description="findings of the column; left out: all that it lists")
    none: tuple[Text, ...] = Field(_NONE, description="texts of the column that say that no finding holds")
    absent: Literal["unknown", "negative"] = Field(
        "unknown", description="what a blank cell, or a finding that the column does not list, is"
    )

    @model_validator(mode="before")
    @classmethod
    def _columns_name_findings(cls, values: object) -> object:
        if isinstance(values, Mapping) and isinstance(values.get("findings"), (list, tuple)):
            return {**values, "findings": {str(name): str(name) for name in values["findings"]}}
        return values

    @model_validator(mode="after")
    def _are_one_or_the_other(self) -> Self:
        if self.findings and self.column:
            raise ValueError("give findings (a column each) or column (which lists them), not both")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of all findings."""
        return tuple(self.findings.values()) or (self.column,)

    def named(self, name: str) -> TargetColumns:
        """Return the same with a column of the target's name, where none is given."""
        return self if self.findings or self.column else self.model_copy(update={"column": name})

    def read(self, lines: Lines) -> ReadTarget:
        """Read the columns.

        Raises:
            DataError: a listed finding differs from the names by more than case.
        """
        return self._of_columns(lines) if self.findings else self._of_list(lines)

    def _of_columns(self, lines: Lines) -> ReadTarget:
        read = ReadTarget(DatasetTarget(kind="labels", names=list(self.findings)))
        for line, cells in lines:
            stated: dict[str, bool] = {}
            for name, column in self.findings.items():
                text = plain(cells.get(column, ""))
                if text in YES or text in NO:
                    stated[name] = text in YES
                elif text in _UNCERTAIN:
                    continue
                elif not is_unknown(text, self.unknown):
                    read.faults[line] = (
                        f"column {column} says {shown(text)}, expected 1 (holds), 0 (does not), -1 (uncertain) or blank"
                    )
                elif self.absent == "negative" and text == "":
                    stated[name] = False
            if stated and line not in read.faults:
                read.values[line] = stated
        return read

    def _of_list(self, lines: Lines) -> ReadTarget:
        none = {name_key(text) for text in self.none}
        listed: dict[int, list[str]] = {}
        for line, cells in lines:
            text = cells.get(self.column, "")
            if not is_unknown(text, self.unknown):
                listed[line] = [part.strip() for part in text.split(self.separator) if part.strip()]
        found = {name_key(part): part for parts in listed.values() for part in parts if name_key(part) not in none}
        names = self.names or tuple(found[key] for key in sorted(found))
        by_key = {name_key(name): name for name in names}
        read = ReadTarget(DatasetTarget(kind="labels", names=list(names)))
        if not names:
            raise DataError(f"column {self.column} lists no finding, expected findings separated by {self.separator}")
        for line, parts in listed.items():
            keys = {name_key(part) for part in parts}
            other = next((part for part in parts if name_key(part) not in by_key and name_key(part) not in none), "")
            if other or (keys & none and keys - none):
                why = f"{shown(other)}, expected {', '.join(names)}" if other else "findings and that there is none"
                read.faults[line] = f"column {self.column} says {why}"
                continue
            rest = self.absent == "negative" or bool(keys & none)
            stated = {name: key in keys for key, name in by_key.items() if key in keys or rest}
            read.values[line] = stated
        return read
