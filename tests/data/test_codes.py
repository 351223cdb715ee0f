"""Targets and their names find a job's by code first, by name second."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from oncofed.data.codes import is_same
from oncofed.data.targets import DatasetTarget, FollowUp, TargetValue, declared_target, stated_value
from oncofed.errors import DataError
from oncofed.tasks.targets.grade import GradeTarget
from oncofed.tasks.targets.labels import LabelsTarget
from oncofed.tasks.targets.one_class import ClassTarget
from oncofed.tasks.targets.settings import TargetsSpec
from oncofed.tasks.targets.survival import SurvivalTarget
from oncofed.tasks.targets.value import ValueTarget

_ADENO, _SQUAMOUS = "ICDO3:8140/3", "ICDO3:8070/3"
_JOB = ClassTarget(name="histology", classes=("adeno", "squamous"), codes={"adeno": _ADENO, "squamous": _SQUAMOUS})


def _stated(own: dict[str, DatasetTarget], case: dict[str, TargetValue], job: object) -> TargetValue | None:
    declared = declared_target(own, {}, job)  # type: ignore[arg-type]
    assert declared
    return stated_value(declared, case, None, {}, job)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("SNOMED:10200004", "SCT:10200004", True),
        ("SRT:T-62000", "SCT:10200004", True),
        ("LOINC:2039-6", "LN:2039-6", True),
        ("ICD-O-3:8140/3", "ICDO3:8140/3", True),
        ("SCT:64033007+SCT:7771000", "SCT:64033007", False),
        ("RADLEX:RID5741", "SCT:5741", False),
    ],
)
def test_codes_of_one_meaning_are_the_same(first: str, second: str, same: bool) -> None:
    assert is_same(first, second) is same


def test_classes_find_the_jobs_by_code() -> None:
    own = DatasetTarget(kind="class", names=["A", "SCC"], codes={"A": _ADENO, "SCC": "ICD-O-3:8070/3"})
    assert _stated({"histology": own}, {"histology": "scc"}, _JOB) == "squamous"
    declared = declared_target({"histology": own}, {}, _JOB)
    assert declared
    assert declared.names == ["adeno", "squamous"]
    assert _JOB.encode("squamous", declared) == (1.0,)


def test_names_do_where_there_is_no_code() -> None:
    own = DatasetTarget(kind="class", names=["Adeno", "SCC"], codes={"SCC": _SQUAMOUS})
    assert [_stated({"histology": own}, {"histology": name}, _JOB) for name in ("Adeno", "SCC")] == [
        "Adeno",
        "squamous",
    ]


def test_findings_and_grades_find_the_jobs_by_code() -> None:
    findings = LabelsTarget(name="findings", findings=("edema", "effusion"), codes={"effusion": "SCT:60046008"})
    own = DatasetTarget(kind="labels", names=["Erguss", "Edema"], codes={"Erguss": "SNOMED:60046008"})
    stated = _stated({"findings": own}, {"findings": {"Erguss": True, "Edema": False}}, findings)
    assert stated is not None
    assert findings.encode(stated, own) == (0.0, 1.0)
    grades = GradeTarget(name="grade", grades=("1", "2", "3"), codes={"1": "SCT:54102005", "3": "SCT:1663004"})
    ours = DatasetTarget(kind="grade", names=["G1", "2", "G3"], codes={"G1": "SCT:54102005", "G3": "SCT:1663004"})
    declared = declared_target({"grade": ours}, {}, grades)
    assert declared
    assert grades.encode(_stated({"grade": ours}, {"grade": "G3"}, grades) or "", declared) == (2.0,)


def test_a_target_of_another_name_is_the_jobs_by_code() -> None:
    size = ValueTarget(name="size", unit="mm", range=(0, 200), code="LN:21889-1")
    own = {"tumorgroesse": DatasetTarget(kind="value", unit="cm", code="LOINC:21889-1")}
    declared = declared_target(own, {}, size)
    assert declared
    assert size.encode(_stated(own, {"tumorgroesse": 3.5}, size) or 0, declared) == (35.0,)
    death = SurvivalTarget(name="survival", unit="months", horizon=60, code="SCT:419099009")
    time = {"os": DatasetTarget(kind="survival", unit="days", code="SCT:419099009")}
    assert _stated(time, {"os": FollowUp(time=30, event=True)}, death) == FollowUp(time=30, event=True)


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({"size": DatasetTarget(kind="value", unit="mm", code="LN:1-8")}, "is coded LN:1-8 in the dataset"),
        (
            {
                "size": DatasetTarget(kind="value", unit="mm"),
                "length": DatasetTarget(kind="value", unit="mm", code="LN:21889-1"),
            },
            "target length of the dataset has the code",
        ),
    ],
)
def test_a_name_and_a_code_that_lead_to_two_targets_are_refused(own: dict[str, DatasetTarget], said: str) -> None:
    with pytest.raises(DataError, match=said):
        declared_target(own, {}, ValueTarget(name="size", unit="mm", range=(0, 200), code="LN:21889-1"))


@pytest.mark.parametrize(
    ("codes", "said"),
    [
        ({"adeno": _SQUAMOUS}, "adeno is coded .* in the dataset, and the job's adeno"),
        ({"other": _ADENO}, "or another has it"),
    ],
)
def test_a_name_and_a_code_that_lead_to_two_classes_are_refused(codes: dict[str, str], said: str) -> None:
    own = DatasetTarget(kind="class", names=["adeno", "other"], codes=codes)
    with pytest.raises(DataError, match=said):
        declared_target({"histology": own}, {}, _JOB)


def test_a_mistake_in_codes_is_named() -> None:
    with pytest.raises(ValidationError, match="expected SCHEME:CODE"):
        ClassTarget(name="c", classes=("a", "b"), codes={"a": "lung"})
    with pytest.raises(ValidationError, match="expected one of a, b"):
        ClassTarget(name="c", classes=("a", "b"), codes={"c": "SCT:1"})
    with pytest.raises(ValidationError, match="have one code"):
        ClassTarget(name="c", classes=("a", "b"), codes={"a": "SCT:1", "b": "SNOMED:1"})
    twice = [{"name": name, "kind": "value", "range": [0, 1], "code": "LN:1-8"} for name in ("a", "b")]
    with pytest.raises(ValidationError, match="have one code"):
        TargetsSpec.model_validate({"type": "targets", "targets": twice})


def test_codes_do_not_change_what_a_target_asks() -> None:
    assert _JOB.question == ClassTarget(name="histology", classes=("adeno", "squamous")).question
    assert "codes" not in DatasetTarget(kind="class", names=["a"]).model_dump()
