"""What a user says of a table's targets: ``--targets``, as a file or in short.

In short, ``NAME=KIND:COLUMN,…:MORE``: ``survival=survival:time_days,event``, ``grade=grade:isup:1<2<3<4<5``,
``volume=value:volume:ml``. A file says everything that a kind has, by the settings of its class here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from typing_extensions import Self

from oncofed.data.target_columns.base import lower
from oncofed.data.target_columns.dates import check_format
from oncofed.data.target_columns.findings import FindingColumns
from oncofed.data.target_columns.follow_up import FollowUpColumns
from oncofed.data.target_columns.names import ClassColumn, Column, GradeColumn
from oncofed.data.target_columns.quantity import ValueColumn
from oncofed.errors import SpecError
from oncofed.settings import StrictModel, first_problem, read_yaml, validated

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_EXPECTED = (
    "expected NAME=KIND:COLUMN, such as survival=survival:time_days,event, findings=labels:edema,effusion, "
    "grade=grade:isup:1<2<3, volume=value:volume:ml, benign=class:diagnosis; or a file .yaml that describes them"
)
OneTarget = Annotated[
    ClassColumn | FindingColumns | GradeColumn | ValueColumn | FollowUpColumns, Field(discriminator="kind")
]
Meaning = Literal["image", "label", "patient", "study", "series", "split", "modality", "looked_for", "date"]


class SplitByDate(StrictModel):
    """Lists by date: a patient belongs where its latest date does.

    A model is then tested on later patients than it learned from, as it will be used.
    """

    column: Column = Field(description="date of each row, such as that of the examination")
    dates: str = Field("", description="how dates are written, such as DD/MM/YYYY, if the column does not tell")
    validation_from: date | None = Field(None, description="first day of validation; null: dealt by the job")
    test_from: date = Field(description="first day of test, such as 2022-01-01")

    @field_validator("dates")
    @classmethod
    def _is_a_format(cls, dates: str) -> str:
        return check_format(dates) if dates else ""

    @model_validator(mode="after")
    def _are_in_order(self) -> Self:
        if self.validation_from and self.validation_from >= self.test_from:
            raise ValueError("validation_from is not before test_from")
        return self

    def split(self, day: date) -> str:
        """Return the list of a patient with this latest date."""
        if day >= self.test_from:
            return "test"
        return "validation" if self.validation_from and day >= self.validation_from else "training"


class TableTargets(StrictModel):
    """The targets of a table, and what its columns are called."""

    columns: dict[Meaning, Column] = Field(
        default_factory=dict, description="what oncofed looks for -> the table's own column, such as patient: MRN"
    )
    targets: dict[str, OneTarget] = Field(
        default_factory=dict,
        description="name -> kind and columns; none: a table of covariates, or what was looked for",
    )
    split: SplitByDate | None = Field(None, description="lists by date; null: by the column split, else by the job")

    @field_validator("targets")
    @classmethod
    def _have_names(cls, targets: dict[str, OneTarget]) -> dict[str, OneTarget]:
        for name in targets:
            if not _NAME.fullmatch(name):
                raise ValueError(f"target {name!r}: expected lower case letters, digits and _, at most 40")
        return {name: target.named(name) for name, target in targets.items()}  # type: ignore[misc]


def parse_targets(options: Sequence[str]) -> TableTargets | None:
    """Return the targets that ``--targets`` says; None: none.

    Args:
        options: a file each, or a target in short.

    Raises:
        SpecError: one is neither, or a target is given twice.
    """
    columns: dict[Meaning, str] = {}
    targets: dict[str, Any] = {}
    split: SplitByDate | None = None
    for option in options:
        if "=" not in option or Path(option).suffix.lower() in {".yaml", ".yml"}:
            of_file = _of_file(Path(option))
            columns |= of_file.columns
            split = of_file.split or split
            found: Mapping[str, Any] = of_file.targets
        else:
            found = dict([_in_short(option)])
        if twice := sorted(set(found) & set(targets)):
            raise SpecError(f"--targets {option}: target {twice[0]} is given twice")
        targets |= found
    return TableTargets(columns=columns, targets=targets, split=split) if options else None


def _of_file(path: Path) -> TableTargets:
    if path.suffix.lower() not in {".yaml", ".yml"}:
        raise SpecError(f"--targets {path}: {_EXPECTED}")
    values, lines = read_yaml(path, "targets: {survival: {kind: survival, time: days, event: dead}}")
    kinds = {"class", "labels", "grade", "value", "survival"}
    return validated(
        TableTargets,
        values,
        str(path),
        lines,
        "the file",
        lambda kind, loc: (kind, tuple(part for n, part in enumerate(loc) if not (n == 2 and part in kinds))),
    )


def _in_short(text: str) -> tuple[str, Any]:
    name, _, rest = text.partition("=")
    kind, *parts = rest.split(":")
    columns = [lower(column) for column in parts[0].split(",")] if parts and parts[0].strip() else []
    more = ":".join(parts[1:]).strip()
    make = _SHORT.get(kind.strip())
    if make is None or not _NAME.fullmatch(name.strip()):
        raise SpecError(f"--targets {text}: {_EXPECTED}")
    try:
        values = make(columns, more)
        target = TableTargets.model_validate({"targets": {name.strip(): {"kind": kind.strip(), **values}}})
    except SpecError as error:
        raise SpecError(f"--targets {text}: {error}; {_EXPECTED}") from None
    except ValidationError as error:
        why = first_problem(error).rpartition("Value error, ")[2]
        raise SpecError(f"--targets {text}: {why}; {_EXPECTED}") from None
    return name.strip(), target.targets[name.strip()]


def _class(columns: Sequence[str], more: str) -> dict[str, Any]:
    return {"column": _one(columns), "classes": [part.strip() for part in more.split("|") if part.strip()]}


def _labels(columns: Sequence[str], more: str) -> dict[str, Any]:
    found: dict[str, Any] = {"absent": more} if more else {}
    return {**found, "findings": columns} if len(columns) > 1 else {**found, "column": _one(columns)}


def _grade(columns: Sequence[str], more: str) -> dict[str, Any]:
    return {"column": _one(columns), "grades": [part.strip() for part in more.split("<") if part.strip()]}


def _value(columns: Sequence[str], more: str) -> dict[str, Any]:
    return {"column": _one(columns), "unit": more}


def _survival(columns: Sequence[str], more: str) -> dict[str, Any]:
    if len(columns) == 3:
        return {"start": columns[0], "end": columns[1], "event": columns[2], "unit": more}
    if len(columns) != 2:
        raise SpecError("survival needs two columns, time and event, or three: start and end (dates) and event")
    return {"time": columns[0], "event": columns[1], "unit": more}


def _one(columns: Sequence[str]) -> str:
    if len(columns) > 1:
        raise SpecError(f"found {len(columns)} columns, expected one")
    return columns[0] if columns else ""


_SHORT = {"class": _class, "labels": _labels, "grade": _grade, "value": _value, "survival": _survival}
