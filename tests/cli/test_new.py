"""``oncofed new``: what it writes runs as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from commands import Outcome, oncofed, program
from oncofed.alliance.spec import read_alliance

_GROUPS = {"network": "networks", "algorithm": "algorithms", "task": "task_types"}
_JOB = """\
schema: 1
name: of_my_own
title: A job with a network, an algorithm and a task of my own
data: {dataset: any, patch: [16, 16, 16]}
task: {type: my_task, classes: {1: lesion}, missed: 0.6}
model: {network: my_network, arguments: {width: 8}}
strategy: {name: my_algorithm, step: 0.5}
"""
# Like an interpreter that has the packages on its path.
_PROGRAM = """
import sys
sys.path[:0] = sys.argv[1:]
import pytest
status = pytest.main(["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-c", "/dev/null", *sys.argv[1:]])
from oncofed import read_job
from oncofed.algorithms import algorithm_class
plan = read_job("of_my_own.yaml").plan()
print(int(status), type(plan.build_network()).__name__, algorithm_class("my_algorithm").__name__, plan.task.type)
"""


def test_packages_pass_their_own_tests_and_a_job_finds_them(
    run: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for kind, group in _GROUPS.items():
        name, folder = f"my_{kind}", tmp_path / f"my_{kind}"
        done = run("new", kind, name)
        assert (done.status, f"{name}/README.md" in done.text) == (0, True), done.text
        entry = f'[project.entry-points."oncofed.{group}"]\n{name} = "{name}"\n'
        assert entry in (folder / "pyproject.toml").read_text(encoding="utf-8")
        # What an installer writes of it.
        facts = folder / f"{name}-0.1.0.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: my-{kind}\nVersion: 0.1.0\n")
        (facts / "entry_points.txt").write_text(f"[oncofed.{group}]\n{name} = {name}\n")
    (tmp_path / "of_my_own.yaml").write_text(_JOB)
    tried = program(_PROGRAM, *(tmp_path / f"my_{kind}" for kind in _GROUPS), home=tmp_path)
    assert "3 passed" in tried.stdout, tried.stdout + tried.stderr
    assert tried.stdout.splitlines()[-1] == "0 Sequential MyAlgorithm my_task", tried.stdout + tried.stderr


def test_a_network_is_packed(run: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("new", "network", "packed_net").status == 0
    done = run("job", "pack", "packed_net/packed_net", "--out", "code", "--json")
    assert done.status == 0, done.text
    assert json.loads(done.output)["networks"] == ["packed_net"]


@pytest.mark.slow
@pytest.mark.federation
def test_a_new_job_learns_from_new_sites(tmp_path: Path) -> None:
    def command(*arguments: str | Path) -> str:
        done = oncofed(*arguments, home=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    command("new", "job", "my_lesions")
    for site in ("east", "west"):
        command("new", "site", site)
        command("data", "register", f"{site}/data", "--dataset", site)
    assert "fail" not in command("job", "check", "my_lesions")
    sites = ("--site", "east=east", "--site", "west=west")
    arguments = ("--backend", "simulate", "--no-baselines", "--json")
    result = json.loads(command("job", "run", "my_lesions", *sites, *arguments))
    assert (result["status"], len(result["sites"])) == ("completed", 2)


def test_a_new_sites_alliance_is_valid_and_its_patients_differ(
    run: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for site in ("east", "west"):
        assert run("new", "site", site, "--patients", "10").status == 0
    assert list(read_alliance(Path("east/alliance.yaml")).sites) == ["east"]
    images = [Path(site, "data", "imagesTr", "patient_000.nii.gz").read_bytes() for site in ("east", "west")]
    assert images[0] != images[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("network", "My-Net"), "found the name 'My-Net', expected a name for a Python module"),
        (("job", "../up"), "found the name '../up', expected lower case, digits, _ and -"),
        (("job", "there"), "there is there already, and nothing was changed: name another folder with --out"),
    ],
)
def test_what_it_refuses(
    run: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    done = run("new", *arguments)
    assert (done.status, message in done.text) == (2, True), done.text
    assert list((tmp_path / "there").iterdir()) == []
