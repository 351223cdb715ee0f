"""Records of a database with OMOP's common data model.

Source: OMOP CDM 5.4, ohdsi.github.io/CommonDataModel. Any database of SQLAlchemy will do; PostgreSQL and SQLite are
tested. Everything is read in one transaction that cannot write.
"""

from __future__ import annotations

import hashlib
import math
import os
import stat
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, OperationalError, ProgrammingError, SQLAlchemyError

from oncofed.errors import DataError, SpecError
from oncofed.records.model import Doing, Event, Period, Person, Records, covered, nothing_said
from oncofed.records.spec import CohortSpec, ConceptSet, NamedOutcome, OmopSource, ValueOutcome

_ROWS_AT_ONCE = 20_000
# OMOP's concepts of table person.
_SEX = {8507: "male", 8532: "female", 8521: "other"}
# OMOP's concept of "=", and where there is no operator. Less than 20 is no number.
_EQUAL = {4172703, 0, None}
_MIDDLE_OF_A_YEAR, _MIDDLE_OF_A_MONTH = 7, 15


@dataclass(frozen=True)
class _Table:
    """Where a domain's records stand."""

    name: str
    concept: str
    day: str
    has_values: bool = False
    operator: str = ""


_TABLES = {
    "condition": _Table("condition_occurrence", "condition_concept_id", "condition_start_date"),
    "procedure": _Table("procedure_occurrence", "procedure_concept_id", "procedure_date"),
    "drug": _Table("drug_exposure", "drug_concept_id", "drug_exposure_start_date"),
    "measurement": _Table("measurement", "measurement_concept_id", "measurement_date", True, "operator_concept_id"),
    "observation": _Table("observation", "observation_concept_id", "observation_date", has_values=True),
}


class OmopDatabase:
    """An OMOP database.

    Args:
        source: its settings.
        doing: called as work goes on.
    """

    def __init__(self, source: OmopSource, doing: Doing = nothing_said) -> None:
        self._source = source
        self._doing = doing

    def read(self, spec: CohortSpec) -> Records:
        """Return the records that a cohort asks for.

        Raises:
            DataError: the database cannot be read, or knows none of a concept set's codes.
            SpecError: its address is none.
        """
        engine = self._engine()
        try:
            with engine.connect() as connection, connection.begin():
                if engine.dialect.name == "postgresql":
                    # One state of the data, whatever is loaded meanwhile.
                    connection.execute(sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
                return _Reading(connection, self._source, spec, self._doing).records()
        except (ProgrammingError, OperationalError) as error:
            if lacks := _lacking(engine, self._source, spec):
                raise DataError(lacks) from None
            raise _unanswered(error) from None
        except SQLAlchemyError as error:
            raise _unanswered(error) from None
        except ModuleNotFoundError as error:
            raise DataError(
                f"the OMOP database: its driver {error.name} is not installed. pip install 'oncofed[hospital]' brings "
                "that of PostgreSQL; others come from their makers"
            ) from None
        finally:
            engine.dispose()

    def _engine(self) -> sa.Engine:
        try:
            return sa.create_engine(_url(self._source))
        except ModuleNotFoundError as error:
            raise DataError(
                f"the OMOP database: its driver {error.name} is not installed. pip install 'oncofed[hospital]' brings "
                "that of PostgreSQL (postgresql+psycopg://…)"
            ) from None
        except ArgumentError:
            raise SpecError(
                "the OMOP database: its address cannot be read, expected one such as "
                "postgresql+psycopg://reader@host/cdm or sqlite:////data/cdm.db"
            ) from None


def _url(source: OmopSource) -> sa.URL:
    """Return the database's address.

    Raises:
        SpecError: it is nowhere, others may read the file that holds it, or it names an SQLite file that is not there.
    """
    if source.url_env:
        text = os.environ.get(source.url_env, "")
        if not text:
            raise SpecError(f"omop.url_env: found nothing in the environment variable {source.url_env}")
    elif source.url_file:
        text = _private_text(source.url_file)
    else:
        text = source.url
    url = sa.make_url(text.strip())
    file = url.database or ""
    if url.get_backend_name() == "sqlite" and not file.startswith("file:") and not Path(file).is_file():
        # SQLite would make an empty database of it.
        raise SpecError(
            "the OMOP database: found no file where its address says, expected an SQLite database. Correct the path "
            "after sqlite:///, which is from the folder that the command runs in"
        )
    return url


def _unanswered(error: SQLAlchemyError) -> DataError:
    """Return what a database that does not answer means."""
    # The library's text holds the address and the statement, the database's own may hold values.
    kind = type(getattr(error, "orig", None) or error).__name__
    return DataError(
        f"the OMOP database: found no answer ({kind}), expected its tables of CDM 5.4. See that it runs, and that its "
        "address and password are right; nothing was written, so run the command again"
    )


def _lacking(engine: sa.Engine, source: OmopSource, spec: CohortSpec) -> str:
    """Return which tables of a database are not there, and where such are; empty: all are, or it is away.

    Args:
        engine: of the database.
        source: its settings.
        spec: the cohort's.
    """
    visits = "observation_period" if spec.follow_up == "observation_period" else "visit_occurrence"
    domains = {_TABLES[concept.domain].name for concept in spec.used_concepts.values()}
    clinical, own = ("person", "death", visits, *sorted(domains)), source.cdm or None
    of_vocabulary = own if source.vocabulary is None else source.vocabulary or None
    wanted = [("cdm", own, name) for name in clinical]
    wanted += [("vocabulary", of_vocabulary, name) for name in ("concept", "concept_relationship", "concept_ancestor")]
    try:
        found = sa.inspect(engine)
        schemas = found.get_schema_names()
        missing = [one for one in wanted if not found.has_table(one[2], one[1])]
        if not missing:
            return ""
        setting, schema, name = missing[0]
        there = [one for one in schemas if found.has_table(name, one)]
        default = found.default_schema_name
    except SQLAlchemyError:
        return ""
    where = f"its schema {schema}" if schema else f"its own schema{f' ({default})' if default else ''}"
    names = ", ".join(table for _, of, table in missing if of == schema)
    optional = "without it the database's own schema is read" if setting == "cdm" else "without it that of cdm"
    advice = f"{name} is in {', '.join(there)}" if there else "no schema that this user may see has it"
    return (
        f"the OMOP database: found no table {names} in {where}, expected the tables of CDM 5.4. omop.{setting} names "
        f"their schema ({optional}): {advice}"
    )


def _private_text(file: Path) -> str:
    try:
        if stat.S_IMODE(file.stat().st_mode) & 0o077:
            raise SpecError(f"{file}: others than its owner may read it, and it may hold a password. chmod 600 {file}")
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{file}: cannot be read ({type(error).__name__}), expected the database's address") from None


class _Reading:
    """One reading of a database.

    Args:
        connection: in a transaction.
        source: the database's settings.
        spec: the cohort's.
        doing: called as work goes on.
    """

    def __init__(self, connection: sa.Connection, source: OmopSource, spec: CohortSpec, doing: Doing) -> None:
        self._connection = connection
        self._source = source
        self._spec = spec
        self._doing = doing
        self._queries: list[tuple[str, str]] = []
        self._faults: dict[str, int] = defaultdict(int)
        self._today = date.today()

    def records(self) -> Records:
        """Return all that the cohort asks for."""
        concepts = self._spec.used_concepts
        parts = 2 * len(concepts) + 1
        notes: list[str] = []
        for number, (name, concept) in enumerate(concepts.items()):
            self._doing(f"the codes of {name}", number, parts)
            self._require_known(name, concept)
            notes += self._left_out(name, concept)
        events = {}
        for number, (name, concept) in enumerate(concepts.items(), len(concepts)):
            self._doing(f"records of {name}", number, parts)
            events[name] = self._events(name, concept)
            if not events[name]:
                notes.append(f"concepts.{name}: nobody with the index event has a record with one of its codes")
        self._doing("persons", parts - 1, parts)
        persons = self._persons()
        records = Records(persons, events, self._queries, dict(self._faults), notes, shared=self._shared())
        if self._faults["a date that is none"]:
            records.notes.append("records with a date that is none were left out")
        return records

    # --- tables

    def _clinical(self, name: str, *columns: str) -> Any:
        return sa.table(name, *map(sa.column, columns), schema=self._source.cdm or None)

    def _vocabulary(self, name: str, *columns: str) -> Any:
        schema = self._source.cdm if self._source.vocabulary is None else self._source.vocabulary
        return sa.table(name, *map(sa.column, columns), schema=schema or None)

    def _concept(self) -> Any:
        return self._vocabulary("concept", "concept_id", "vocabulary_id", "concept_code", "standard_concept")

    # --- concept sets

    def _require_known(self, name: str, concept: ConceptSet) -> None:
        """Refuse a set with a code that the vocabulary does not have.

        Raises:
            DataError: so it is.
        """
        for code in (*concept.codes, *concept.without):
            table = self._concept()
            count = sa.select(sa.func.count()).select_from(table).where(_has_code(table, code))
            if not self._one(count):
                raise DataError(
                    f"concepts.{name}: the database's vocabulary does not have {code}. Correct the code, or load its "
                    "vocabulary (athena.ohdsi.org)"
                )

    def _left_out(self, name: str, concept: ConceptSet) -> Iterator[str]:
        """Yield what a set's ``without`` does not do.

        Raises:
            DataError: it leaves nothing of the set.
        """
        if not concept.without:
            return
        whole = self._with_descendants(concept.codes, concept.descendants).subquery()
        if not self._one(sa.select(sa.func.count()).select_from(self._identifiers(concept).subquery())):
            raise DataError(
                f"concepts.{name}: without leaves out all of its codes ({', '.join(concept.codes)}) and what is below "
                f"them, expected some to stay. Take {', '.join(concept.without)} out of without, or choose codes below "
                "the set's"
            )
        for code in concept.without:
            out = self._with_descendants((code,), descendants=True).subquery()
            both = sa.select(sa.func.count()).where(whole.c.concept_id.in_(sa.select(out.c.concept_id)))
            if not self._one(both):
                yield f"concepts.{name}: without {code} leaves nothing out: it is not below the set's codes"

    def _identifiers(self, concept: ConceptSet) -> Any:
        """Return a selection of the concepts of a set."""
        found = self._with_descendants(concept.codes, concept.descendants)
        if not concept.without:
            return found
        inner = found.subquery()
        column = inner.c.concept_id
        without = self._with_descendants(concept.without, descendants=True).subquery()
        return sa.select(column).where(column.not_in(sa.select(without.c.concept_id)))

    def _with_descendants(self, codes: Sequence[str], descendants: bool) -> Any:
        table = self._concept()
        named = sa.select(table.c.concept_id).where(sa.or_(*(_has_code(table, code) for code in codes)))
        columns = ("concept_id_1", "concept_id_2", "relationship_id", "invalid_reason")
        relation = self._vocabulary("concept_relationship", *columns)
        # Clinical tables hold standard concepts; those of ICD, say, are mapped to them. Loaders write NULL as "", too.
        is_valid = sa.func.coalesce(relation.c.invalid_reason, "") == ""
        mapped = sa.select(relation.c.concept_id_2.label("concept_id")).where(
            relation.c.relationship_id == "Maps to", is_valid, relation.c.concept_id_1.in_(named)
        )
        both = sa.union(named, mapped)
        if not descendants:
            return both
        ancestor = self._vocabulary("concept_ancestor", "ancestor_concept_id", "descendant_concept_id")
        start = both.subquery()
        below = sa.select(ancestor.c.descendant_concept_id.label("concept_id")).where(
            ancestor.c.ancestor_concept_id.in_(sa.select(start.c.concept_id))
        )
        return sa.union(sa.select(start.c.concept_id), below)

    # --- records

    def _members(self) -> Any:
        """Return a selection of the persons with an index event."""
        concept = self._spec.concepts[self._spec.index.concept]
        at = _TABLES[concept.domain]
        table = self._clinical(at.name, "person_id", at.concept)
        chosen = self._identifiers(concept).subquery()
        return sa.select(table.c.person_id).where(table.c[at.concept].in_(sa.select(chosen.c.concept_id)))

    def _events(self, name: str, concept: ConceptSet) -> dict[str, list[Event]]:
        """Return person -> events of a concept set, in order of their days."""
        at = _TABLES[concept.domain]
        extra = ("value_as_number", "unit_concept_id", "unit_source_value", "value_as_concept_id")
        more = (*(extra if at.has_values else ()), *((at.operator,) if at.operator else ()))
        table = self._clinical(at.name, "person_id", at.concept, at.day, *more)
        chosen = self._identifiers(concept).subquery()
        used = [*self._spec.targets.values(), *self._spec.covariates.values()]
        columns, joined = [table.c.person_id, table.c[at.day]], table
        numbers = at.has_values and any(isinstance(one, ValueOutcome) and one.concept == name for one in used)
        codes = any(isinstance(one, NamedOutcome) and one.concept == name for one in used)
        if numbers:
            unit = self._concept().alias("unit")
            is_unit = sa.and_(unit.c.concept_id == table.c.unit_concept_id, unit.c.vocabulary_id == "UCUM")
            joined = joined.outerjoin(unit, is_unit)
            columns += [table.c.value_as_number, sa.func.coalesce(unit.c.concept_code, table.c.unit_source_value)]
            columns.append(table.c[at.operator] if at.operator else sa.null())
        if codes and at.has_values:
            value = self._concept().alias("value")
            joined = joined.outerjoin(value, value.c.concept_id == table.c.value_as_concept_id)
            columns += [value.c.vocabulary_id, value.c.concept_code]
        if codes:
            own = self._concept().alias("own")
            joined = joined.outerjoin(own, own.c.concept_id == table.c[at.concept])
            columns += [own.c.vocabulary_id, own.c.concept_code]
        query = (
            sa.select(*columns)
            .select_from(joined)
            .where(
                table.c[at.concept].in_(sa.select(chosen.c.concept_id)),
                table.c.person_id.in_(self._members()),
            )
        )
        events: defaultdict[Any, list[Event]] = defaultdict(list)
        # Where the codes begin: of the value first, of the event then, vocabulary and code each.
        begin = 5 if numbers else 2
        for row in self._rows(query):
            found = self._day(row[1])
            if found is None:
                continue
            if found > self._today:
                self._faults["a date after today"] += 1
                continue
            number = _number(row[2]) if numbers and row[4] in _EQUAL else None
            pairs = zip(row[begin::2], row[begin + 1 :: 2], strict=True) if codes else ()
            told = tuple(f"{vocabulary}:{code}" for vocabulary, code in pairs if code and vocabulary != "None")
            events[row[0]].append(Event(found, number, (row[3] or "") if numbers else "", told))
        for own in events.values():
            own.sort(key=_by_day)
        return {str(person): own for person, own in events.items()}

    def _persons(self) -> dict[str, Person]:
        names = ("person_id", "person_source_value", "gender_concept_id")
        born = ("year_of_birth", "month_of_birth", "day_of_birth")
        table = self._clinical("person", *names, *born)
        death = self._clinical("death", "person_id", "death_date")
        dead = (
            sa.select(death.c.person_id.label("person_id"), sa.func.min(death.c.death_date).label("day"))
            .group_by(death.c.person_id)
            .subquery()
        )
        query = (
            sa.select(*(table.c[name] for name in (*names, *born)), dead.c.person_id, dead.c.day)
            .select_from(table.outerjoin(dead, dead.c.person_id == table.c.person_id))
            .where(table.c.person_id.in_(self._members()))
        )
        observed = self._observed()
        persons = {}
        for identifier, source, sex, year, month, day, died, when in self._rows(query):
            key = source if self._source.person == "person_source_value" else identifier
            on = self._day(when) if when is not None else None
            if on and on > self._today:
                self._faults["a date after today"] += 1
                on = None
            persons[str(identifier)] = Person(
                "" if key is None else str(key),
                _born(year, month, day),
                _SEX.get(sex, ""),
                on,
                died is not None and on is None,
                tuple(observed.get(str(identifier), ())),
            )
        return persons

    def _shared(self) -> frozenset[str]:
        """Return identifiers of members that other persons of the table have, too, with an index event or without."""
        if self._source.person == "person_id":
            return frozenset()
        table = self._clinical("person", "person_id", "person_source_value")
        own = sa.select(table.c.person_source_value).where(table.c.person_id.in_(self._members()))
        key = table.c.person_source_value
        query = sa.select(key).where(key.in_(own)).group_by(key).having(sa.func.count() > 1)
        return frozenset(str(key) for (key,) in self._rows(query))

    def _observed(self) -> dict[str, list[Period]]:
        """Return person -> periods that records cover, up to today; of visits from the first one to the last."""
        of_visits = self._spec.follow_up != "observation_period"
        if self._spec.follow_up == "observation_period":
            first, last = "observation_period_start_date", "observation_period_end_date"
            table = self._clinical("observation_period", "person_id", first, last)
            end = table.c[last]
        else:
            first, last = "visit_start_date", "visit_end_date"
            table = self._clinical("visit_occurrence", "person_id", first, last)
            end = sa.func.coalesce(table.c[last], table.c[first])
        query = sa.select(table.c.person_id, table.c[first], end)
        periods: dict[str, list[Period]] = defaultdict(list)
        for person, begin, stop in self._rows(query.where(table.c.person_id.in_(self._members()))):
            # A visit that is planned begins after today.
            period = covered(self._day(begin), self._day(stop), self._today)
            own = periods[str(person)]
            if period and of_visits and own:
                own[0] = min(own[0][0], period[0]), max(own[0][1], period[1])
            elif period:
                own.append(period)
        return periods

    # --- queries

    def _rows(self, query: Any) -> Iterator[Any]:
        """Yield a query's rows; the query is noted."""
        self._note(query)
        result = self._connection.execute(query, execution_options={"yield_per": _ROWS_AT_ONCE})
        yield from result

    def _one(self, query: Any) -> Any:
        self._note(query)
        return self._connection.execute(query).scalar_one()

    def _note(self, query: Any) -> None:
        # Codes are its only values.
        text = str(query.compile(self._connection.engine, compile_kwargs={"literal_binds": True}))
        self._queries.append((text, hashlib.sha256(text.encode()).hexdigest()))

    def _day(self, value: Any) -> date | None:
        """Return a day as databases give it; None where it is none."""
        if type(value) is date:
            return value
        if isinstance(value, datetime):
            return value.date()
        try:
            return date.fromisoformat(str(value)[:10])
        except ValueError:
            self._faults["a date that is none"] += 1
            return None


def _has_code(table: Any, code: str) -> Any:
    vocabulary, _, own = code.partition(":")
    column = table.c.concept_code
    is_code = column.startswith(own[:-1], autoescape=True) if own.endswith("*") else column == own
    return sa.and_(table.c.vocabulary_id == vocabulary, is_code)


def _by_day(event: Event) -> date:
    return event.day


def _number(value: Any) -> float | None:
    """Return a number as databases give it; None for a text that is none, which no message may hold."""
    try:
        found = None if value is None else float(value)
    except (ValueError, TypeError, OverflowError):
        return None
    return found if found is not None and math.isfinite(found) else None


def _born(year: int | None, month: int | None, day: int | None) -> date | None:
    if year is None:
        return None
    try:
        if month is None:
            return date(year, _MIDDLE_OF_A_YEAR, 1)
        return date(year, month, day or _MIDDLE_OF_A_MONTH)
    except ValueError:
        return None
