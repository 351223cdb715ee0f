"""A site whose processes are killed during a run: its name is told, and the others go on where the job allows."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from commands import left_running, site_processes, started, wait_for
from oncofed.report.result import read_result
from synthetic import JOB, write_job

pytestmark = [pytest.mark.slow, pytest.mark.federation]


def _sites(two_sites: dict[str, Path]) -> list[str]:
    return [argument for name, folder in two_sites.items() for argument in ("--site", f"{name}={folder}")]


@pytest.fixture
def long_job(tmp_path: Path) -> Path:
    """A job that trains for minutes, so that there is time to disturb it."""
    return write_job(tmp_path / "long", JOB.replace("steps_per_round: 4", "steps_per_round: 3000"))


@pytest.mark.parametrize("killed", ["parent", "job"])
def test_a_site_that_is_killed_ends_the_run_with_its_name(
    long_job: Path, two_sites: dict[str, Path], tmp_path: Path, killed: str
) -> None:
    out, log = tmp_path / "run", tmp_path / "log.txt"
    with started("job", "run", long_job, *_sites(two_sites), "--out", out, log=log) as process:
        wait_until_ready(process, log)
        site_processes(out, "west")[killed].kill()
        assert process.wait(120) == 1
    assert "error:" in log.read_text()
    assert "west" in log.read_text().split("error:")[1]
    assert "Traceback" not in log.read_text()
    result = read_result(out)
    assert result.status == "failed"
    assert "west" in str(result.error)
    assert left_running(tmp_path) == []


def test_the_others_go_on_without_a_killed_site_where_the_job_allows(
    two_sites: dict[str, Path], tmp_path: Path
) -> None:
    text = JOB.replace("steps_per_round: 4", "steps_per_round: 150").replace("number: 2", "number: 2, quorum: 1")
    job = write_job(tmp_path / "patient", text)
    out, log = tmp_path / "run", tmp_path / "log.txt"
    with started("job", "run", job, *_sites(two_sites), "--out", out, "--no-baselines", log=log) as process:
        wait_until_ready(process, log)
        site_processes(out, "west")["parent"].kill()
        assert process.wait(200) == 0, log.read_text()
    result = read_result(out)
    assert result.status == "completed"
    assert list(result.lost_sites) == ["west"]
    assert result.sites["east"].federated is not None
    assert result.sites["west"].federated is None
    assert left_running(tmp_path) == []


def wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    wait_for(lambda: "sites ready" in log.read_text() or process.poll() is not None, "the sites are ready")
    assert process.poll() is None, log.read_text()
