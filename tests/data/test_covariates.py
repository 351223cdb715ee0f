"""Covariates of a job: what a table states becomes numbers, or sets the case aside by name."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from oncofed.data.cases import usable_cases
from oncofed.data.contract import check_dataset
from oncofed.data.covariates import Covariate, row_of, stated
from oncofed.data.inputs import TableRows
from oncofed.data.manifest import Entry
from oncofed.data.prepared import prepare_one
from oncofed.data.spec import DataSpec
from oncofed.errors import DataError, SpecError
from tabular import JOB, make_table_site, read_entries, table_cases, table_job, write_entries

AGE = Covariate(name="age", unit="years", range=(0, 120))
STAGE = Covariate(name="tumour stage", categories=("I", "II", "none"))


def test_values_become_numbers() -> None:
    entry = Entry(image="a.png", tags={"age": " 63.5 ", "Tumour_Stage": "ii"}, vendor="Acme")
    vendor = Covariate(name="vendor", categories=("Acme", "Other"))
    assert row_of(entry, (AGE, STAGE, vendor)) == (63.5, 1.0, 0.0)
    assert stated(entry.model_copy(update={"tags": {"vendor": "Other"}}), vendor) == "Other", "the table goes first"


@pytest.mark.parametrize("text", ["", "NA", "n/a", "NaN", " unknown ", "?", "--", "not available", "[Unknown]"])
def test_what_is_missing_is_nan(text: str) -> None:
    assert math.isnan(AGE.encode(text))
    assert math.isnan(STAGE.encode(text))
    assert math.isnan(row_of(Entry(image="a.png"), (AGE,))[0])


def test_the_case_of_a_columns_name_does_not_matter() -> None:
    age = Covariate(name="Age", range=(0, 120))
    assert age.name == "age"
    assert stated(Entry(image="a.png", tags={"AGE": "63"}), age) == "63"


@pytest.mark.parametrize("name", ["", "Age (years)", "1st", "Größe", "a" * 41, "age\n"])
def test_a_strange_name_of_a_column_is_told_in_words(name: str) -> None:
    with pytest.raises(ValidationError, match="Rename the column in the table") as caught:
        Covariate(name=name, range=(0, 120))
    assert caught.value.error_count() == 1


@pytest.mark.parametrize(
    ("text", "number"),
    [("65,5", 65.5), ("63 y", 63), ("063Y", 63), ("18 months", 1.5), ("6.5e1", 65), ("12.345", 12.345), ("0,5", 0.5)],
)
def test_a_number_is_read_as_targets_are_and_in_the_jobs_unit(text: str, number: float) -> None:
    assert AGE.encode(text) == number


def test_a_category_may_be_called_none() -> None:
    assert STAGE.encode("None") == 2.0
    assert math.isnan(AGE.encode("None")), "else it says that nothing is known"


@pytest.mark.parametrize(
    ("column", "text", "message"),
    [
        (AGE, "130", "column age: found 130, expected 0 to 120 years"),
        (AGE, "63 kg", "column age: found '63 kg', expected 0 to 120 years as a plain number, or with a unit"),
        (AGE, "inf", "column age: found 'inf'"),
        (AGE, "1_0", "column age: found '1_0'"),
        (AGE, "1,234", "column age: found '1,234', which may be thousands or a fraction, .* with a point"),
        (STAGE, "IV", "column tumour stage: found 'IV', expected one of I, II, none"),
    ],
)
def test_a_value_outside_is_refused(column: Covariate, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        column.encode(text)


def test_a_case_with_such_a_value_is_set_aside_by_name(tmp_path: Path) -> None:
    folder, spec = make_table_site(tmp_path / "set"), table_job(tmp_path)
    entries = read_entries(folder)
    entries[3]["tags"] = {"age": "630", "stage": "V"}
    write_entries(folder, entries)
    plan = spec.plan()
    (problem,) = usable_cases(folder, plan.data, plan.supervision(), plan.seed, "here").set_aside
    assert str(problem).startswith("003: column age: found 630, expected 0 to 120 years")
    assert "column stage: found 'V', expected one of I, II, III" in str(problem)


def test_a_row_comes_with_unlabelled_cases_too(tmp_path: Path) -> None:
    spec = table_job(tmp_path)
    case = next(iter(table_cases(spec, make_table_site(tmp_path / "set"))))
    task = spec.plan().build_task()
    prepared = prepare_one(case, task.inference_preparation())
    assert prepared["table"].shape == (2,)
    assert prepared["table"].dtype == torch.float32
    assert prepared["image"].ndim == 3
    assert set(prepare_one(case, TableRows(spec.data, lambda case: {}))) == {"table"}, "no image is read"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "age"}, "either a range"),
        ({"name": "age", "range": [0, 1], "categories": ["a", "b"]}, "either a range"),
        ({"name": "age", "range": [2, 1]}, "smaller number first"),
        ({"name": "stage", "categories": ["I", "i"]}, "that differ"),
        ({"name": "stage", "categories": ["I", "II"], "unit": "mm"}, "no unit"),
    ],
)
def test_mistakes_of_a_job_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataSpec.model_validate({"dataset": "any", "covariates": [values]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("name: stage", "name: Stage (TNM)"), r"data.covariates.*found .Stage \(TNM\).*Rename the column"),
        (("name: stage", "name: Age"), "two covariates are called age"),
        (("name: stage", "name: outcome"), "is a target of the job"),
        (("{name: stage, categories: [I, II, III]}", "{name: age, range: [0, 1]}"), "two covariates are called age"),
    ],
)
def test_mistakes_of_a_job_file_are_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        table_job(tmp_path, JOB.replace(*change))


def test_covariates_are_for_jobs_with_targets(tmp_path: Path) -> None:
    text = JOB[: JOB.index("targets:")] + "task: {type: classification, classes: {0: a, 1: b}}\nmodel: {network: vit}\n"
    with pytest.raises(SpecError, match="covariates are for jobs with targets"):
        table_job(tmp_path, text)


def test_a_covariate_that_tells_the_outcome_is_named(tmp_path: Path) -> None:
    folder = make_table_site(tmp_path / "set", 40)
    entries = read_entries(folder)
    for entry in entries:
        tags, targets = entry["tags"], entry["targets"]
        assert isinstance(tags, dict)
        assert isinstance(targets, dict)
        tags["Stage"] = {"no": "I", "yes": "III"}[targets["outcome"]]
    write_entries(folder, entries)
    spec = table_job(tmp_path)
    report = check_dataset(folder, spec.data, spec.plan().supervision(), spec.seed)
    assert not report.clean
    (leak,) = (found for found in report.findings if found.kind == "column that tells the outcome")
    assert "column Stage" in leak.what
    assert "outcome" in leak.what


def test_check_tells_of_each_column_without_telling_of_few(tmp_path: Path) -> None:
    folder = make_table_site(tmp_path / "set", 40, missing=10)
    text = JOB.replace(
        "targets:", "    - {name: psa, range: [0, 500]}\n    - {name: sex, categories: [f, m]}\ntargets:"
    )
    entries = read_entries(folder)
    for number, entry in enumerate(entries):
        tags = entry["tags"]
        assert isinstance(tags, dict)
        tags |= {"sex": "F", "Stage": "III" if number < 3 else "I"}
    write_entries(folder, entries)
    spec = table_job(tmp_path, text)
    report = check_dataset(folder, spec.data, spec.plan().supervision(), spec.seed)
    rows = {row.aspect: row for row in report.rows}
    assert rows["age"].found.startswith("36 of 40 patients have it; mean ")
    assert rows["age"].expected == "a number from 0 to 120 years"
    assert rows["stage"].found.startswith("40 of 40 patients have it; I few*, II 0, III few*")
    assert (rows["psa"].verdict, rows["psa"].found) == ("converted", "0 of 40 patients have it")
    warned = {finding.kind: finding.what for finding in report.warnings}
    assert warned["constant covariate"] == "column sex is the same for all 40 patients: it tells nothing here"
    assert warned["missing covariate"].startswith(
        "no case has a value in column psa; the table's columns are Stage, age"
    )
    assert report.may_train


def test_few_who_have_a_column_are_not_counted(tmp_path: Path) -> None:
    folder, spec = make_table_site(tmp_path / "set", 40), table_job(tmp_path)
    entries = read_entries(folder)
    for entry in entries[3:]:
        tags = entry["tags"]
        assert isinstance(tags, dict)
        del tags["age"]
    write_entries(folder, entries)
    report = check_dataset(folder, spec.data, spec.plan().supervision(), spec.seed)
    assert {row.aspect: row.found for row in report.rows}["age"] == "fewer than 5 of 40 patients have it"
