"""Tests of the processes that wait for a job."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_context import FLContext

from oncofed.federation.job_process import order
from oncofed.federation.launchers import SiteJobLauncher

_PROGRAM = """
import json, os, pathlib, sys
seen = {"arguments": sys.argv[1:], "secret": os.environ["SECRET"], "main": __name__, "input": sys.stdin.read()}
seen["shown"] = pathlib.Path("/proc/self/cmdline").read_text() + pathlib.Path("/proc/self/environ").read_text()
pathlib.Path(sys.argv[1]).write_text(json.dumps(seen))
sys.exit(3)
"""


@pytest.fixture
def launcher(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = SiteJobLauncher()
    made.handle_event(EventType.SYSTEM_START, FLContext())
    yield made
    made.handle_event(EventType.SYSTEM_END, FLContext())


def _line(folder: Path) -> bytes:
    (folder / "program.py").write_text(_PROGRAM)
    return order("program", [str(folder / "out.json")], {"SECRET": "a-token-of-the-server"})


def test_a_spare_process_becomes_what_it_is_told_and_shows_no_secret(launcher, tmp_path):
    spare = launcher._spare
    handle = launcher._start(_line(tmp_path))
    handle.wait()
    seen = json.loads((tmp_path / "out.json").read_text())
    assert handle.adapter.pid == spare.pid
    assert handle.adapter.poll() == 3
    assert seen["arguments"] == [str(tmp_path / "out.json")]
    assert (seen["main"], seen["secret"], seen["input"]) == ("__main__", "a-token-of-the-server", "")
    assert "a-token-of-the-server" not in seen["shown"]


def test_a_spare_process_that_was_killed_costs_no_job(launcher, tmp_path):
    spare = launcher._spare
    spare.kill()
    spare.wait()
    handle = launcher._start(_line(tmp_path))
    handle.wait()
    assert handle.adapter.pid != spare.pid
    assert handle.adapter.poll() == 3


def test_a_spare_process_ends_with_its_parent():
    code = "import time; from oncofed.federation import launchers as l; print(l._waiting_process().pid, flush=True)"
    parent = subprocess.Popen([sys.executable, "-c", f"{code}; time.sleep(60)"], stdout=subprocess.PIPE)
    spare = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    spare.wait(60)


def test_no_spare_process_where_the_owner_wants_none():
    made = SiteJobLauncher(spare=False)
    made.handle_event(EventType.SYSTEM_START, FLContext())
    assert made._spare is None
