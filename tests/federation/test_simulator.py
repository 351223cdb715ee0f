"""The simulator's sites are forks that FLARE's simulator handles as it does the programs that it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from oncofed.federation.simulator import _ForkedSite

_PROGRAM = """
import os, pathlib, sys, time
out = pathlib.Path(sys.argv[1])
out.with_suffix(".unfinished").write_text(f"{os.environ['COLOUR']} {os.getpid()} {os.getsid(0)} {'HOME' in os.environ}")
out.with_suffix(".unfinished").rename(out)
time.sleep(float(sys.argv[2]))
sys.exit(int(sys.argv[3]))
"""


def _site(folder: Path, seconds: float, status: int) -> _ForkedSite:
    (folder / "program_of_site.py").write_text(_PROGRAM)
    command = [sys.executable, "-m", "program_of_site", str(folder / "out.txt"), str(seconds), str(status)]
    return _ForkedSite(command, env={"COLOUR": "blue"}, shell=False, preexec_fn=os.setsid)


@pytest.fixture(autouse=True)
def _importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_site_runs_its_program_with_its_environment_and_says_how_it_ended(tmp_path: Path) -> None:
    site = _site(tmp_path, 0, 3)
    assert site.wait(30) == 3
    assert site.poll() == site.returncode == 3
    colour, pid, session, home = (tmp_path / "out.txt").read_text().split()
    assert (colour, home) == ("blue", "False")
    assert pid == session == str(site.pid)


def test_a_site_that_runs_on_is_waited_for_and_killed(tmp_path: Path) -> None:
    site = _site(tmp_path, 60, 0)
    assert site.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        site.wait(0.1)
    site.kill()
    assert site.wait(30) == -signal.SIGKILL


def test_sites_are_forks_of_one_process(tmp_path: Path) -> None:
    sites = [_site(tmp_path, 60, 0) for _ in range(2)]
    try:
        first, second = (psutil.Process(site.pid) for site in sites)
        assert first.ppid() == second.ppid() != os.getpid()
    finally:
        for site in sites:
            site.kill()
            site.wait(30)
