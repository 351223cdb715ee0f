"""Columns of targets that are names: a class of several, or a grade of a scale."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from oncofed.data.label_names import name_key
from oncofed.data.target_columns.base import Lines, ReadTarget, TargetColumns, Text, each_cell, lower
from oncofed.data.target_columns.cells import is_unknown, plain, shown
from oncofed.data.targets import DatasetTarget
from oncofed.errors import DataError

Column = Annotated[str, BeforeValidator(lower)]
_MOST_SHOWN = 12


class _NameColumn(TargetColumns):
    """A column of which each cell is a name."""

    column: Column = Field("", description="the column; left out: called as the target")
    values: dict[Text, Text] = Field(
        default_factory=dict, description="text of a cell -> name, where the table writes codes"
    )

    @property
    def columns(self) -> tuple[str, ...]:
        """The column."""
        return (self.column,)

    def named(self, name: str) -> TargetColumns:
        """Return the same with a column of the target's name, where none is given."""
        return self if self.column else self.model_copy(update={"column": name})

    def _cells(self, lines: Lines, names: Sequence[str]) -> list[tuple[int, str]]:
        """Return line and name of each known cell; a name may be a word that else says that nothing is known."""
        listed = {plain(text) for text in (*names, *self.values)}
        codes = {plain(text): name for text, name in self.values.items()}

        def nothing(text: str) -> bool:
            return plain(text) not in listed and is_unknown(text, self.unknown)

        return [(line, codes.get(plain(text), text)) for line, text in each_cell(lines, self.column, nothing)]

    def _matched(self, cells: Sequence[tuple[int, str]], names: Sequence[str], read: ReadTarget, order: str) -> None:
        """Fill in a name for each cell, or why it is none."""
        known: Mapping[str, str] = {name_key(plain(name)): name for name in names}
        for line, text in cells:
            name = known.get(name_key(plain(text)))
            if name is None:
                listed = order.join(names[:_MOST_SHOWN]) + (f"{order}…" if len(names) > _MOST_SHOWN else "")
                read.faults[line] = f"column {self.column} says {shown(text)}, expected {listed}"
            else:
                read.values[line] = name


class ClassColumn(_NameColumn):
    """One of several classes."""

    kind: Literal["class"] = "class"
    classes: tuple[Text, ...] = Field((), description="their names; left out: what the column has")

    def read(self, lines: Lines) -> ReadTarget:
        """Read the column."""
        cells = self._cells(lines, self.classes)
        names = self.classes or tuple(dict.fromkeys(self.values.values())) or _spellings(text for _, text in cells)
        read = ReadTarget(DatasetTarget(kind="class", names=list(names)))
        self._matched(cells, names, read, ", ")
        return read


class GradeColumn(_NameColumn):
    """A grade of a scale."""

    kind: Literal["grade"] = "grade"
    grades: tuple[Text, ...] = Field(
        (), description="names from the lowest to the highest; left out: the column's whole numbers"
    )

    def read(self, lines: Lines) -> ReadTarget:
        """Read the column.

        Raises:
            DataError: the scale is not given, and the cells are no whole numbers.
        """
        cells = self._cells(lines, self.grades)
        names = self.grades
        if not names:
            found = {plain(text) for _, text in cells}
            other = next((line for line, text in cells if not plain(text).lstrip("-").isdigit()), None)
            if other is not None:
                raise DataError(
                    f"line {other}: column {self.column} has grades that are no whole numbers. Say their order, from "
                    "the lowest to the highest: grades: [I, II, III]"
                )
            names = tuple(sorted(found, key=int))
        read = ReadTarget(DatasetTarget(kind="grade", names=list(names)))
        self._matched(cells, names, read, " < ")
        return read


def _spellings(texts: object) -> tuple[str, ...]:
    """Return each name as it is written most often, by the alphabet."""
    forms: dict[str, Counter[str]] = defaultdict(Counter)
    for text in texts:  # type: ignore[attr-defined]
        forms[name_key(plain(text))][" ".join(text.split())] += 1
    names = [max(sorted(written), key=lambda form: written[form]) for written in forms.values()]
    return tuple(sorted((plain(name) if plain(name) != name.casefold() else name for name in names), key=name_key))
