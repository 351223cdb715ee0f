"""Tests of a run's file."""

from __future__ import annotations

import json

import pytest

from harness.results import Baseline, BenchmarkRun, Figure, Limit, SuiteResult, Target, find_run, read_run
from harness.tables import markdown, number, rows_of, short_row
from oncofed.errors import SpecError


def _run(started: str = "2026-01-01T00:00:00+00:00", **values) -> BenchmarkRun:
    figure = Figure(
        name="step",
        unit="samples/s",
        samples=[10.0, 12.0, 11.0],
        baseline=Baseline(name="plain", samples=[5.0, 5.5, 6.0]),
        others=[Baseline(name="Flower", missing="not installed")],
        limit=Limit(name="network alone", value=22.0),
        target=Target(of="baseline", value=2.0),
    )
    usual = {"id": f"run-{started[:10]}", "commit": "abcdef123456", "quick": False, "environment": {"machine": "m"}}
    suite = SuiteResult(name="train_step", status="complete", figures=[figure])
    return BenchmarkRun(schema=1, started=started, suites=[suite], **{**usual, **values})


def test_a_run_comes_back_as_it_was(tmp_path):
    run = _run()
    assert read_run(run.write(tmp_path)) == run
    assert [path.name for path in tmp_path.iterdir()] == ["run-2026-01-01.json"]


def test_ratios_are_above_one_where_we_are_better_whatever_the_unit():
    rate = _run().suites[0].figures[0]
    assert (rate.value, rate.over_baseline, rate.of_limit, rate.met) == (11.0, 2.0, 0.5, True)
    seconds = Figure(
        name="f",
        unit="s",
        better="lower",
        samples=[2.0],
        baseline=Baseline(name="b", samples=[6.0]),
        limit=Limit(name="l", value=1.0),
        target=Target(of="limit", value=0.9),
    )
    assert (seconds.over_baseline, seconds.of_limit, seconds.met) == (3.0, 0.5, False)
    for better, met in (("lower", True), ("higher", False)):
        aimed = Figure(name="f", unit="s", better=better, samples=[2.0], target=Target(of="value", value=3.0))
        assert aimed.met is met
    assert Figure(name="f", unit="s", target=Target(of="value", value=3.0)).met is None


def test_a_row_names_missing_measurements_with_reasons():
    rows = rows_of(_run().suites[0].figures[0])
    assert rows[0].ours == "11 (10.5 to 11.5)"
    assert rows[0].target == "× 2 of the baseline, met"
    assert rows[1].baseline == "Flower: not measured, not installed"
    assert "not measured: no GPU" in rows_of(Figure(name="f", unit="s", skipped="no GPU"))[0].ours
    assert short_row(_run().suites[0].figures[0])[2] == "× 2 of plain\nnot measured: Flower"
    row = "| train_step | step, samples/s | 11 (10.5 to 11.5) | 5.5 plain | 2 | 22 network alone | 0.50 |"
    assert row in markdown([_run()])


def test_a_row_without_a_measurement_goes_with_its_figure():
    old = _run(environment={"machine": "another"})
    old.suites[0].figures += [Figure(name=name, unit="s", skipped="no GPU") for name in ("gone", "kept")]
    new = _run("2026-02-01T00:00:00+00:00")
    new.suites[0].figures.append(Figure(name="kept", unit="s", skipped="no GPU"))
    assert "| gone, s | not measured: no GPU |" in markdown([old])
    table = markdown([old, new])
    assert "gone" not in table
    assert table.count("| kept, s | not measured: no GPU |") == 2
    assert "gone" in markdown([old, new.model_copy(update={"quick": True})])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (12345.6, "12,346"),
        (99.95, "100"),
        (3.14159, "3.14"),
        (0.1234, "0.123"),
        (0.00123, "0.0012"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_a_run_is_found_by_id_commit_or_age(tmp_path):
    first, last = _run(), _run("2026-02-01T00:00:00+00:00", commit="123456")
    for run in (first, last):
        run.write(tmp_path)
    assert find_run("last", tmp_path) == find_run("1234", tmp_path) == last
    assert find_run("previous", tmp_path) == find_run("abc", tmp_path) == first
    assert find_run(str(tmp_path / "run-2026-01-01.json"), tmp_path) == first
    for name, said in (("nothing", "the last ones are: run-2026-01-01"), ("run-", "fits 2 runs")):
        with pytest.raises(SpecError, match=said):
            find_run(name, tmp_path)
    with pytest.raises(SpecError, match="holds 0 runs"):
        find_run("last", tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "no JSON"), ("[]", "schema None, expected 1"), ('{"schema": 2}', "schema 2, expected 1")],
)
def test_a_foreign_file_is_named(tmp_path, text, said):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(SpecError, match=said):
        read_run(path)
    content = json.loads(_run().write(tmp_path).read_text())
    content["suites"][0]["figures"][0]["samples"] = ["fast"]
    path.write_text(json.dumps(content))
    with pytest.raises(SpecError, match=r"suites\.0\.figures\.0\.samples\.0"):
        read_run(path)
