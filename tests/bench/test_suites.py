"""Tests of running tiny suites in real processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import typer
from typer.testing import CliRunner

import table
from commands import ENVIRONMENT, command, wait_for
from harness import suites as runner
from harness.results import read_run
from many_images import tells_progress
from oncofed.cli import bench
from oncofed.errors import SpecError
from oncofed.gpus import GPU

_GOOD = '''"""Sleeps, beside sleeping longer.

More words.
"""

import time

from harness.results import Limit, Target


def run(bench):
    """Measure."""
    programs = {"oncofed": lambda: time.sleep(0.01), "longer": lambda: time.sleep(0.1)}
    limit = Limit(name="none", value=0.001)
    bench.race("sleeping", programs, limit=limit, missing={"Flower": "not installed"})
    assert bench.limits.disk_read() > 0
'''
_BAD = """\"\"\"Fails.\"\"\"


def run(bench):
    bench.measured("before", [1.0], "s")
    raise ValueError("the disk is on fire")
"""
_KILLED = (
    '"""Dies."""\n\nimport os\n\n\ndef run(bench):\n    bench.skip("x", "s", "no y")\n    os.kill(os.getpid(), 9)\n'
)
_HEEDS = """\"\"\"Takes long, and says when it is interrupted.\"\"\"

import pathlib, time


def run(bench):
    bench.measured("first", [1.0], "s")
    try:
        time.sleep(300)
    except KeyboardInterrupt:
        pathlib.Path("interrupted").touch()
        raise
"""
_LONG = """\"\"\"Takes long.\"\"\"

import subprocess, time


def run(bench):
    bench.measured("first", [1.0], "s")
    child = subprocess.Popen(["sleep", "317"])
    bench.measured("second", [float(child.pid)], "s")
    time.sleep(300)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with suites, which is the working folder."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    scripts = {
        "train_step": _GOOD,
        "bad": _BAD,
        "killed": _KILLED,
        "long": _LONG,
        "heeds": _HEEDS,
        "helper": '"""No suite."""\n',
    }
    for name, text in scripts.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _only_result(home: Path) -> Path:
    (path,) = (home / "benchmarks" / "results").glob("*.json")
    return path


def test_suites_are_listed_with_their_docstrings(home, run):
    outcome = run("bench", "list", "--json")
    titles = {entry["name"]: entry["title"] for entry in json.loads(outcome.output)}
    assert titles["train_step"] == "Sleeps, beside sleeping longer"
    assert "helper" not in titles


def test_every_sample_is_kept_with_baseline_limit_and_machine(home, run):
    outcome = run("bench", "run", "train_step", "--repeats", "4", "--first-use")
    assert outcome.status == 0, outcome.text
    result = read_run(_only_result(home))
    (suite,) = result.suites
    first, figure = suite.figures
    assert (suite.status, first.name, len(figure.samples)) == ("complete", "sleeping, first use", 4)
    assert len(figure.baseline.samples) == 4
    assert 3 < figure.over_baseline < 15
    assert figure.others[0].missing == "not installed"
    assert result.limits["disk read, bytes/s"] > 1e6
    assert len(result.environment["machine"]) == 8
    assert {"torch", "cores", "processor", "driver"} <= result.environment.keys()


def test_a_failed_or_killed_suite_keeps_its_figures_and_the_others_run(home, run):
    outcome = run("bench", "run", "bad", "killed", "train_step", "--quick", "--json")
    assert outcome.status == 1
    bad, killed, good = json.loads(outcome.output)["suites"]
    assert [suite["status"] for suite in (bad, killed, good)] == ["failed", "failed", "complete"]
    assert bad["figures"][0]["name"] == "before"
    assert "ValueError: the disk is on fire" in bad["error"]
    assert "SIGKILL" in killed["error"]
    assert killed["figures"][0]["skipped"] == "no y"
    assert read_run(_only_result(home)).suites[2].status == "complete"


def test_ctrl_c_keeps_what_was_measured_and_leaves_nothing_running(home):
    log = home / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command("bench", "run", "long"), cwd=home, env=ENVIRONMENT, stdout=output, stderr=output
        )
    results = home / "benchmarks" / "results"
    wait_for(lambda: any('"second"' in path.read_text() for path in results.glob("*.json")), "two figures are kept")
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(300) == 130
    (suite,) = read_run(_only_result(home)).suites
    assert (suite.status, [figure.name for figure in suite.figures]) == ("interrupted", ["first", "second"])
    assert "Traceback" not in log.read_text()
    assert not psutil.pid_exists(int(suite.figures[1].samples[0]))


@pytest.mark.wild("cpython#154167", "suites of a command that was started with SIGINT ignored, as by a script's &")
def test_a_suite_ends_in_order_also_where_its_parents_parent_ignores_interrupts(home):
    code = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    background = [sys.executable, "-c", code, *command("bench", "run", "heeds")]
    with (home / "log.txt").open("wb") as output:
        process = subprocess.Popen(background, cwd=home, env=ENVIRONMENT, stdout=output, stderr=output)
    results = home / "benchmarks" / "results"
    wait_for(lambda: any('"first"' in path.read_text() for path in results.glob("*.json")), "a figure is kept")
    os.kill(process.pid, signal.SIGINT)  # which whoever started it wanted it to ignore
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(300) == 130
    assert (home / "interrupted").exists()
    assert read_run(_only_result(home)).suites[0].status == "interrupted"


def test_impossible_requests_are_explained(home, run):
    for arguments, status, said in (
        (
            ("run", "traim_step"),
            2,
            "no suite 'traim_step'; expected all, or some of: bad, heeds, killed, long, train_step",
        ),
        (("run", "train_step", "--device", "cuda"), 2, "finds no CUDA GPU here"),
        (("compare", "last", "previous"), 2, "holds 0 runs"),
        (("report",), 2, "holds no results"),
    ):
        outcome = run("bench", *arguments)
        assert (outcome.status, said in outcome.text) == (status, True), outcome.text


def test_an_installed_package_says_where_the_benchmarks_are(tmp_path, monkeypatch):
    monkeypatch.setattr(bench.oncofed, "__file__", str(tmp_path / "lib" / "site-packages" / "oncofed" / "__init__.py"))
    app = typer.Typer()
    app.callback()(lambda: None)
    bench.add_to(app)
    for arguments in (["bench"], ["bench", "run", "train_step", "--quick"]):
        outcome = CliRunner().invoke(app, arguments)
        assert isinstance(outcome.exception, SpecError)
        assert "Run this in a clone" in str(outcome.exception)


def test_suites_are_those_of_the_working_folder_or_else_of_the_source(home, monkeypatch):
    assert runner.suites_folder() == home / "benchmarks"
    monkeypatch.chdir(home.parent)
    assert runner.suites_folder() == Path(__file__).parents[2] / "benchmarks"


def test_a_busy_gpu_is_reported(monkeypatch):
    monkeypatch.setattr(runner.psutil, "cpu_percent", lambda interval: 60.0)
    gpus = [GPU(0, "H", "1", 80.0, 79.0, 0), GPU(1, "H", "1", 80.0, 79.0, 90), GPU(2, "H", "1", 80.0, 40.0, 0)]
    monkeypatch.setattr(runner, "read_gpus", lambda: gpus)
    assert runner.disturbances() == [
        "other programs use 60 % of the processor",
        "GPU 1 is busy to 90 % with something else",
        "something else holds 40.0 GiB of GPU 2",
    ]


def test_two_runs_are_compared_and_shown(home, run):
    for _ in range(2):
        assert run("bench", "run", "train_step").status == 0
    outcome = run("bench", "compare", "previous", "last", "--json", "--fail-above", "3")
    assert outcome.status == 0, outcome.text
    (change,) = json.loads(outcome.output)["changes"]
    assert change["adjusted"]
    assert 0.5 < change["ratio"] < 2
    page = home / "page.html"
    assert run("bench", "report", "--out", page).status == 0
    text = page.read_text()
    assert text.count("<svg") == 2  # bars, and the history
    assert "sleeping" in text
    assert not re.search(r"(src|href)=.http", text)
    assert "| train_step | sleeping, s |" in run("bench", "report", "--markdown").output


def test_a_figure_that_became_slower_ends_a_build(home, run):
    assert run("bench", "run", "train_step").status == 0
    path = _only_result(home)
    content = json.loads(path.read_text())
    figure = content["suites"][0]["figures"][0]
    count = len(figure["samples"])
    figure["baseline"]["samples"] = [0.02] * count
    figure["samples"] = [0.002 + 0.0001 * (number % 2) for number in range(count)]
    path.write_text(json.dumps(content))
    figure["samples"] = [2 * value for value in figure["samples"]]
    slower = path.with_name("slower.json")
    slower.write_text(json.dumps({**content, "id": "slower"}))
    outcome = run("bench", "compare", path, slower, "--fail-above", "1.15")
    assert outcome.status == 1
    assert "slower than × 1.15: train_step: sleeping" in outcome.text
    slower.write_text(json.dumps({**content, "environment": {**content["environment"], "machine": "other"}}))
    assert run("bench", "compare", path, slower).status == 3


@pytest.mark.parametrize(
    ("line", "tells"),
    [
        ("starting FLARE's simulator with 2 sites …", False),
        ("checking the data of north, south …", False),
        ("round, 2 rounds of fedavg, 30 steps at each site.", False),
        ("Lines are in /tmp/run-3/12/out.", False),
        ("checking images of north: 4123/30000", True),
        ("round 1/2  north: step 7; south: validating 12/64", True),
        ("north: step 30", True),
    ],
)
def test_progress_is_a_whole_line_with_a_number_of_images_or_steps(line, tells):
    assert tells_progress(f"first\n{line}\n") == tells
    assert not tells_progress(line)  # it may go on


def test_the_readme_shows_the_figures_that_are_there():
    text = table.README.read_text()
    assert table.with_figures(text) == text, "make bench-table"


def test_the_suites_of_the_repository_all_load():
    folder = Path(__file__).parents[2] / "benchmarks"
    names = [suite.name for suite in runner.list_suites(folder)]
    expected = "input_pipeline train_step inference aggregation exchange round_overhead startup end_to_end scale"
    assert set(expected.split()) | {"recovery", "privacy"} <= set(names)
    assert all(suite.title for suite in runner.list_suites(folder))
