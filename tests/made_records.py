"""Made patients' records, as an OMOP database and as FHIR resources that say the same."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa

# OMOP concept -> (vocabulary, code, standard)
CONCEPTS = {
    101: ("SNOMED", "254637007", "S"),  # lung cancer
    102: ("SNOMED", "254632001", "S"),  # small cell, below it
    103: ("ICD10CM", "C34.1", None),  # mapped to 101
    110: ("SNOMED", "94381002", "S"),  # metastasis
    120: ("LOINC", "21905-5", "S"),  # stage, as a measurement
    121: ("SNOMED", "13104003", "S"),  # stage I
    122: ("SNOMED", "60333009", "S"),  # stage II
    130: ("LOINC", "2039-6", "S"),  # CEA
    140: ("SNOMED", "367336001", "S"),  # chemotherapy
    9001: ("UCUM", "ng/mL", "S"),
    9002: ("UCUM", "ug/L", "S"),
    0: ("None", "No matching concept", None),
}
_MAPPED, _ANCESTORS = [(103, 101)], [(101, 101), (101, 102), (110, 110)]
_CODES = {name: number for number, (_, name, _) in CONCEPTS.items()}
_SYSTEMS = {
    "SNOMED": "http://snomed.info/sct",
    "LOINC": "http://loinc.org",
    "ICD10CM": "http://hl7.org/fhir/sid/icd-10-cm",
}
COHORT = """
schema: 1
name: lung
{source}
crosswalk: {{file: crosswalk.csv, person: mrn, patient: PatientID}}
follow_up: last_visit
concepts:
  lung_cancer: {{domain: condition, codes: ["SNOMED:254637007"]}}
  metastasis: {{domain: condition, codes: ["SNOMED:94381002"]}}
  chemotherapy: {{domain: procedure, codes: ["SNOMED:367336001"]}}
  stage: {{domain: measurement, codes: ["LOINC:21905-5"]}}
  cea: {{domain: measurement, codes: ["LOINC:2039-6"]}}
index: {{concept: lung_cancer}}
age: [18, 120]
exclude:
  - {{concept: chemotherapy, within: [-365, -1]}}
targets:
  survival: {{kind: survival, unit: days}}
  progression: {{kind: survival, event: metastasis, or_death: true, unit: months}}
  findings: {{kind: labels, findings: {{metastasis: metastasis}}, within: [0, 90]}}
  cea: {{kind: value, concept: cea, unit: ng/mL, within: [-60, 60], range: [0, 1000]}}
covariates:
  age: {{kind: age}}
  sex: {{kind: sex}}
  stage: {{kind: grade, concept: stage, values: {{"SNOMED:13104003": I, "SNOMED:60333009": II}}}}
"""


@dataclass
class Patient:
    """A made patient.

    Attributes:
        number: OMOP's person_id.
        mrn: by which the crosswalk names the patient.
        born: date of birth.
        sex: "female" or "male".
        died: date of death.
        visits: first and last day of each.
        events: (domain, code, day, number, unit, value's code).
    """

    number: int
    mrn: str
    born: date
    sex: str
    died: date | None = None
    visits: list[tuple[date, date]] = field(default_factory=list)
    events: list[tuple[str, str, date, float | None, str, str]] = field(default_factory=list)


def make_patients(count: int, seed: int = 0) -> list[Patient]:
    """Return made patients; a tenth has no cancer."""
    draw = random.Random(seed)
    patients = []
    for number in range(1, count + 1):
        index = date(2015, 1, 1) + timedelta(days=draw.randrange(1500))
        born = date(draw.randrange(1920, 2004), draw.randrange(1, 13), draw.randrange(1, 28))
        patient = Patient(number, f"MRN{number:06d}", born, draw.choice(["female", "male"]))
        end = index + timedelta(days=draw.randrange(1, 2000))
        patient.visits = [(index - timedelta(days=draw.randrange(400)), index), (end, end)]
        if draw.random() < 0.4:
            patient.died = end + timedelta(days=draw.randrange(200))
        events = patient.events
        if draw.random() < 0.9:
            code = draw.choice(["254637007", "254632001"])
            events.append(("condition", code, index, None, "", ""))
            events.append(("condition", code, index + timedelta(days=30), None, "", ""))
        if draw.random() < 0.3:
            events.append(("condition", "94381002", index + timedelta(days=draw.randrange(400)), None, "", ""))
        if draw.random() < 0.1:
            events.append(("procedure", "367336001", index - timedelta(days=draw.randrange(1, 400)), None, "", ""))
        for _ in range(draw.randrange(3)):
            day = index + timedelta(days=draw.randrange(-90, 90))
            events.append(
                ("measurement", "2039-6", day, draw.randrange(1, 80) / 4, draw.choice(["ng/mL", "ug/L", "U"]), "")
            )
        if draw.random() < 0.7:
            day = index + timedelta(days=draw.randrange(-20, 20))
            events.append(("measurement", "21905-5", day, None, "", draw.choice(["13104003", "60333009"])))
        patients.append(patient)
    return patients


def write_crosswalk(patients: Sequence[Patient], file: Path) -> None:
    """Write which person is which patient of the images; every eleventh has none."""
    rows = [f"{patient.mrn},PAT-{patient.number}" for patient in patients if patient.number % 11]
    file.write_text("\n".join(["mrn,PatientID", *rows]) + "\n")


# --- OMOP

_TABLES: dict[str, dict[str, Any]] = {
    "person": {
        "person_id": sa.BigInteger, "person_source_value": sa.String, "gender_concept_id": sa.Integer,
        "year_of_birth": sa.Integer, "month_of_birth": sa.Integer, "day_of_birth": sa.Integer,
    },
    "death": {"person_id": sa.BigInteger, "death_date": sa.Date},
    "visit_occurrence": {"person_id": sa.BigInteger, "visit_start_date": sa.Date, "visit_end_date": sa.Date},
    "observation_period": {
        "person_id": sa.BigInteger, "observation_period_start_date": sa.Date, "observation_period_end_date": sa.Date,
    },
    "condition_occurrence": {
        "person_id": sa.BigInteger, "condition_concept_id": sa.Integer, "condition_start_date": sa.Date,
    },
    "procedure_occurrence": {"person_id": sa.BigInteger, "procedure_concept_id": sa.Integer, "procedure_date": sa.Date},
    "measurement": {
        "person_id": sa.BigInteger, "measurement_concept_id": sa.Integer, "measurement_date": sa.Date,
        "value_as_number": sa.Float, "unit_concept_id": sa.Integer, "unit_source_value": sa.String,
        "value_as_concept_id": sa.Integer, "operator_concept_id": sa.Integer,
    },
    "concept": {
        "concept_id": sa.Integer, "vocabulary_id": sa.String, "concept_code": sa.String, "standard_concept": sa.String,
    },
    "concept_relationship": {
        "concept_id_1": sa.Integer, "concept_id_2": sa.Integer, "relationship_id": sa.String,
        "invalid_reason": sa.String,
    },
    "concept_ancestor": {"ancestor_concept_id": sa.Integer, "descendant_concept_id": sa.Integer},
}  # fmt: skip


def fill_omop(url: sa.URL | str, patients: Sequence[Patient], schema: str | None = None) -> None:
    """Write patients into the tables of an OMOP database, which are created."""
    engine = sa.create_engine(url)
    meta = sa.MetaData(schema=schema)
    tables = {
        name: sa.Table(name, meta, *(sa.Column(column, kind) for column, kind in columns.items()))
        for name, columns in _TABLES.items()
    }
    for name in ("condition_occurrence", "procedure_occurrence", "measurement"):
        sa.Index(f"of_{name}", tables[name].c[next(c for c in _TABLES[name] if c.endswith("concept_id"))])
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in _TABLES}
    for number, (vocabulary, code, standard) in CONCEPTS.items():
        rows["concept"].append(_row("concept", number, vocabulary, code, standard))
    rows["concept_relationship"] = [_row("concept_relationship", *pair, "Maps to", None) for pair in _MAPPED]
    rows["concept_ancestor"] = [_row("concept_ancestor", *pair) for pair in _ANCESTORS]
    for patient in patients:
        born, sex = patient.born, {"female": 8532, "male": 8507}[patient.sex]
        rows["person"].append(_row("person", patient.number, patient.mrn, sex, born.year, born.month, born.day))
        if patient.died:
            rows["death"].append(_row("death", patient.number, patient.died))
        rows["visit_occurrence"] += [_row("visit_occurrence", patient.number, *visit) for visit in patient.visits]
        whole = min(v[0] for v in patient.visits), max(v[1] for v in patient.visits)
        rows["observation_period"].append(_row("observation_period", patient.number, *whole))
        for domain, code, day, amount, unit, value in patient.events:
            table = {"condition": "condition_occurrence", "procedure": "procedure_occurrence"}.get(domain, domain)
            more = (amount, _CODES.get(unit, 0), unit, _CODES.get(value, 0), None) if table == "measurement" else ()
            rows[table].append(_row(table, patient.number, _CODES[code], day, *more))
    with engine.begin() as connection:
        if schema:
            connection.execute(sa.text(f'CREATE SCHEMA "{schema}"'))
        meta.create_all(connection)
        for name, found in rows.items():
            if found and engine.dialect.name == "postgresql":
                _copied(connection, tables[name], found)
            elif found:
                connection.execute(tables[name].insert(), found)
        if engine.dialect.name == "postgresql":
            connection.execute(sa.text("ANALYZE"))
    engine.dispose()


def _copied(connection: sa.Connection, table: sa.Table, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows by COPY, as loaders do."""
    name = f'"{table.schema}"."{table.name}"' if table.schema else f'"{table.name}"'
    driver: Any = connection.connection
    with driver.cursor() as cursor, cursor.copy(f"COPY {name} FROM STDIN") as copy:
        for row in rows:
            copy.write_row(tuple(row.values()))


def _row(table: str, *values: Any) -> dict[str, Any]:
    return dict(zip(_TABLES[table], values, strict=True))


# --- FHIR


def write_fhir(patients: Sequence[Patient], folder: Path) -> None:
    """Write patients as FHIR resources: half as a bundle, half as a bulk export."""
    folder.mkdir(parents=True)
    half = len(patients) // 2
    entries = [
        {"fullUrl": f"urn:uuid:{resource['id']}", "resource": resource}
        for patient in patients[:half]
        for resource in _resources(patient, "urn:uuid:")
    ]
    bundle = {"resourceType": "Bundle", "type": "collection", "entry": entries}
    (folder / "bundle.json").write_text(json.dumps(bundle))
    with (folder / "export.ndjson").open("w") as stream:
        for patient in patients[half:]:
            for resource in _resources(patient, "Patient/"):
                stream.write(json.dumps(resource) + "\n")


def write_hierarchy(file: Path) -> None:
    """Write which codes are below which."""
    rows = [f"{_full(a)},{_full(b)}" for a, b in _ANCESTORS]
    file.write_text("\n".join(["ancestor,descendant", *rows]) + "\n")


def _full(number: int) -> str:
    return ":".join(CONCEPTS[number][:2])


def _coded(code: str) -> dict[str, Any]:
    vocabulary = CONCEPTS[_CODES[code]][0]
    return {
        "coding": [{"system": "http://example.org/own", "code": "x"}, {"system": _SYSTEMS[vocabulary], "code": code}]
    }


def _resources(patient: Patient, reference: str) -> Iterator[dict[str, Any]]:
    own = f"p-{patient.number}"
    subject = {"reference": reference + own}
    person: dict[str, Any] = {
        "resourceType": "Patient",
        "id": own,
        "identifier": [{"system": "http://example.org/mrn", "value": patient.mrn}],
        "name": [{"family": "Planted", "given": ["Patient"]}],
        "gender": patient.sex,
        "birthDate": patient.born.isoformat(),
    }
    if patient.died:
        person["deceasedDateTime"] = f"{patient.died}T23:30:00-05:00"
    number = 0
    for start, end in patient.visits:
        number += 1
        period = {"start": f"{start}T08:00:00+01:00", "end": f"{end}T09:00:00+01:00"}
        yield {
            "resourceType": "Encounter",
            "id": f"{own}-v{number}",
            "status": "finished",
            "subject": subject,
            "period": period,
        }
    for domain, code, day, value, unit, coded in patient.events:
        number += 1
        found: dict[str, Any] = {"id": f"{own}-e{number}", "subject": subject, "code": _coded(code)}
        if domain == "condition":
            found |= {"resourceType": "Condition", "onsetDateTime": day.isoformat()}
        elif domain == "procedure":
            found |= {"resourceType": "Procedure", "status": "completed", "performedPeriod": {"start": day.isoformat()}}
        else:
            found |= {"resourceType": "Observation", "status": "final", "effectiveDateTime": f"{day}T00:15:00Z"}
            if value is not None:
                found["valueQuantity"] = {"value": value, "code": unit, "system": "http://unitsofmeasure.org"}
            if coded:
                found["valueCodeableConcept"] = _coded(coded)
        yield found
    yield person  # after what refers to it
