"""Columns of survival: how long a patient was followed, and whether the event came.

Times stand in a column with a unit, or are the days between two dates; the dates stay in the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator
from typing_extensions import Self

from oncofed.data.target_columns.base import Lines, ReadTarget, TargetColumns, Text, each_cell, lower
from oncofed.data.target_columns.cells import (
    NO,
    YES,
    Mark,
    Notation,
    is_unknown,
    plain,
    shown,
    time_unit_of,
)
from oncofed.data.target_columns.dates import check_format, read_dates
from oncofed.data.target_columns.mixed_units import find_jump
from oncofed.data.target_columns.names import Column
from oncofed.data.targets import DatasetTarget, FollowUp
from oncofed.data.time_units import DAYS, TIME_UNITS
from oncofed.data.units import factor
from oncofed.errors import DataError

# cBioPortal writes 1:DECEASED and 0:LIVING.
_CAME = YES | {
    *("dead", "died", "deceased", "death", "exitus", "event", "progressed", "progression", "relapse", "relapsed"),
    *("recurred", "recurrence", "recurred/progressed", "1:deceased", "1:recurred/progressed", "1:progression"),
}
_NOT_COME = NO | {
    *("alive", "living", "censored", "no event", "disease free", "disease-free", "diseasefree", "0:living"),
    *("0:diseasefree", "0:censored", "no progression", "no recurrence"),
}
_LONGEST_YEARS = 120
# Two units in one column: how many times as long the middle of the larger numbers is, about 30 days or 365.
_JUMPS = ((20.0, 48.0, "days and months"), (230.0, 580.0, "days and years"), (9.0, 16.0, "months and years"))
_LEAST_GAP = 4.0


def _several(value: object) -> object:
    return lower([value] if isinstance(value, str) else value)


Columns = Annotated[tuple[Column, ...], BeforeValidator(_several)]


class FollowUpColumns(TargetColumns):
    """Time and event."""

    kind: Literal["survival"] = "survival"
    time: Columns = Field((), description="the column of times; of several the first that has one")
    start: Column = Field("", description="instead of time: the column of the dates when follow-up began")
    end: Columns = Field((), description="with start: of the event or the last contact; of several the first with one")
    dates: str = Field("", description="how dates are written, such as DD/MM/YYYY, where the columns do not tell")
    event: Column = Field("", description="the column that says whether the event came")
    event_date: Column = Field("", description="instead of event: the column of its dates, blank where it had not come")
    events: tuple[Text, ...] = Field((), description="texts of event that say that it came, in place of the usual ones")
    censored: tuple[Text, ...] = Field((), description="texts of event that say that it had not, likewise")
    unit: str = Field("", description="of the times: days, weeks, months or years; of dates: what they become")
    decimal: Mark | None = Field(None, description="the decimal mark of the times, where the column does not tell")
    one_unit: bool = Field(False, description="the times are in one unit, although they look like two")
    per: Literal["case", "patient"] = Field(
        "patient", description="case: each image has a follow-up of its own, such as that of one lesion"
    )

    @field_validator("unit")
    @classmethod
    def _is_a_unit(cls, unit: str) -> str:
        if unit and unit.lower() not in TIME_UNITS:
            raise ValueError(f"found {unit!r}, expected days, weeks, months or years")
        return TIME_UNITS[unit.lower()] if unit else ""

    @field_validator("dates")
    @classmethod
    def _is_a_format(cls, dates: str) -> str:
        return check_format(dates) if dates else ""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if bool(self.time) == bool(self.start):
            raise ValueError("give time (a column of times), or start and end (columns of dates)")
        if self.start and not (self.end or self.event_date):
            raise ValueError("start needs end: the column of the dates of the event or the last contact")
        if bool(self.event) == bool(self.event_date) or (self.event_date and not self.start):
            raise ValueError("give event (a column that says whether it came), or with start its dates: event_date")
        if bool(self.events) != bool(self.censored):
            raise ValueError("events and censored go together: say which texts mean either")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """All its columns."""
        return tuple(filter(None, (*self.time, self.start, *self.end, self.event, self.event_date)))

    def named(self, name: str) -> TargetColumns:
        """Return the same: its columns are always given."""
        del name
        return self

    def read(self, lines: Lines) -> ReadTarget:
        """Read the columns.

        Raises:
            DataError: dates, units or codes may be read in two ways.
        """
        faults: dict[int, str] = {}
        ended: Mapping[int, date]
        events = self._events(lines, faults)
        if self.start:
            unit = self.unit or "days"
            times, ended = self._between(lines, events, unit, faults)
        else:
            ended = {}
            times, unit = self._times(lines, faults)
        read = ReadTarget(DatasetTarget(kind="survival", unit=unit), faults=faults)
        for line, _ in lines:
            time, event = times.get(line), events.get(line)
            if line in faults or (time is None and event is None):
                continue
            if time is None or event is None:
                lacks, has = ("time", "event") if time is None else ("event", "time")
                read.faults[line] = f"has {has} without {lacks} (columns {', '.join(self.columns)})"
            elif time < 0:
                ends = "ends before it starts" if self.start else "has a negative time"
                read.faults[line] = f"{ends} (columns {', '.join(self.columns)})"
            elif time * DAYS[unit] > _LONGEST_YEARS * DAYS["years"]:
                read.faults[line] = f"has a time above {_LONGEST_YEARS} years (columns {', '.join(self.columns)})"
            else:
                read.values[line] = FollowUp(time=time, event=event)
        read.same = {line: (ended[line], events[line]) for line in read.values if line in ended}
        return read

    # --- events

    def _events(self, lines: Lines, faults: dict[int, str]) -> dict[int, bool]:
        if self.event_date:
            return {}
        came = {plain(text) for text in self.events} or _CAME
        not_come = {plain(text) for text in self.censored} or _NOT_COME

        def nothing(text: str) -> bool:
            return plain(text) not in came | not_come and is_unknown(text, self.unknown)

        cells = each_cell(lines, self.event, nothing)
        others = [(line, text) for line, text in cells if plain(text) not in came | not_come]
        numbered = [line for line, text in others if plain(text).lstrip("-").isdigit()]
        if numbered and not self.events:
            raise DataError(
                f"line {numbered[0]}: column {self.event} has other numbers than 1 and 0, of which nobody knows what "
                'they mean. Say it: events: ["2"], censored: ["1"]'
            )
        expected = ", ".join((*self.events[:3], *self.censored[:3])) or "1 or 0, dead or alive, yes or no"
        faults |= {line: f"column {self.event} says {shown(text)}, expected {expected}" for line, text in others}
        return {line: plain(text) in came for line, text in cells if plain(text) in came | not_come}

    # --- times between dates

    def _between(
        self, lines: Lines, events: dict[int, bool], unit: str, faults: dict[int, str]
    ) -> tuple[dict[int, float], dict[int, date]]:
        """Return line -> time, and when it ended."""
        read = {
            column: self._dates(lines, column, faults)
            for column in filter(None, (self.start, *self.end, self.event_date))
        }
        times: dict[int, float] = {}
        found: dict[int, date] = {}
        for line, _ in lines:
            begin = read[self.start].get(line)
            event_date = read[self.event_date].get(line) if self.event_date else None
            end = event_date or next((day for column in self.end if (day := read[column].get(line))), None)
            if self.event_date and end is not None:
                events[line] = event_date is not None
            if begin is not None and end is not None:
                times[line] = round((end - begin).days / DAYS[unit], 4)
                found[line] = end
        return times, found

    def _dates(self, lines: Lines, column: str, faults: dict[int, str]) -> Mapping[int, date]:
        cells = each_cell(lines, column, lambda text: is_unknown(text, self.unknown))
        found = read_dates(cells, column, self.dates)
        expected = f"one as {self.dates}" if self.dates else "a whole date"
        faults |= {line: f"column {column} is no date, expected {expected}" for line, day in found.items() if not day}
        today = date.today()
        late = {line for line, day in found.items() if day and day > today}
        faults |= dict.fromkeys(late, f"column {column} has a day that is still to come, expected one up to today")
        return {line: day for line, day in found.items() if day and line not in late}

    # --- times in columns

    def _times(self, lines: Lines, faults: dict[int, str]) -> tuple[dict[int, float], str]:
        stated: dict[int, tuple[float, str]] = {}
        said = self.unit or next(filter(None, map(time_unit_of, self.time)), None) or ""
        for column in self.time:
            own = self.unit or time_unit_of(column) or said
            cells = each_cell(lines, column, lambda text: is_unknown(text, self.unknown))
            notation = Notation(cells, column, self.decimal)
            for line, text in cells:
                number = notation.read(text)
                unit = TIME_UNITS.get(number[1].lower()) if number and number[1] else own
                if number is None or unit is None:
                    faults.setdefault(line, f"column {column} has no single number with a unit of time")
                elif line not in stated:
                    stated[line] = (number[0], unit)
        unit = said or next((unit for _, unit in stated.values() if unit), "")
        bare = next((line for line, (_, own) in stated.items() if not own), None)
        columns = " and ".join(self.time)
        if bare is not None and unit:
            other = next(line for line, (_, own) in stated.items() if own)
            raise DataError(
                f"column {columns} has times with a unit (line {other}) and without (line {bare}). Say the unit of "
                f"those without: unit: {unit}"
            )
        if bare is not None:
            raise DataError(
                f"column {columns} does not say in what its times are. Say it: unit: days (weeks, months, years), or "
                f"on the command line behind the columns: survival:{','.join(self.time)},{self.event}:days"
            )
        if not self.one_unit:
            _refuse_two_units({line: time for line, (time, own) in stated.items() if own == unit}, columns)
        return {line: time * (factor(own, unit) or 1.0) for line, (time, own) in stated.items()}, unit or "days"


def _refuse_two_units(times: Mapping[int, float], columns: str) -> None:
    """Refuse times that fall into two groups about 12, 30 or 365 times apart.

    Raises:
        DataError: they do.
    """
    found = find_jump(times, _JUMPS, _LEAST_GAP)
    if found:
        units, below, above = found
        raise DataError(
            f"column {columns}: its times jump (from line {below} to line {above} in the order of their length) as "
            f"{units} in one column do. Write the unit in the cells (12 months), or, where it is one unit, say so: "
            "one_unit: true"
        )
