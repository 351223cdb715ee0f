"""Interrupted or killed commands leave no process running."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import Forked, family, forked, left_running, press_ctrl_c, started, wait_for
from oncofed.report.result import read_result
from synthetic import JOB, write_job

pytestmark = [pytest.mark.slow, pytest.mark.federation]


def _sites(two_sites: dict[str, Path]) -> list[str]:
    return [argument for name, folder in two_sites.items() for argument in ("--site", f"{name}={folder}")]


@pytest.fixture
def long_job(tmp_path: Path) -> Path:
    """A job that trains for minutes."""
    return write_job(tmp_path / "long", JOB.replace("steps_per_round: 4", "steps_per_round: 3000"))


def test_nothing_outlives_a_run_that_is_interrupted(long_job: Path, two_sites: dict[str, Path], tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log.txt"
    with forked("job", "run", long_job, *_sites(two_sites), "--out", out, log=log) as process:
        wait_until_ready(process, log)
        press_ctrl_c(process)
        assert process.wait(300) == 130
        assert left_running(tmp_path) == []
    assert read_result(out).status == "stopped"
    assert log.read_text().rstrip().endswith("stopped; nothing that was started is left running")
    assert "Traceback" not in log.read_text()
    assert not (out / "federation").exists()


@pytest.mark.thorough
def test_processes_that_make_the_demos_images_end_with_it(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with started("demo", "--workspace", tmp_path / "workspace", log=log) as process:
        wait_for(lambda: len(family(process.pid)) > 2, "processes make patients")
        members = family(process.pid)
        press_ctrl_c(process)
        assert process.wait(300) == 130
        wait_for(lambda: not any(member.is_running() for member in members), "its processes ended", 60)
    assert log.read_text().rstrip().endswith("stopped; nothing that was started is left running")
    assert "Traceback" not in log.read_text()


@pytest.mark.thorough
def test_nothing_outlives_a_run_that_is_killed(long_job: Path, two_sites: dict[str, Path], tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with forked("job", "run", long_job, *_sites(two_sites), "--out", tmp_path / "run", log=log) as process:
        wait_until_ready(process, log)
        process.kill()
        process.wait()
        wait_for(lambda: left_running(tmp_path) == [], "server, sites and their job processes ended", 60)


def wait_until_ready(process: Forked, log: Path) -> None:
    wait_for(lambda: "sites ready" in log.read_text() or process.poll() is not None, "the sites are ready")
    assert process.poll() is None, log.read_text()
