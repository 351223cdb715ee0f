"""A site whose processes are gone for good: the run ends with its name."""

from __future__ import annotations

import contextlib
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from commands import left_running, started, wait_for
from oncofed.report.result import read_result
from synthetic import JOB, write_job

pytestmark = [pytest.mark.slow, pytest.mark.federation]


@pytest.mark.timeout(300)
def test_a_site_that_does_not_come_back_is_named(two_sites: dict[str, Path], tmp_path: Path) -> None:
    text = JOB.replace("steps_per_round: 4", "steps_per_round: 150")
    text = text.replace("number: 2", "number: 2, return_s: 1, quorum: 2")
    job = write_job(tmp_path / "patient", text)
    sites = [argument for name, folder in two_sites.items() for argument in ("--site", f"{name}={folder}")]
    out, log = tmp_path / "run", tmp_path / "log.txt"
    with started("job", "run", job, *sites, "--out", out, "--no-baselines", log=log) as process:
        _wait_until_ready(process, log)
        while process.poll() is None:
            _kill(out, "west")
            time.sleep(0.5)
        status = process.returncode
    result = read_result(out)
    assert "Traceback" not in log.read_text()
    assert left_running(tmp_path) == []
    assert (status, result.status) == (1, "failed")
    assert "west" in log.read_text().split("error:")[1]


def _kill(folder: Path, site: str) -> None:
    """Kill a site's processes, as often as they are started again."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if str(folder) in line and f"/prod_00/{site}" in line:
                process.kill()


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    wait_for(lambda: "sites ready" in log.read_text() or process.poll() is not None, "the sites are ready")
    assert process.poll() is None, log.read_text()
