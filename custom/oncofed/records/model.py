"""Patients' records as a cohort needs them, whatever system they come from.

A source reads persons and dated events from a database or from files; a cohort is selected from these alone. Dates stay
within this room: what is written holds times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import NamedTuple, Protocol

from oncofed.records.spec import CohortSpec

# Called with what is read next, how many such parts are done, and how many there are.
Doing = Callable[[str, int, int], object]
# First and last day on which records would hold what happened.
Period = tuple[date, date]


def covered(first: date | None, last: date | None, today: date) -> Period | None:
    """Return a period that records can cover: it ends today at the latest; None where there is none."""
    if first is None or last is None or first > min(last, today):
        return None
    return first, min(last, today)


class Person(NamedTuple):
    """A person of a source.

    Attributes:
        key: by which a crosswalk names the person.
        born: date of birth; of a year alone its middle.
        sex: "female", "male", "other", or "" where unknown.
        died: date of death.
        died_undated: the records say that the person died, and not when.
        observed: periods that the records cover; of visits alone from the first one to the last.
    """

    key: str
    born: date | None = None
    sex: str = ""
    died: date | None = None
    died_undated: bool = False
    observed: tuple[Period, ...] = ()


class Event(NamedTuple):
    """Something that a record states of a person on a day.

    Attributes:
        day: on which it began or was measured.
        number: value, if it is a number.
        unit: of the number, in UCUM where the source has it.
        codes: of the value, if it is a concept, then of the event itself; as ``VOCABULARY:CODE``.
    """

    day: date
    number: float | None = None
    unit: str = ""
    codes: tuple[str, ...] = ()


@dataclass
class Records:
    """What a source holds of the persons with an index event.

    Attributes:
        persons: by the source's own identifier.
        events: concept set of the cohort -> person -> events, in order of their days.
        queries: text and SHA-256 of what was asked of the source.
        faults: what could not be read -> how many records.
        notes: what a person should know about how the source was read.
        undated: persons of whom an index event's day is not known.
        shared: keys that several persons of the source have, those without an index event among them.
    """

    persons: Mapping[str, Person]
    events: Mapping[str, Mapping[str, Sequence[Event]]]
    queries: list[tuple[str, str]] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    undated: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()


def nothing_said(what: str, done: int, total: int) -> None:
    """Say nothing of what is read next."""


class Source(Protocol):
    """A database or files with records."""

    def read(self, spec: CohortSpec) -> Records:
        """Return the records that a cohort asks for.

        Raises:
            DataError: the source cannot be read, or lacks codes that a cohort needs.
        """
