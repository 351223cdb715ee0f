"""A cohort is selected alike from OMOP and from FHIR, and no date leaves."""

from __future__ import annotations

import csv
import json
import re
import stat
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
import yaml

import made_records as made
from oncofed.audit import AUDIT_FILE
from oncofed.data.target_columns import parse_targets
from oncofed.errors import DataError, SpecError
from oncofed.records import Cohort, CohortSpec, open_source, read_cohort, select_cohort, write_cohort
from oncofed.records.crosswalk import Link, Links, read_crosswalk
from oncofed.records.model import Event, Person, Records
from oncofed.records.omop import OmopDatabase
from postgres import postgres
from synthetic import make_site

_PERSONS = 120
_FHIR = 'fhir: {folder: fhir, person: "http://example.org/mrn", hierarchy: hierarchy.csv}'
_SQLITE = 'omop: {url: "sqlite:///CDM"}'


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospital")
    patients = made.make_patients(_PERSONS)
    made.write_crosswalk(patients, folder / "crosswalk.csv")
    made.write_hierarchy(folder / "hierarchy.csv")
    made.fill_omop(f"sqlite:///{folder}/cdm.db", patients)
    made.write_fhir(patients, folder / "fhir")
    _write(folder, "omop.yaml", _SQLITE)
    _write(folder, "fhir.yaml", _FHIR)
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, object]]:
    with postgres() as found:
        yield found


def _write(folder: Path, name: str, source: str, **changes: object) -> Path:
    values = yaml.safe_load(made.COHORT.format(source=source.replace("CDM", f"{folder}/cdm.db")))
    (folder / name).write_text(yaml.safe_dump({**values, **changes}, sort_keys=False))
    return folder / name


def _selected(file: Path) -> tuple[CohortSpec, Records, Cohort]:
    spec = read_cohort(file)
    records = open_source(spec).read(spec)
    return spec, records, select_cohort(records, spec, read_crosswalk(spec.crosswalk))


def test_fhir_and_omop_give_the_same_patients_and_values(hospital: Path) -> None:
    _, _, omop = _selected(hospital / "omop.yaml")
    _, _, fhir = _selected(hospital / "fhir.yaml")
    assert len(omop.rows) > _PERSONS // 2
    assert omop.rows == fhir.rows
    assert (omop.flow, omop.faults) == (fhir.flow, fhir.faults)


def test_postgresql_gives_the_same_as_sqlite(hospital: Path, tmp_path: Path, server: tuple[str, object]) -> None:
    url, _ = server
    made.fill_omop(url, made.make_patients(_PERSONS), "cdm54")
    (tmp_path / "crosswalk.csv").write_bytes((hospital / "crosswalk.csv").read_bytes())
    (tmp_path / "address").write_text(url)
    (tmp_path / "address").chmod(0o600)
    _, records, found = _selected(_write(tmp_path, "c.yaml", "omop: {url_file: address, cdm: cdm54}"))
    assert found.rows == _selected(hospital / "omop.yaml")[2].rows
    assert all(re.fullmatch("[0-9a-f]{64}", digest) and "SELECT" in text for text, digest in records.queries)
    with pytest.raises(DataError, match=r"no table .*concept.* in its own schema \(public\).* is in cdm54"):
        _selected(_write(tmp_path, "public.yaml", "omop: {url_file: address}"))
    # The same without the password in a file of its own is refused, as is a file that others may read.
    with pytest.raises(SpecError, match="url holds a password"):
        read_cohort(_write(tmp_path, "bad.yaml", f"omop: {{url: '{url}'}}"))
    (tmp_path / "address").chmod(0o644)
    with pytest.raises(SpecError, match="chmod 600"):
        _selected(tmp_path / "c.yaml")


def test_a_database_that_is_gone_is_said_without_its_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMOP_ADDRESS", "postgresql+psycopg://reader:planted-password@127.0.0.1:9/planted")
    (tmp_path / "crosswalk.csv").write_text("mrn,PatientID\n1,1\n")
    with pytest.raises(DataError, match="found no answer") as refused:
        _selected(_write(tmp_path, "c.yaml", "omop: {url_env: OMOP_ADDRESS}"))
    assert "planted" not in str(refused.value)


@pytest.mark.parametrize("name", ["omop", "fhir"])
def test_what_is_written_holds_no_date_and_becomes_targets(hospital: Path, tmp_path: Path, name: str) -> None:
    spec, records, cohort = _selected(hospital / f"{name}.yaml")
    assert write_cohort(cohort, spec, records, tmp_path / "out") is None
    for file in (tmp_path / "out").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        text = file.read_text()
        assert not re.search(r"(19|20)\d\d-\d\d|MRN\d|Planted", text), file.name
    targets = parse_targets([str(tmp_path / "out" / "targets.yaml")])
    assert targets
    with (tmp_path / "out" / "outcomes.csv").open() as stream:
        lines = [(number, row) for number, row in enumerate(csv.DictReader(stream), 2)]
    for target, column in targets.targets.items():
        read = column.read(lines)
        assert not read.faults, target
        assert len(read.values) > _PERSONS // 6, target
    survival = targets.targets["survival"].read(lines)
    assert survival.declared.unit == "days"
    # The second time says what changed.
    fewer = Cohort(cohort.columns, cohort.rows[1:-1], cohort.flow, cohort.faults)
    changes = write_cohort(fewer, spec, records, tmp_path / "out")
    assert changes
    assert (changes.new, changes.gone, changes.other) == (0, 2, 0)


def test_the_command_says_how_many_are_left_after_each_step(hospital: Path, tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "kit" / "startup").mkdir(parents=True)
    outcome = run("data", "cohort", hospital / "omop.yaml", "--out", tmp_path / "out", "--site", tmp_path / "kit")
    assert outcome.status == 0, outcome.text
    assert "without chemotherapy from day -365 to -1" in outcome.text
    assert "oncofed data register" in outcome.text
    again = run("data", "cohort", hospital / "omop.yaml", "--out", tmp_path / "out", "--json")
    assert json.loads(again.output)["changes"] == {"new": 0, "gone": 0, "other": 0}
    entry = json.loads((tmp_path / "kit" / AUDIT_FILE).read_text())
    about = json.loads((tmp_path / "out" / "cohort.json").read_text())
    assert entry["queries"] == [query["sha256"] for query in about["queries"]]
    assert "MRN" not in outcome.text


# --- one person at a time


def _spec(**changes: object) -> CohortSpec:
    values = yaml.safe_load(made.COHORT.format(source=_SQLITE))
    return CohortSpec.model_validate({**values, **changes})


def _cohort(
    spec: CohortSpec,
    persons: dict[str, Person],
    undated: frozenset[str] = frozenset(),
    /,
    **events: dict[str, list[Event]],
) -> Cohort:
    found = {name: events.get(name, {}) for name in spec.used_concepts}
    links = Links({"key": (Link("PAT"),), "other": (Link("OTHER"),)})
    return select_cohort(Records(persons, found, undated=undated), spec, links)


def _values(spec: CohortSpec, person: Person, **events: list[Event]) -> dict[str, str]:
    return dict(_cohort(spec, {"1": person}, **{name: {"1": own} for name, own in events.items()}).rows[0].values)


_INDEX = Event(date(2020, 1, 1))
_SEEN = ((date(2019, 6, 1), date(2020, 12, 31)),)


def _person(**values: object) -> Person:
    return Person(**{"key": "key", "born": date(1960, 1, 2), "sex": "female", "observed": _SEEN, **values})  # type: ignore[arg-type]


def test_follow_up_ends_with_death_event_or_observation() -> None:
    spec = _spec()
    alive = _values(spec, _person(), lung_cancer=[_INDEX])
    assert (alive["survival_time"], alive["survival_event"]) == ("365", "0")
    # A register of deaths knows of one after the last visit.
    dead = _values(spec, _person(died=date(2021, 1, 1)), lung_cancer=[_INDEX])
    assert (dead["survival_time"], dead["survival_event"]) == ("366", "1")
    spread = [Event(date(2020, 1, 31))]
    worse = _values(spec, _person(), lung_cancer=[_INDEX], metastasis=spread)
    assert (worse["progression_time"], worse["progression_event"]) == ("0.9856", "1")
    assert (worse["survival_time"], worse["survival_event"]) == ("365", "0")
    # What was there on the day of the index is no progression, and what comes after the follow-up is not known.
    both = [Event(date(2020, 1, 1)), Event(date(2021, 6, 1))]
    until = _spec(follow_up="observation_period", omop={"url": "sqlite:///cdm.db"})
    assert _values(until, _person(), lung_cancer=[_INDEX], metastasis=both)["progression_event"] == "0"
    undated = _values(spec, _person(died_undated=True), lung_cancer=[_INDEX])
    assert (undated["survival_time"], undated["progression_event"]) == ("", "")


def test_periods_that_touch_are_one_and_an_index_between_two_is_not_observed() -> None:
    years = ((date(2020, 1, 1), date(2020, 6, 30)), (date(2020, 7, 1), date(2021, 1, 31)))
    assert _values(_spec(), _person(observed=years), lung_cancer=[_INDEX])["survival_time"] == "396"
    with pytest.raises(DataError, match="between their first and last visit"):
        _values(_spec(), _person(observed=((date(2020, 2, 1), date(2020, 6, 30)),)), lung_cancer=[_INDEX])


def test_a_finding_is_negative_only_where_somebody_would_have_seen_it() -> None:
    spec = _spec()
    assert _values(spec, _person(), lung_cancer=[_INDEX])["findings_metastasis"] == "0"
    short = _person(observed=((date(2019, 6, 1), date(2020, 2, 1)),))
    assert _values(spec, short, lung_cancer=[_INDEX])["findings_metastasis"] == ""
    # Until death all was seen.
    dead = _person(observed=((date(2019, 6, 1), date(2020, 2, 1)),), died=date(2020, 2, 1))
    assert _values(spec, dead, lung_cancer=[_INDEX])["findings_metastasis"] == "0"
    before = _spec(targets={"findings": {"kind": "labels", "findings": {"m": "metastasis"}, "within": [-365, 0]}})
    assert _values(before, _person(), lung_cancer=[_INDEX])["findings_m"] == ""


def test_values_are_converted_taken_from_one_day_and_within_their_range() -> None:
    cea_within = {"kind": "value", "concept": "cea", "unit": "ng/mL", "within": [-60, 60], "range": [0, 1000]}
    spec = _spec(targets={"cea": cea_within})
    cea = [
        Event(date(2019, 12, 25), 9.0, "ng/mL"),
        Event(date(2020, 1, 3), 2000.0, "ng/L"),
        Event(date(2020, 1, 3), 4.0, "ng/mL"),
        Event(date(2020, 1, 3), 6.0, "ug/L"),
        Event(date(2020, 1, 3), 9999.0, "ng/mL"),
        Event(date(2020, 9, 1), 1.0, "ng/mL"),
    ]
    assert _values(spec, _person(), lung_cancer=[_INDEX], cea=cea)["cea"] == "4"


def test_ages_above_89_are_one_category() -> None:
    old = _values(_spec(), _person(born=date(1925, 5, 5)), lung_cancer=[_INDEX])
    assert old["age"] == "90"
    assert _values(_spec(), _person(), lung_cancer=[_INDEX])["age"] == "59"


def test_names_that_contradict_each_other_are_unknown() -> None:
    first, second = (Event(date(2019, 12, 31), codes=(code,)) for code in ("SNOMED:13104003", "SNOMED:60333009"))
    assert _values(_spec(), _person(), lung_cancer=[_INDEX], stage=[first])["stage"] == "I"
    assert _values(_spec(), _person(), lung_cancer=[_INDEX], stage=[first, second])["stage"] == ""


def test_a_covariate_is_of_no_day_after_the_index() -> None:
    covariates = {"before": {"kind": "value", "concept": "cea", "unit": "ng/mL"}}
    later = [Event(date(2020, 1, 2), 4.0, "ng/mL")]
    spec = _spec(covariates=covariates)
    assert _values(spec, _person(), lung_cancer=[_INDEX], cea=later)["before"] == ""
    both = [Event(date(2019, 12, 1), 3.0, "ng/mL"), *later]
    assert _values(spec, _person(), lung_cancer=[_INDEX], cea=both)["before"] == "3"


def test_the_last_record_ends_follow_up_where_visits_do() -> None:
    late = [Event(date(2021, 6, 1))]
    seen = _values(_spec(), _person(), lung_cancer=[_INDEX], metastasis=late)
    assert (seen["survival_time"], seen["progression_event"]) == ("517", "1")
    planned = [Event(date.today() + timedelta(days=9))]
    assert _values(_spec(), _person(), lung_cancer=[_INDEX], chemotherapy=planned)["survival_time"] == "365"
    period = _spec(follow_up="observation_period")
    faults = _cohort(period, {"1": _person()}, lung_cancer={"1": [_INDEX]}, metastasis={"1": late}).faults
    assert faults == {"progression: an event after the end of follow-up": 1}


def test_persons_who_share_an_identifier_are_left_out() -> None:
    persons = {"1": _person(), "2": _person(died=date(2020, 6, 1)), "3": _person(key="other")}
    cohort = _cohort(_spec(), persons, lung_cancer={"1": [_INDEX], "2": [_INDEX], "3": [_INDEX]})
    assert [row.link.patient for row in cohort.rows] == ["OTHER"]
    assert cohort.faults == {"a person with the identifier of another": 2}


def test_a_person_who_shares_an_identifier_with_one_without_index_event_is_left_out(tmp_path: Path) -> None:
    patients = made.make_patients(20)
    with_index = next(one for one in patients if any(code.startswith("25463") for _, code, *_ in one.events))
    twin = made.Patient(21, with_index.mrn, with_index.born, with_index.sex, visits=with_index.visits)
    twin.died = with_index.visits[-1][1]
    made.fill_omop(f"sqlite:///{tmp_path}/cdm.db", [*patients, twin])
    made.write_fhir([*patients, twin], tmp_path / "fhir")
    made.write_hierarchy(tmp_path / "hierarchy.csv")
    made.write_crosswalk(patients, tmp_path / "crosswalk.csv")
    for name, source in (("omop", _SQLITE), ("fhir", _FHIR)):
        _, records, cohort = _selected(_write(tmp_path, f"{name}.yaml", source))
        assert records.shared == {with_index.mrn}
        assert cohort.faults["a person with the identifier of another"] == 1
        assert f"PAT-{with_index.number}" not in {row.link.patient for row in cohort.rows}


def test_a_person_whose_index_may_be_another_day_is_left_out(tmp_path: Path) -> None:
    found = {"1": [_INDEX], "3": [_INDEX]}
    cohort = _cohort(_spec(), {"1": _person(), "3": _person(key="other")}, frozenset("1"), lung_cancer=found)
    assert [row.link.patient for row in cohort.rows] == ["OTHER"]
    assert cohort.faults == {"a person of whom an index event's day is not known": 1}
    code = {"coding": [{"system": "http://snomed.info/sct", "code": "254637007"}]}
    condition = {"resourceType": "Condition", "subject": {"reference": "Patient/1"}, "code": code}
    days = [{**condition, "onsetDateTime": day} for day in ("2018", "2020-01-01")]
    (tmp_path / "a.ndjson").write_text("\n".join(map(json.dumps, [{"resourceType": "Patient", "id": "1"}, *days])))
    spec = _spec(omop=None, fhir={"folder": str(tmp_path)})
    assert open_source(spec).read(spec).undated == {"1"}


def test_periods_and_windows_may_reach_to_the_end_of_the_calendar() -> None:
    open_ended = ((date(2019, 6, 1), date.max), (date(2020, 3, 1), date.max))
    ever = {"kind": "value", "concept": "cea", "unit": "ng/mL", "within": [-999_999, 9_999_999]}
    spec = _spec(follow_up="observation_period", targets={"cea": ever})
    cea = [Event(date(2020, 5, 1), 2.0, "ng/mL")]
    assert _values(spec, _person(observed=open_ended), lung_cancer=[_INDEX], cea=cea)["cea"] == "2"


@pytest.mark.parametrize(
    ("unit", "said"),
    [
        ("mmol/L", "the unit mmol/L"),
        ("10*3/uL", "the unit 10*3/uL"),
        ("", "no unit"),
        ("Planted 0176123456", "another unit"),
        ("Planted", "another unit"),
        ("mL{Planted}", "another unit"),
    ],
)
def test_a_unit_is_told_where_it_is_one(unit: str, said: str) -> None:
    day = [Event(date(2020, 1, 1), 5.0, unit)]
    cohort = _cohort(_spec(), {"1": _person()}, lung_cancer={"1": [_INDEX]}, cea={"1": day})
    assert cohort.faults == {f"cea: {said}, expected one that becomes ng/mL": 1}


# --- mistakes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"index": {"concept": "lung"}}, "expected a name under concepts: lung_cancer, metastasis"),
        ({"targets": {"s": {"kind": "survival", "event": "relapse"}}}, "targets.s: found 'relapse'"),
        ({"exclude": [{"concept": "cea", "within": [9, 1]}]}, "expected the earlier day first"),
        (
            {"targets": {"f": {"kind": "labels", "findings": {"m": "metastasis"}, "within": [90, 0]}}},
            "expected the earlier day first",
        ),
        (
            {"covariates": {"b": {"kind": "value", "concept": "cea", "unit": "ng/mL", "within": [-60, 60]}}},
            "covariates.b.within: found within: [-60, 60], expected no day after the index",
        ),
        ({"omop": {"url": "postgresql://host/cdm?user=reader&password=planted"}}, "url holds a password"),
        ({"omop": {"url": "postgresql://reader:plan/ted@host/cdm"}}, "url holds a password"),
        ({"concepts": {"lung_cancer": {"domain": "condition", "codes": ["C34.1"]}}}, "expected VOCABULARY:CODE"),
        ({"covariates": {"survival": {"kind": "age"}}}, "is a target and a covariate"),
        ({"fhir": {"folder": "fhir"}}, "fhir: found both, expected one source"),
        (
            {"targets": {"cea": {"kind": "value", "concept": "cea", "unit": "bananas"}}},
            "targets.cea.unit: found 'bananas'; found the unit 'bananas', expected one of UCUM",
        ),
        (
            {"targets": {"cea": {"kind": "value", "concept": "cea", "unit": "mg/dll"}}},
            "perhaps mg/dL",
        ),
    ],
)
def test_a_mistake_in_the_file_is_named(hospital: Path, changes: dict[str, object], said: str) -> None:
    file = _write(hospital, "mistake.yaml", _SQLITE, **changes)
    with pytest.raises(SpecError, match=re.escape(said)):
        read_cohort(file)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"index": {"concept": "lung"}}, "  concept: lung"),
        ({"exclude": [{"concept": "surgery"}]}, "- concept: surgery"),
        ({"omop": {"url": "postgresql://reader:planted@host/cdm"}}, "  url: postgresql://reader:planted@host/cdm"),
        ({"covariates": {"survival": {"kind": "age"}}}, "  survival:"),
        ({"fhir": {"folder": "fhir"}}, "fhir:"),
    ],
)
def test_a_mistake_in_the_file_has_its_line(hospital: Path, changes: dict[str, object], line: str) -> None:
    file = _write(hospital, "line.yaml", _SQLITE, **changes)
    lines = file.read_text().splitlines()
    # The last of that text: a target of the same name stands before.
    number = len(lines) - lines[::-1].index(line)
    with pytest.raises(SpecError, match=re.escape(f"line.yaml:{number}: ")):
        read_cohort(file)


def test_an_exclusion_that_leaves_out_nobody_is_said(hospital: Path, tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    never = [{"concept": "chemotherapy", "within": [5000, 5001]}]
    _, _, cohort = _selected(_write(hospital, "never.yaml", _SQLITE, exclude=never))
    step = "without chemotherapy from day 5000 to 5001"
    (note,) = cohort.notes
    assert note.startswith(f"the step '{step}' left out nobody of {cohort.flow[step]} persons: somebody has such")
    concepts = yaml.safe_load((hospital / "omop.yaml").read_text())["concepts"]
    nobody = {**concepts, "stent": {"domain": "procedure", "codes": ["SNOMED:94381002"]}}
    file = _write(hospital, "stent.yaml", _SQLITE, concepts=nobody, exclude=[{"concept": "stent"}])
    found = json.loads(run("data", "cohort", file, "--out", tmp_path / "out", "--json").output)
    assert "concepts.stent: nobody with the index event has a record with one of its codes" in found["notes"]
    assert any("'without stent' left out nobody" in note for note in found["notes"])


def test_what_without_does_not_do_is_said(hospital: Path) -> None:
    concepts = yaml.safe_load((hospital / "omop.yaml").read_text())["concepts"]

    def written(*without: str) -> Path:
        lung = {**concepts["lung_cancer"], "without": list(without)}
        return _write(hospital, "without.yaml", _SQLITE, concepts={**concepts, "lung_cancer": lung})

    fewer = _selected(written("SNOMED:254632001"))[2]
    assert 0 < len(fewer.rows) < len(_selected(hospital / "omop.yaml")[2].rows)
    assert fewer.notes == []
    _, records, _ = _selected(written("SNOMED:94381002"))
    assert "without SNOMED:94381002 leaves nothing out" in records.notes[0]
    with pytest.raises(DataError, match=r"concepts.lung_cancer: without leaves out all of its codes"):
        _selected(written("SNOMED:254637007"))


def test_a_table_that_is_not_there_is_named(hospital: Path, tmp_path: Path) -> None:
    made.fill_omop(f"sqlite:///{tmp_path}/cdm.db", made.make_patients(20))
    engine = sa.create_engine(f"sqlite:///{tmp_path}/cdm.db")
    with engine.begin() as connection:
        connection.execute(sa.text("DROP TABLE measurement"))
    engine.dispose()
    (tmp_path / "crosswalk.csv").write_bytes((hospital / "crosswalk.csv").read_bytes())
    with pytest.raises(DataError, match=r"no table measurement in its own schema .*omop.cdm names"):
        _selected(_write(tmp_path, "c.yaml", _SQLITE))


def test_an_unknown_code_an_empty_step_and_a_wrong_crosswalk_are_named(hospital: Path, tmp_path: Path) -> None:
    unknown = {"domain": "condition", "codes": ["SNOMED:1"]}
    concepts = yaml.safe_load((hospital / "omop.yaml").read_text())["concepts"]
    file = _write(hospital, "unknown.yaml", _SQLITE, concepts={**concepts, "lung_cancer": unknown})
    with pytest.raises(DataError, match=r"concepts.lung_cancer: .* does not have SNOMED:1"):
        _selected(file)
    with pytest.raises(DataError, match="after the step 'aged 110 to 120'"):
        _selected(_write(hospital, "old.yaml", _SQLITE, age=[110, 120]))
    walk = {"file": "crosswalk.csv", "person": "id", "patient": "PatientID"}
    with pytest.raises(DataError, match="found no column 'id'"):
        _selected(_write(hospital, "walk.yaml", _SQLITE, crosswalk=walk))


def test_a_patient_of_two_persons_is_left_out_and_two_of_one_are_counted(tmp_path: Path) -> None:
    (tmp_path / "crosswalk.csv").write_text("mrn;PatientID\n1;A\n2;A\n3;B\n3;C\n4;\n")
    links = read_crosswalk(_spec().crosswalk.model_copy(update={"file": tmp_path / "crosswalk.csv"}))
    assert (sorted(links.of), links.ambiguous, links.several) == (["3"], 1, 1)


def test_a_mistyped_path_of_sqlite_is_refused_and_makes_no_file(tmp_path: Path) -> None:
    spec = _spec(omop={"url": f"sqlite:///{tmp_path}/cmd.db"})
    with pytest.raises(SpecError, match="found no file where its address says"):
        open_source(spec).read(spec)
    assert not list(tmp_path.iterdir())


def test_codes_of_icd_lead_to_standard_concepts(hospital: Path) -> None:
    spec = read_cohort(hospital / "omop.yaml")
    for code in ("ICD10CM:C34.1", "ICD10CM:C34*"):
        lung = spec.concepts["lung_cancer"].model_copy(update={"codes": (code,)})
        other = spec.model_copy(update={"concepts": {**spec.concepts, "lung_cancer": lung}})
        assert spec.omop
        assert OmopDatabase(spec.omop).read(other).events["lung_cancer"].keys() == (
            OmopDatabase(spec.omop).read(spec).events["lung_cancer"].keys()
        )


def test_a_broken_export_is_named_by_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "crosswalk.csv").write_text("mrn,PatientID\n1,1\n")
    (tmp_path / "fhir").mkdir()
    good = json.dumps({"resourceType": "Patient", "id": "1"})
    (tmp_path / "fhir" / "a.ndjson").write_text(f'{good}\n{{"resourceType": "Patient", "name": "Planted\n')
    file = _write(tmp_path, "c.yaml", "fhir: {folder: fhir}")
    with pytest.raises(DataError, match=r"a.ndjson:2: cannot be read as JSON") as refused:
        _selected(file)
    assert "Planted" not in str(refused.value)
    (tmp_path / "fhir" / "a.ndjson").write_text(good)
    with pytest.raises(DataError, match="found no record with one of its codes"):
        _selected(file)


def test_the_documented_file_is_valid() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cohorts.md").read_text()
    block = re.findall(r"^```yaml.*?\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[0]
    spec = CohortSpec.model_validate(yaml.safe_load(block))
    assert set(spec.used_concepts) == set(spec.concepts)


def test_from_the_database_to_a_dataset_with_targets(hospital: Path, tmp_path: Path, run) -> None:  # type: ignore[no-untyped-def]
    images = tmp_path / "images"
    images.mkdir()
    made_site = make_site(tmp_path / "made", 8)
    for number, image in enumerate(sorted((made_site / "imagesTr").iterdir()), 1):
        image.rename(images / f"PAT-{number}.nii.gz")
    assert run("data", "cohort", hospital / "omop.yaml", "--out", tmp_path / "lung").status == 0
    tables = ["--labels", tmp_path / "lung" / "outcomes.csv", "--targets", tmp_path / "lung" / "targets.yaml"]
    outcome = run("data", "register", images, "--dataset", "lung", *tables, "--workspace", tmp_path / "workspace")
    assert outcome.status == 0, outcome.text
    found = json.loads((tmp_path / "workspace" / "datasets" / "lung" / "dataset.json").read_text())
    entries = [entry for split in ("training", "validation", "test") for entry in found.get(split, ())]
    with (tmp_path / "lung" / "outcomes.csv").open() as stream:
        times = {row["patient"]: int(row["survival_time"]) for row in csv.DictReader(stream)}
    stated = {entry["name"]: entry["targets"]["survival"]["time"] for entry in entries if entry.get("targets")}
    assert stated == {name: times[name] for name in stated}
    assert len(stated) >= 4
    assert any("age" in entry["tags"] for entry in entries)
