"""FHIR files as hospitals export them: versions, plans, references, and what is of no expected form."""

from __future__ import annotations

import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

from oncofed.errors import DataError
from oncofed.records import CohortSpec, open_source
from oncofed.records.model import Records

_MRN = "http://example.org/mrn"
_SYSTEMS = {"c": "http://snomed.info/sct", "d": "http://www.nlm.nih.gov/research/umls/rxnorm", "m": "http://loinc.org"}
_SPEC = {
    "name": "c",
    "crosswalk": {"file": "crosswalk.csv"},
    "concepts": {
        "cancer": {"domain": "condition", "codes": ["SNOMED:1"]},
        "drug": {"domain": "drug", "codes": ["RxNorm:1"]},
        "lab": {"domain": "measurement", "codes": ["LOINC:1"]},
    },
    "index": {"concept": "cancer"},
    "include": [{"concept": "drug"}],
    "follow_up": "last_visit",
    "targets": {
        "survival": {"kind": "survival"},
        "lab": {"kind": "value", "concept": "lab", "unit": "%", "within": [-9, 0]},
    },
}


def _code(letter: str) -> dict[str, Any]:
    return {"coding": [{"system": _SYSTEMS[letter], "code": "1"}]}


def _patient(own: str = "a", **values: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "id": own, "birthDate": "1950-05-05", **values}


def _cancer(day: str = "2020-02-01", **values: Any) -> dict[str, Any]:
    return {
        "resourceType": "Condition",
        "subject": {"reference": "Patient/a"},
        "code": _code("c"),
        "onsetDateTime": day,
        **values,
    }


def _visit(start: str, end: str, **values: Any) -> dict[str, Any]:
    period = {"start": start, "end": end}
    return {
        "resourceType": "Encounter",
        "status": "finished",
        "subject": {"reference": "Patient/a"},
        "period": period,
        **values,
    }


def _drug(kind: str = "MedicationRequest", **values: Any) -> dict[str, Any]:
    days = dict.fromkeys(("authoredOn", "effectiveDateTime", "whenHandedOver"), "2020-03-01")
    return {"resourceType": kind, "subject": {"reference": "Patient/a"}, **days, **values}


def _read(folder: Path, *resources: Any, bundle: dict[str, Any] | None = None) -> Records:
    (folder / "fhir").mkdir()
    (folder / "fhir" / "a.ndjson").write_text("\n".join(map(json.dumps, resources)))
    if bundle:
        (folder / "fhir" / "b.json").write_text(json.dumps({"resourceType": "Bundle", **bundle}))
    spec = CohortSpec.model_validate({**_SPEC, "fhir": {"folder": folder / "fhir", "person": _MRN}})
    return open_source(spec).read(spec)


_SEEN = _visit("2020-01-01", "2021-01-01")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, {}),
        ({"meta": {"versionId": "9"}}, {"meta": {"versionId": "10"}}),
        (
            {"meta": {"lastUpdated": "2026-01-01T00:30:00+01:00"}},
            {"meta": {"lastUpdated": "2026-01-01T00:00:00Z", "versionId": "1"}},
        ),
    ],
)
def test_of_two_versions_the_newer_counts(tmp_path: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    read = [_patient(**old), _patient(deceasedDateTime="2020-12-01", **new)]
    records = _read(tmp_path, *(reversed(read) if new else read), _SEEN, _cancer())
    assert records.persons["a"].died == date(2020, 12, 1)


def test_what_a_history_deletes_is_gone(tmp_path: Path) -> None:
    gone = {"request": {"method": "DELETE", "url": "Condition/c1"}}
    there = {"fullUrl": "http://h/fhir/Condition/c1", "resource": _cancer("2019-01-01", id="c1")}
    bundle = {"type": "history", "entry": [gone, None, there]}
    records = _read(tmp_path, _patient(), _SEEN, _cancer(), bundle=bundle)
    assert [event.day for event in records.events["cancer"]["a"]] == [date(2020, 2, 1)]


def test_what_is_planned_does_not_extend_follow_up(tmp_path: Path) -> None:
    day = str(date.today() + timedelta(days=30))
    states = [_visit("2022-01-01", "2022-01-01", status=status) for status in ("planned", "cancelled", "unknown")]
    records = _read(tmp_path, _patient(), _SEEN, _cancer(), _cancer(day), _visit(day, day), *states)
    assert records.persons["a"].observed == ((date(2020, 1, 1), date(2021, 1, 1)),)
    assert len(records.events["cancer"]["a"]) == 1
    assert records.faults == {"Condition: a date after today": 1}


def test_a_visit_that_goes_on_ends_today(tmp_path: Path) -> None:
    records = _read(tmp_path, _patient(), _visit("2020-01-01", "2099-12-31"), _cancer())
    assert records.persons["a"].observed == ((date(2020, 1, 1), date.today()),)


@pytest.mark.parametrize(
    "values",
    [
        {"doNotPerform": True},
        {"intent": "proposal"},
        {"intent": "plan"},
        {"status": "draft"},
        {"kind": "MedicationStatement", "status": "not-taken"},
        {"kind": "MedicationStatement", "status": "intended"},
        {"kind": "MedicationDispense", "status": "declined"},
        {"kind": "MedicationDispense", "status": "preparation"},
    ],
)
def test_what_was_not_given_is_left_out(tmp_path: Path, values: dict[str, Any]) -> None:
    drug = _drug(**values, medicationCodeableConcept=_code("d"))
    records = _read(tmp_path, _patient(), _SEEN, _cancer(), drug)
    assert not records.events["drug"]


def test_a_medication_in_another_resource_is_found(tmp_path: Path) -> None:
    inside = _drug(
        contained=[{"resourceType": "Medication", "id": "m", "code": _code("d")}],
        medicationReference={"reference": "#m"},
    )
    near, far = (_drug(medicationReference={"reference": f"Medication/{own}"}) for own in ("m1", "m2"))
    medicine = {"resourceType": "Medication", "id": "m1", "code": _code("d")}
    records = _read(tmp_path, _patient(), _SEEN, _cancer(), inside, near, far, medicine)
    assert len(records.events["drug"]["a"]) == 2
    assert records.faults == {"MedicationRequest: a medication that is not in the files": 1}


@pytest.mark.parametrize(
    "subject",
    [{"reference": "Group/a"}, {"reference": "#a"}, {"reference": "Patient?identifier=s|a"}, "Patient/a", None],
)
def test_a_subject_that_is_no_patient_is_counted(tmp_path: Path, subject: Any) -> None:
    records = _read(tmp_path, _patient(), _SEEN, _cancer(), _cancer("2019-01-01", subject=subject))
    assert len(records.events["cancer"]["a"]) == 1
    assert records.faults == {"Condition: a subject that is no Patient of the files": 1}


@pytest.mark.parametrize("by", ["replaced-by", "replaces"])
def test_a_replaced_patient_is_the_one_in_its_place(tmp_path: Path, by: str) -> None:
    link = [{"type": by, "other": {"reference": "Patient/b" if by == "replaced-by" else "Patient/a"}}]
    old, new = _patient("a", deceasedDateTime="2020-12-01"), _patient("b")
    (old if by == "replaced-by" else new)["link"] = link
    records = _read(tmp_path, old, new, _SEEN, _cancer())
    assert records.events["cancer"].keys() == records.persons.keys() == {"b"}
    assert records.persons["b"].died == date(2020, 12, 1)
    assert records.persons["b"].observed


def test_an_old_identifier_is_taken_only_where_there_is_no_other(tmp_path: Path) -> None:
    old, own = {"system": _MRN, "value": "old", "use": "old"}, {"system": _MRN, "value": "own"}
    records = _read(
        tmp_path,
        *(_patient("a", identifier=[old, own]), _patient("b", identifier=[old])),
        *(_cancer(), _cancer(subject={"reference": "Patient/b"})),
    )
    assert {person.key for person in records.persons.values()} == {"own", "old"}


def test_a_bound_is_no_number(tmp_path: Path) -> None:
    lab = {
        "resourceType": "Observation",
        "subject": {"reference": "Patient/a"},
        "effectiveDateTime": "2020-02-01",
        "code": _code("m"),
    }
    numbers = [{"value": 20, "comparator": "<"}, {"value": "5 Planted"}, {"value": float("nan")}, "5", {"value": 7}]
    records = _read(tmp_path, _patient(), _SEEN, _cancer(), *({**lab, "valueQuantity": one} for one in numbers))
    assert [event.number for event in records.events["lab"]["a"]] == [None, None, None, None, 7.0]


def test_a_concept_set_without_a_record_is_noted(tmp_path: Path) -> None:
    records = _read(tmp_path, _patient(), _SEEN, _cancer(), _drug(medicationCodeableConcept=_code("d")))
    assert "concepts.lab: no record has one of its codes" in records.notes
    assert not [note for note in records.notes if "concepts.drug" in note or "concepts.cancer" in note]


@pytest.mark.parametrize("born", ["1950-13", "0000", "1950-02-30", 1950, {}])
def test_what_is_of_no_expected_form_is_absent(tmp_path: Path, born: Any) -> None:
    odd = [
        _cancer(code={"coding": [None, "x", {"code": "1"}]}),
        _cancer(code={"coding": "x"}),
        _cancer(status=[]),
        _visit("2020-01-01", "2020-01-01", period="2020"),
        _patient("b", identifier="x", link={"type": "replaces"}, meta=[]),
        _drug(medicationReference="x", contained={}),
    ]
    records = _read(tmp_path, _patient(birthDate=born), _SEEN, *odd, bundle={"entry": {"a": 1}})
    assert records.persons["a"].born is None
    assert len(records.events["cancer"]["a"]) == 1


def test_an_index_none_of_whose_codes_occurs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found no record with one of its codes"):
        _read(tmp_path, _patient(), _SEEN)
