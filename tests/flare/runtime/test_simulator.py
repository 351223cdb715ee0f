"""FLARE's simulator handles forked sites as programs that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from commands import wait_for
from oncofed.flare.patches import simulator_sites
from oncofed.flare.patches.simulator_sites import OpenPorts, SiteStarter
from oncofed.flare.runtime.forkserver import ForkedProcess, ForkServer, JobCommand
from oncofed.flare.runtime.simulator import start_site
from oncofed.processes import process_environment, stop_processes

_PROGRAM = """
import os, pathlib, sys, time
out = pathlib.Path(sys.argv[1])
out.with_suffix(".unfinished").write_text(
    f"{os.environ['COLOUR']} {os.getpid()} {os.getpgid(0)} {'HOME' in os.environ}"
)
out.with_suffix(".unfinished").rename(out)
time.sleep(float(sys.argv[2]))
sys.exit(int(sys.argv[3]))
"""


_OF_PLOTS = """
import sys
import monai.metrics
early = [name for name in ("matplotlib", "pandas", "sklearn") if name in sys.modules]
import matplotlib.pyplot
sys.exit(len(early))
"""


_OF_FLARE = """
import os, pathlib, sys, threading, time
from nvflare.private.fed.app.utils import check_parent_alive
over = threading.Event()
pathlib.Path(sys.argv[2]).touch()
threading.Thread(target=check_parent_alive, args=(int(sys.argv[1]), over)).start()
if sys.argv[3] == "its work is over":
    over.set()
time.sleep(60)
"""


# A simulation that is a fork itself.
_OF_SIMULATION = """
import os, pathlib, sys
from oncofed.flare.runtime.simulator import end_with

pathlib.Path(sys.argv[1]).touch()
end_with(os.getppid())
"""


@pytest.fixture(scope="module")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """A fork server that finds the sites' programs."""
    folder = tmp_path_factory.mktemp("programs")
    (folder / "program_of_site.py").write_text(_PROGRAM)
    (folder / "program_of_flare.py").write_text(_OF_FLARE)
    (folder / "program_of_plots.py").write_text(_OF_PLOTS)
    (folder / "program_of_simulation.py").write_text(_OF_SIMULATION)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    server = ForkServer({**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
    yield server
    server.kill()


@pytest.fixture
def start(fork_server: ForkServer, tmp_path: Path) -> Callable[[float, int], ForkedProcess]:
    """Start a site that sleeps, then ends with a status."""

    def start(seconds: float, status: int) -> ForkedProcess:
        command = [sys.executable, "-m", "program_of_site", str(tmp_path / "out.txt"), str(seconds), str(status)]
        return start_site(fork_server.fork, command, env={"COLOUR": "blue"}, shell=False, preexec_fn=os.setsid)

    return start


def test_a_site_runs_with_its_environment_and_returns_its_status(start, tmp_path: Path) -> None:
    site = start(0, 3)
    assert site.wait(300) == 3
    assert site.poll() == site.returncode == 3
    colour, pid, group, home = (tmp_path / "out.txt").read_text().split()
    assert (colour, home) == ("blue", "False")
    assert pid == group == str(site.pid)


def test_plotting_libraries_are_imported_on_use(fork_server: ForkServer) -> None:
    command = [sys.executable, "-m", "program_of_plots"]
    assert start_site(fork_server.fork, command, env={}, shell=False, preexec_fn=os.setsid).wait(300) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_running_site_can_be_awaited_and_ended(start, tmp_path: Path, number: signal.Signals) -> None:
    site = start(60, 0)
    wait_for((tmp_path / "out.txt").exists, "the site runs")
    assert site.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        site.wait(0.1)
    {signal.SIGTERM: site.terminate, signal.SIGKILL: site.kill}[number]()
    assert site.wait(300) == -number
    site.kill()  # it has ended: another process that got its number by now must not be hit


@pytest.mark.parametrize("what", ["its parent ended before", "its parent ends", "its work is over"])
def test_a_site_ends_with_its_parent_or_its_work(fork_server: ForkServer, tmp_path: Path, what: str) -> None:
    parent = subprocess.Popen(["sleep", "60"])
    if what == "its parent ended before":
        parent.kill()
        parent.wait()
    command = [sys.executable, "-m", "program_of_flare", str(parent.pid), str(tmp_path / "begun"), what]
    site = start_site(fork_server.fork, command, env={}, shell=False, preexec_fn=os.setsid)
    try:
        wait_for((tmp_path / "begun").exists, "the site runs")
        if what == "its parent ends":
            with pytest.raises(subprocess.TimeoutExpired):
                site.wait(1.5)
            parent.kill()
            parent.wait()
        assert site.wait(300) == -signal.SIGKILL
    finally:
        site.kill()
        parent.kill()
        parent.wait()


@pytest.mark.parametrize("has_ended", [False, True])
def test_a_forked_simulation_ends_with_the_process_that_requested_it(
    fork_server: ForkServer, tmp_path: Path, has_ended: bool
) -> None:
    parent = subprocess.Popen(["sleep", "60"])
    if has_ended:
        parent.kill()
        parent.wait()
    begun = tmp_path / "begun"
    command = JobCommand("program_of_simulation", [str(begun)], dict(os.environ), parent=parent.pid)
    simulation = fork_server.fork(command)
    wait_for(begun.exists, "it runs")
    if not has_ended:
        with pytest.raises(subprocess.TimeoutExpired):
            simulation.wait(0.5)
        parent.kill()
        parent.wait()
    assert simulation.wait(300) == -signal.SIGKILL


def test_forks_of_a_shared_server_are_stopped_with_their_own_run(fork_server: ForkServer, tmp_path: Path) -> None:
    arguments = {name: [str(tmp_path / name), "60", "0"] for name in ("one", "other")}
    environments = {name: {**process_environment(tmp_path / f"of {name}", 2), "COLOUR": name} for name in arguments}
    one, other = (
        fork_server.fork(JobCommand("program_of_site", arguments[name], environments[name])) for name in arguments
    )
    try:
        wait_for(lambda: all((tmp_path / name).exists() for name in arguments), "both run")
        stop_processes(tmp_path / "of one")
        assert one.wait(300) == -signal.SIGTERM
        assert other.poll() is None
    finally:
        stop_processes(tmp_path / "of other")
    assert other.wait(300) == -signal.SIGTERM


def test_sites_are_forks_of_one_process(start) -> None:
    sites = [start(60, 0) for _ in range(2)]
    try:
        first, second = (psutil.Process(site.pid) for site in sites)
        assert first.ppid() == second.ppid() != os.getpid()
    finally:
        for site in sites:
            site.kill()
            site.wait(300)


def test_sites_started_at_once_get_their_own_names() -> None:
    starter = SiteStarter("", SimpleNamespace(workspace="", set=None), [], None, None, {"rank": 1})
    both_wrote = threading.Barrier(2)

    def tell(name: str) -> dict[str, object]:
        starter.build_ctx["client_name"] = name
        both_wrote.wait(10)
        return starter.build_ctx

    with ThreadPoolExecutor(2) as threads:
        told = list(threads.map(tell, ["north", "south"]))
    assert told == [{"rank": 1, "client_name": "north"}, {"rank": 1, "client_name": "south"}]


def test_open_ports_are_unique(monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([[1], [1], [2], [2, 3], [4]])
    monkeypatch.setattr(simulator_sites, "get_open_ports", lambda number: next(found))
    ports = OpenPorts()
    assert [ports.take(1), ports.take(1), sorted(ports.take(2))] == [[1], [2], [3, 4]]
