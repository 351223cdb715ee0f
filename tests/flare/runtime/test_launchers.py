"""Launchers, the fork server that they start, and its forks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_context import FLContext

from oncofed.flare.runtime.forkserver import ForkServer, JobCommand
from oncofed.flare.runtime.launchers import SiteJobLauncher

_PROGRAM = """
import json, os, pathlib, sys
seen = {"parent": os.getppid()}
seen |= {"arguments": sys.argv[1:], "secret": os.environ["SECRET"], "main": __name__, "input": sys.stdin.read()}
seen["shown"] = pathlib.Path("/proc/self/cmdline").read_text() + pathlib.Path("/proc/self/environ").read_text()
pathlib.Path(sys.argv[1]).write_text(json.dumps(seen))
sys.exit(3)
"""


# These programs need nothing of what jobs need, which takes a fork server seconds to import.
_IMPORTS_NOTHING = """
import sys, types
preload = types.ModuleType("oncofed.flare.runtime.preload")
preload.import_all = lambda: ""
sys.modules[preload.__name__] = preload
"""


# A fork with another number of threads imports torch to set it.
_SAME_THREADS = {"OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"]}


@pytest.fixture(autouse=True)
def _small_fork_server(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(_IMPORTS_NOTHING)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))


@pytest.fixture
def launcher(_small_fork_server):
    made = SiteJobLauncher()
    made.handle_event(EventType.SYSTEM_START, FLContext())
    yield made
    made.handle_event(EventType.SYSTEM_END, FLContext())


def _command(folder: Path) -> JobCommand:
    (folder / "program.py").write_text(_PROGRAM)
    return JobCommand("program", [str(folder / "out.json")], {**_SAME_THREADS, "SECRET": "a-token-of-the-server"})


def test_a_job_is_a_fork_whose_command_line_shows_no_secret(launcher, tmp_path):
    handle = launcher._start(_command(tmp_path))
    assert psutil.Process(handle.pid).ppid() == launcher._fork_server.pid
    assert handle.wait() == handle.poll() == 3
    seen = json.loads((tmp_path / "out.json").read_text())
    assert seen["arguments"] == [str(tmp_path / "out.json")]
    assert seen["parent"] == os.getpid(), "FLARE ends a job's process with this one"
    assert (seen["main"], seen["secret"], seen["input"]) == ("__main__", "a-token-of-the-server", "")
    assert "a-token-of-the-server" not in seen["shown"]


def test_a_killed_job_has_a_status_even_without_its_fork_server(launcher, tmp_path):
    (tmp_path / "program.py").write_text("import time; time.sleep(60)")
    command = JobCommand("program", [], _SAME_THREADS)
    killed, orphan = launcher._start(command), launcher._start(command)
    assert os.getpgid(killed.pid) == killed.pid
    os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    launcher._fork_server.kill()
    assert orphan.poll() is None
    os.killpg(orphan.pid, signal.SIGKILL)
    assert orphan.wait() == -signal.SIGKILL


def test_a_restarted_process_has_new_stream_numbers(launcher, tmp_path):
    """FLARE drops repeated numbers, and forks share its import's time."""
    program = "import sys; from nvflare.fuel.f3.streaming.stream_utils import gen_stream_id; from pathlib import Path\n"
    (tmp_path / "program.py").write_text(program + "Path(sys.argv[1]).write_text(str(gen_stream_id()))")
    numbers = []
    for name in ("one", "other"):
        assert launcher._start(JobCommand("program", [str(tmp_path / name)], _SAME_THREADS)).wait() == 0
        numbers.append(int((tmp_path / name).read_text()))
    assert abs(numbers[0] - numbers[1]) > 1000


def test_jobs_start_after_the_fork_server_was_killed(launcher, tmp_path):
    before = launcher._fork_server.pid
    os.kill(before, signal.SIGKILL)
    assert launcher._start(_command(tmp_path)).wait() == 3
    assert launcher._fork_server.pid != before


def test_participants_share_a_fork_server_until_it_ends(tmp_path, monkeypatch):
    shared = ForkServer()
    monkeypatch.setenv("ONCOFED_FORK_SERVER", str(os.dup(shared.fileno())))
    made = SiteJobLauncher()
    made.handle_event(EventType.SYSTEM_START, FLContext())
    handle = made._start(_command(tmp_path))
    assert psutil.Process(handle.pid).ppid() == shared.pid
    assert handle.wait() == 3
    shared.kill()
    assert made._start(_command(tmp_path)).wait() == 3
    made.handle_event(EventType.SYSTEM_END, FLContext())


def test_a_fork_takes_its_thread_count_from_its_environment(tmp_path):
    (tmp_path / "threads.py").write_text(
        "import pathlib, sys, torch; pathlib.Path(sys.argv[1]).write_text(str(torch.get_num_threads()))"
    )
    server = ForkServer({**os.environ, "OMP_NUM_THREADS": "1"})
    for given, expected in (({"OMP_NUM_THREADS": "3,1"}, 3), ({}, len(os.sched_getaffinity(0)))):
        told = {"PYTHONPATH": str(tmp_path), **given}
        assert server.fork(JobCommand("threads", [str(tmp_path / "out")], told)).wait() == 0
        assert int((tmp_path / "out").read_text()) == expected
    server.close()


def test_a_fork_server_ends_with_its_parent():
    code = "import time; from oncofed.flare.runtime.forkserver import ForkServer; print(ForkServer().pid, flush=True)"
    parent = subprocess.Popen([sys.executable, "-c", f"{code}; time.sleep(60)"], stdout=subprocess.PIPE)
    server = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    server.wait(300)


def test_without_spare_no_fork_server_waits(tmp_path):
    made = SiteJobLauncher(spare=False)
    made.handle_event(EventType.SYSTEM_START, FLContext())
    assert made._fork_server is None
    assert made._start(_command(tmp_path)).wait() == 3
    assert made._fork_server is None
