"""A permanently lost site ends the run, by name."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import psutil
import pytest

from commands import Forked, forked, left_running, wait_for
from oncofed.report.result import Result, read_result
from synthetic import JOB, write_job

pytestmark = [pytest.mark.slow, pytest.mark.federation]


@pytest.mark.thorough
def test_a_site_that_does_not_come_back_is_named(two_sites: dict[str, Path], tmp_path: Path) -> None:
    status, result, printed = _run_without_west(two_sites, tmp_path, quorum=2)
    assert (status, result.status) == (1, "failed")
    assert "west" in printed.split("error:")[1]


@pytest.mark.thorough
def test_with_a_quorum_of_one_the_run_ends_without_the_lost_site(two_sites: dict[str, Path], tmp_path: Path) -> None:
    status, result, printed = _run_without_west(two_sites, tmp_path, quorum=1)
    assert (status, result.status) == (0, "completed"), printed
    assert list(result.lost_sites) == ["west"]
    for number, took_part in result.participation.items():
        assert took_part["in_time"] == ["east"], number
    assert result.sites["east"].federated is not None
    assert result.sites["west"].federated is None
    assert "west" in (tmp_path / "run" / "report.html").read_text()


def _run_without_west(two_sites: dict[str, Path], folder: Path, quorum: int) -> tuple[int | None, Result, str]:
    """Run a job, losing a site once all are ready.

    Returns exit status, result, and output.
    """
    text = JOB.replace("steps_per_round: 4", "steps_per_round: 80")
    text = text.replace("number: 2", f"number: 2, return_s: 1, quorum: {quorum}")
    job = write_job(folder / "patient", text)
    sites = [argument for name, path in two_sites.items() for argument in ("--site", f"{name}={path}")]
    out, log = folder / "run", folder / "log.txt"
    with forked("job", "run", job, *sites, "--out", out, "--no-baselines", log=log) as process:
        _wait_until_ready(process, log)
        while process.poll() is None:
            _kill(out, "west")
            time.sleep(0.5)
        status = process.returncode
    assert "Traceback" not in log.read_text()
    assert left_running(folder) == []
    return status, read_result(out), log.read_text()


def _kill(folder: Path, site: str) -> None:
    """Kill a site's processes, also restarted ones."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if str(folder) in line and f"/prod_00/{site}" in line:
                process.kill()


def _wait_until_ready(process: Forked, log: Path) -> None:
    wait_for(lambda: "sites ready" in log.read_text() or process.poll() is not None, "the sites are ready")
    assert process.poll() is None, log.read_text()
