"""OMOP databases as hospitals fill them: open ends, bounds, mappings that no longer hold."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
import yaml

import made_records as made
from oncofed.records import CohortSpec, open_source
from oncofed.records.model import Records

_TODAY = date.today()


@pytest.fixture
def database(tmp_path: Path) -> str:
    """One person with an index event, seen for two years."""
    person = made.Patient(1, "MRN1", date(1950, 5, 5), "female", visits=[(date(2019, 1, 1), date(2021, 1, 1))])
    person.events = [
        ("condition", "254637007", date(2020, 2, 1), None, "", ""),
        ("measurement", "2039-6", date(2020, 2, 1), 20.0, "ng/mL", ""),
    ]
    url = f"sqlite:///{tmp_path}/cdm.db"
    made.fill_omop(url, [person])
    return url


def _read(url: str, *changes: str, **settings: object) -> Records:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for change in changes:
            connection.execute(sa.text(change))
    engine.dispose()
    values = yaml.safe_load(made.COHORT.format(source=f'omop: {{url: "{url}"}}'))
    spec = CohortSpec.model_validate({**values, **settings})
    return open_source(spec).read(spec)


def test_an_open_observation_period_ends_today(database: str) -> None:
    records = _read(
        database,
        "UPDATE observation_period SET observation_period_end_date = '9999-12-31'",
        "INSERT INTO observation_period VALUES (1, '2022-01-01', '9999-12-31'), (1, '2098-01-01', '2099-01-01')",
        follow_up="observation_period",
    )
    assert records.persons["1"].observed == ((date(2019, 1, 1), _TODAY), (date(2022, 1, 1), _TODAY))


def test_a_visit_event_or_death_after_today_is_left_out(database: str) -> None:
    day = _TODAY + timedelta(days=30)
    records = _read(
        database,
        "INSERT INTO visit_occurrence VALUES (1, '2020-06-01', NULL)",
        f"INSERT INTO visit_occurrence VALUES (1, '{day}', '{day}')",
        f"INSERT INTO condition_occurrence VALUES (1, 101, '{day}')",
        f"INSERT INTO death VALUES (1, '{day}')",
    )
    person = records.persons["1"]
    assert person.observed == ((date(2019, 1, 1), date(2021, 1, 1)),)
    assert (person.died, person.died_undated) == (None, True)
    assert len(records.events["lung_cancer"]["1"]) == 1
    assert records.faults == {"a date after today": 2}


@pytest.mark.parametrize(("operator", "number"), [("NULL", 20.0), ("0", 20.0), ("4172703", 20.0), ("4171756", None)])
def test_a_bound_is_no_number(database: str, operator: str, number: float | None) -> None:
    records = _read(database, f"UPDATE measurement SET operator_concept_id = {operator}")
    assert [event.number for event in records.events["cea"]["1"]] == [number]


@pytest.mark.parametrize("text", ["<5 Planted", "nan", "1e999"])
def test_a_text_in_place_of_a_number_is_none(database: str, text: str) -> None:
    records = _read(database, f"UPDATE measurement SET value_as_number = '{text}'")
    assert [event.number for event in records.events["cea"]["1"]] == [None]


@pytest.mark.parametrize(("reason", "found"), [("NULL", 1), ("''", 1), ("'D'", 0), ("'U'", 0)])
def test_a_mapping_that_no_longer_holds_is_not_followed(database: str, reason: str, found: int) -> None:
    concepts = yaml.safe_load(made.COHORT.format(source=""))["concepts"]
    icd = {"domain": "condition", "codes": ["ICD10CM:C34.1"]}
    change = f"UPDATE concept_relationship SET invalid_reason = {reason}"
    records = _read(database, change, concepts={**concepts, "lung_cancer": icd})
    assert len(records.events["lung_cancer"]) == found
