"""Select a cohort from records: who belongs to it, and what is known of each person.

Only this module compares dates. What it returns holds days from the index, ages and names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from statistics import median
from typing import NamedTuple

from oncofed.data.time_units import DAYS
from oncofed.data.units import factor, is_unit
from oncofed.errors import DataError
from oncofed.records.crosswalk import Link, Links
from oncofed.records.model import Event, Period, Person, Records
from oncofed.records.spec import (
    DEATH,
    AgeCovariate,
    CohortSpec,
    FindingsOutcome,
    NamedOutcome,
    SexCovariate,
    SurvivalOutcome,
    Taken,
    ValueOutcome,
    Window,
    Within,
)

# HIPAA's Safe Harbor (45 CFR 164.514(b)(2)(i)(C)): all ages above it are one category.
_OLDEST_TOLD = 89


class Row(NamedTuple):
    """What is known of a patient of the images.

    Attributes:
        link: the patient.
        values: column -> text; empty: unknown.
    """

    link: Link
    values: Mapping[str, str]


@dataclass
class Cohort:
    """A selected cohort.

    Attributes:
        columns: of the table, in order.
        rows: one for each patient of the images, or examination.
        flow: step of the selection -> how many persons were left after it.
        faults: what could not be used -> how often.
        notes: what a person should know of the steps.
    """

    columns: tuple[str, ...]
    rows: list[Row] = field(default_factory=list)
    flow: dict[str, int] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Case:
    """A person with an index.

    Attributes:
        person: whose it is.
        index: day from which is counted.
        period: that the records cover around it.
        events: concept set -> the person's events.
    """

    person: Person
    index: date
    period: Period
    events: Mapping[str, Sequence[Event]]

    @property
    def end(self) -> date:
        """Last day of follow-up for what is not a death."""
        return min(self.period[1], self.person.died) if self.person.died else self.period[1]

    def within(self, concept: str, window: Window | None) -> list[Event]:
        """Return the events of a concept set in a window around the index."""
        found = self.events.get(concept, ())
        if window is None:
            return list(found)
        return [event for event in found if window[0] <= self.days_to(event.day) <= window[1]]

    def is_covered(self, window: Window) -> bool:
        """Return whether records cover a window; until a death they do."""
        ends = self.days_to(self.end) >= window[1] or self.end == self.person.died
        return ends and (window[0] >= 0 or self.days_to(self.period[0]) <= window[0])

    def days_to(self, day: date) -> int:
        """Return how many days after the index a day is."""
        return (day - self.index).days


def select_cohort(records: Records, spec: CohortSpec, links: Links) -> Cohort:
    """Return who belongs to a cohort, and what is known of them.

    Args:
        records: of all persons with an index event.
        spec: the cohort's settings.
        links: persons' patients of the images.

    Raises:
        DataError: nobody is left, after the step that is named.
    """
    cohort = Cohort(cohort_columns(spec))
    cohort.faults.update(records.faults)
    cases = list(_cases(records, spec, cohort))
    for name, belongs in _steps(spec, links):
        before, cases = len(cases), [case for case in cases if belongs(case)]
        cohort.flow[name] = len(cases)
        if before and not cases:
            raise DataError(
                f"the cohort {spec.name}: found nobody left of {before:,} persons after the step '{name}'. Compare the "
                "step's codes, window and identifiers with the records"
            )
    cohort.notes += _idle(records, spec, cohort.flow)
    if not cases:
        raise DataError(_nobody(spec, len(records.events[spec.index.concept])))
    for case in cases:
        values = _values(case, spec, cohort.faults)
        cohort.rows += [Row(link, values) for link in links.of[case.person.key]]
    cohort.rows.sort(key=lambda row: (row.link.patient, row.link.accession))
    return cohort


def cohort_columns(spec: CohortSpec) -> tuple[str, ...]:
    """Return the columns of a cohort's table, without that of the patient."""
    columns: list[str] = []
    for name, outcome in spec.targets.items():
        if isinstance(outcome, SurvivalOutcome):
            columns += [f"{name}_time", f"{name}_event"]
        elif isinstance(outcome, FindingsOutcome):
            columns += [f"{name}_{finding}" for finding in outcome.findings]
        else:
            columns.append(name)
    return (*columns, *spec.covariates)


def _cases(records: Records, spec: CohortSpec, cohort: Cohort) -> Iterable[_Case]:
    """Yield persons with an index in observed time."""
    place = 0 if spec.index.which == "first" else -1
    found = records.events[spec.index.concept]
    keys = Counter(person.key for person in records.persons.values() if person.key)
    concepts, today = tuple(spec.used_concepts), date.today()
    observed = 0
    for identifier, events in found.items():
        person, index = records.persons.get(identifier), events[place].day
        if person is None:
            cohort.faults["an index event of nobody in the table of persons"] += 1
        elif keys[person.key] > 1 or person.key in records.shared:
            # Whose death, events and images they are is not known.
            cohort.faults["a person with the identifier of another"] += 1
        elif identifier in records.undated:
            # It may be the first one, or the last.
            cohort.faults["a person of whom an index event's day is not known"] += 1
        elif person.died and person.died < index:
            cohort.faults["a death before the index"] += 1
        else:
            own = {name: records.events[name].get(identifier, ()) for name in concepts}
            periods = _joined(person.observed)
            if spec.follow_up == "last_visit":
                periods = _until_last_record(periods, own, today)
            if period := next((one for one in periods if one[0] <= index <= one[1]), None):
                observed += 1
                yield _Case(person, index, period, own)
    cohort.flow = {f"has {spec.index.concept}": len(found), "was observed then": observed, **cohort.flow}


def _joined(periods: Sequence[Period]) -> list[Period]:
    """Return periods, those that touch or overlap as one."""
    joined: list[Period] = []
    for first, last in sorted(periods):
        if joined and (first - joined[-1][1]).days <= 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return joined


def _until_last_record(periods: Sequence[Period], events: Mapping[str, Sequence[Event]], today: date) -> list[Period]:
    """Return periods, the last one up to the last record, which shows that the person was seen; events in order."""
    if not periods:
        return []
    # What is dated in the future is planned.
    found = (next((event.day for event in reversed(own) if event.day <= today), None) for own in events.values())
    days = [day for day in found if day]
    first, last = periods[-1]
    return [*periods[:-1], (first, max([last, *days]))]


def _nobody(spec: CohortSpec, found: int) -> str:
    """Return why a cohort is empty before its first step."""
    begin = f"the cohort {spec.name}: found"
    if not found:
        return f"{begin} nobody with the index event {spec.index.concept}. Compare its codes with those of the records"
    if spec.follow_up == "last_visit":
        return (
            f"{begin} {found:,} persons with the index event, expected it between their first and last visit. See that "
            "the records of visits (OMOP: visit_occurrence, FHIR: Encounter) are there"
        )
    return (
        f"{begin} {found:,} persons with the index event, expected it within an observation period. See that the table "
        "observation_period is filled, or write follow_up: last_visit"
    )


def _steps(spec: CohortSpec, links: Links) -> Iterable[tuple[str, Callable[[_Case], bool]]]:
    if spec.age:
        low, high = spec.age
        yield f"aged {low} to {high}", lambda case: low <= _age(case) <= high
    for one in spec.include:
        yield f"with {_described(one)}", lambda case, one=one: bool(case.within(one.concept, one.within))  # type: ignore[misc]
    for one in spec.exclude:
        yield f"without {_described(one)}", lambda case, one=one: not case.within(one.concept, one.within)  # type: ignore[misc]
    yield "has images by the crosswalk", lambda case: case.person.key in links.of


def _idle(records: Records, spec: CohortSpec, flow: Mapping[str, int]) -> Iterable[str]:
    """Yield exclusions that left out nobody: what they name may be called otherwise here."""
    steps = list(flow)
    for one in spec.exclude:
        name = f"without {_described(one)}"
        before = steps[steps.index(name) - 1] if name in steps else ""
        if before and flow[before] == flow[name]:
            why = (
                "somebody has such a record, at another time"
                if records.events[one.concept]
                else ("no record with one of its codes was found: compare them with those of the records")
            )
            yield f"the step '{name}' left out nobody of {flow[name]:,} persons: {why}"


def _described(one: Within) -> str:
    return one.concept + (f" from day {one.within[0]} to {one.within[1]}" if one.within else "")


def _age(case: _Case) -> int:
    """Return the age at the index in whole years; -1 where unknown."""
    born, index = case.person.born, case.index
    if born is None:
        return -1
    return index.year - born.year - ((index.month, index.day) < (born.month, born.day))


def _values(case: _Case, spec: CohortSpec, faults: Counter[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for name, column in (*spec.targets.items(), *spec.covariates.items()):
        if isinstance(column, SurvivalOutcome):
            values |= _survival(case, name, column, faults)
        elif isinstance(column, FindingsOutcome):
            values |= _findings(case, name, column)
        elif isinstance(column, AgeCovariate):
            age = _age(case)
            values[name] = "" if age < 0 else str(min(age, _OLDEST_TOLD + 1))
        elif isinstance(column, SexCovariate):
            values[name] = case.person.sex
        elif isinstance(column, ValueOutcome):
            values[name] = _number(case, name, column, faults)
        else:
            values[name] = _name(case, name, column, faults)
    return values


def _survival(case: _Case, name: str, outcome: SurvivalOutcome, faults: Counter[str]) -> dict[str, str]:
    person, came = case.person, None
    counts_death = outcome.event == DEATH or outcome.or_death
    if outcome.event != DEATH:
        later = [event.day for event in case.within(outcome.event, None) if event.day > case.index]
        came = next((day for day in later if day <= case.end), None)
        if person.died and any(day > person.died for day in later):
            faults[f"{name}: an event after the death"] += 1
        elif came is None and later:
            faults[f"{name}: an event after the end of follow-up"] += 1
    if came is None and counts_death:
        if person.died_undated:
            faults[f"{name}: a death without its date"] += 1
            return {f"{name}_time": "", f"{name}_event": ""}
        # Registers of deaths know of those after the last visit, too.
        came = person.died
    days = case.days_to(came or case.end)
    return {f"{name}_time": _in_unit(days, outcome.unit), f"{name}_event": str(int(came is not None))}


def _in_unit(days: int, unit: str) -> str:
    return str(days) if unit == "days" else f"{days / DAYS[unit]:.4f}"


def _findings(case: _Case, name: str, outcome: FindingsOutcome) -> dict[str, str]:
    absent = "0" if case.is_covered(outcome.within) else ""
    return {
        f"{name}_{finding}": "1" if case.within(concept, outcome.within) else absent
        for finding, concept in outcome.findings.items()
    }


def _taken(case: _Case, column: Taken) -> list[Event]:
    """Return the events of the day that is taken; of several days one."""
    found = case.within(column.concept, column.within)
    if not found:
        return []
    if column.take == "nearest":
        day = min((event.day for event in found), key=lambda day: (abs(case.days_to(day)), day))
    else:
        day = (min if column.take == "first" else max)(event.day for event in found)
    return [event for event in found if event.day == day]


def _name(case: _Case, name: str, column: NamedOutcome, faults: Counter[str]) -> str:
    events = _taken(case, column)
    names = {found for event in events if (found := _of_codes(event.codes, column.values))}
    if events and not names:
        faults[f"{name}: a record with none of the codes under values"] += 1
    if len(names) > 1:
        faults[f"{name}: records of one day that contradict each other"] += 1
    return names.pop() if len(names) == 1 else ""


def _of_codes(codes: Iterable[str], values: Mapping[str, str]) -> str | None:
    """Return the name of the first code that has one; a key may end with ``*``."""
    for code in codes:
        if code in values:
            return values[code]
        for key, name in values.items():
            if key.endswith("*") and code.startswith(key[:-1]):
                return name
    return None


def _number(case: _Case, name: str, column: ValueOutcome, faults: Counter[str]) -> str:
    numbers = []
    for event in _taken(case, column):
        if event.number is None:
            faults[f"{name}: a record without a number"] += 1
            continue
        times = factor(event.unit, column.unit)
        if times is None:
            # Other text may be anything that somebody typed.
            unit = f"the unit {event.unit}" if is_unit(event.unit) else "another unit" if event.unit else "no unit"
            faults[f"{name}: {unit}, expected one that becomes {column.unit}"] += 1
            continue
        number = event.number * times
        if column.range and not column.range[0] <= number <= column.range[1]:
            faults[f"{name}: a number out of range"] += 1
            continue
        numbers.append(number)
    return f"{median(numbers):.10g}" if numbers else ""
