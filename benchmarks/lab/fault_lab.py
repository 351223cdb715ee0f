"""A real small federation to inject faults into."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

import oncofed
from oncofed.alliance.kits import PRIVACY_FILE, rewrite
from oncofed.alliance.local import LocalAlliance, free_port
from oncofed.alliance.spec import AllianceSpec
from oncofed.errors import FederationError
from oncofed.job.backends import FederatedJob, simulation
from oncofed.job.flare import export_job
from oncofed.job.progress import RunProgress
from oncofed.job.spec import JobSpec
from oncofed.processes import JOB_PROCESS, short_path
from oncofed.rounds.events import EventReader, Excluded, Unknown

_SO_ATTACH_FILTER = 26
_PROCESS_MODULES = {
    "server": "nvflare.private.fed.app.server.server_train",
    "site": "nvflare.private.fed.app.client.client_train",
}


class Link:
    """A TCP proxy between site and server, with faults.

    Args:
        port: of the server.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._cut = threading.Event()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._loss = 0.0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End all connections and accept no new ones."""
        self._cut.set()
        for pair in self._pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()

    def mend(self) -> None:
        """Accept connections again."""
        self._cut.clear()

    def lose(self, share: float) -> None:
        """Drop a share of the packets."""
        self._loss = share
        for pair in self._pairs:
            for end in pair:
                _drop_packets(end, share)

    def close(self) -> None:
        """Stop accepting."""
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._cut.is_set():
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            self._pairs.append((near, far))
            if self._loss:
                for end in (near, far):
                    _drop_packets(end, self._loss)
            threading.Thread(target=self._carry, args=(near, far), daemon=True).start()

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        other = {near: far, far: near}
        with near, far, contextlib.suppress(OSError, ValueError):
            while True:
                for end in select.select([near, far], [], [])[0]:
                    data = end.recv(1 << 16)
                    if not data:
                        return
                    other[end].sendall(data)
                    if self._ends_after(near, len(data), up=end is near):
                        return

    def _ends_after(self, near: socket.socket, count: int, up: bool) -> bool:
        """Return whether to end a connection after these bytes."""
        del near, count, up
        return False


def _drop_packets(end: socket.socket, share: float) -> None:
    """Attach a filter that drops packets (Linux socket(7), SO_ATTACH_FILTER)."""
    load_random, jump_if_less, give_back = 0x20, 0x35, 0x06
    random_number = (-0x1000 + 56) & 0xFFFFFFFF  # linux/filter.h: SKF_AD_OFF + SKF_AD_RANDOM
    program = [
        (load_random, 0, 0, random_number),
        (jump_if_less, 0, 1, int((1 - share) * 2**32)),
        (give_back, 0, 0, 0),
        (give_back, 0, 0, 0xFFFFFFFF),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    with contextlib.suppress(OSError):  # it was closed meanwhile
        end.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(program), ctypes.addressof(code)))


@dataclass
class Lab:
    """A running federation with its record.

    Attributes:
        alliance: its processes.
        job: the submitted job.
        links: site -> its link to the server.
        folder: of everything that is written.
        spec: the job as it was submitted first.
        state: what the server recorded.
    """

    alliance: LocalAlliance
    job: FederatedJob
    links: dict[str, Link]
    folder: Path
    spec: JobSpec
    state: RunProgress = field(default_factory=RunProgress)

    def __post_init__(self) -> None:
        self._reader = EventReader(self.job.events)

    def submit(self, spec: JobSpec) -> None:
        """Submit another job, and follow it from now on."""
        self.job = _submitted(self.alliance, spec, self.folder)
        self.state, self._reader = RunProgress(), EventReader(self.job.events)

    def look(self) -> RunProgress:
        """Return the present state."""
        for event in self._reader.read():
            assert not isinstance(event, Unknown), event
            self.state.apply(event)
        return self.state

    def wait(self, condition: Callable[[RunProgress], object], what: str, seconds: float = 300) -> RunProgress:
        """Wait until the record fulfils a condition.

        Raises:
            FederationError: the run failed, or it took too long.
        """
        deadline = time.monotonic() + seconds
        while not condition(self.look()):
            self.alliance.restart_killed()
            if self.state.failed:
                raise FederationError(self.state.failed)
            if time.monotonic() > deadline:
                raise FederationError(f"not within {seconds:.0f} s: {what}; {self.state}")
            time.sleep(0.1)
        return self.state

    def process(self, kind: str, site: str = "") -> psutil.Process:
        """Return a process by its kind.

        "server", "server job", "site" or "site job".
        """
        role, _, job = kind.partition(" ")
        kit = str(self.alliance.kit(site)) if site else str(self.alliance.server_kit)
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                line = process.cmdline()
                if job and process.name() == JOB_PROCESS and process.cwd() == kit:
                    return process
                if not job and _PROCESS_MODULES[role] in line and kit in line:
                    return process
        raise FederationError(f"there is no process {kind} {site}")

    def kill(self, kind: str, site: str = "") -> None:
        """Kill a process like the kernel out of memory."""
        self.process(kind, site).kill()

    @contextlib.contextmanager
    def stopped(self, kind: str, site: str) -> Iterator[None]:
        """Let a process hang while the block runs."""
        process = self.process(kind, site)
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGCONT)

    def slow_down(self, kind: str, site: str, factor: int, until: Callable[[], bool]) -> None:
        """Slow a process down by ``factor``."""
        process = self.process(kind, site)
        with contextlib.suppress(psutil.Error):
            while not until() and process.is_running():
                process.send_signal(signal.SIGSTOP)
                time.sleep(0.05 * (factor - 1))
                process.send_signal(signal.SIGCONT)
                time.sleep(0.05)

    @contextlib.contextmanager
    def full_disk(self, kind: str, site: str) -> Iterator[None]:
        """Limit a process's files to a few bytes.

        While the block runs.
        """
        process = self.process(kind, site)
        before = process.rlimit(resource.RLIMIT_FSIZE)
        process.rlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            yield
        finally:
            with contextlib.suppress(psutil.Error):
                process.rlimit(resource.RLIMIT_FSIZE, before)

    @contextlib.contextmanager
    def twin(self, site: str) -> Iterator[subprocess.Popen[bytes]]:
        """Start a second site from a copied kit.

        While the block runs.
        """
        kit = self.folder / "twin" / site
        shutil.copytree(self.alliance.kit(site), kit, ignore=shutil.ignore_patterns("oncofed", "*.fl", "pid.*"))
        with (self.folder / "logs" / f"{site}-twin.txt").open("wb") as log:
            process = self.alliance.start_kit(kit, log)
        try:
            yield process
        finally:
            for child in psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    child.kill()
            process.kill()
            process.wait()


def allow_class(kit: Path, path: str) -> None:
    """Let a site build a class not allowed by oncofed.

    Its owner could do the same.
    """

    def allow(resources: dict[str, Any]) -> None:
        if path not in resources["class_allow_list"]:
            resources["class_allow_list"].append(path)

    change_resources(kit, allow)


def change_resources(kit: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a kit's ``local/resources.json``, as its owner could."""
    file = kit / "local" / "resources.json"
    rewrite(file, file, change)


def poison(kit: Path, kind: str, guarded: bool = False) -> None:
    """Make a site send bad updates by a local filter.

    From its next job on.

    Args:
        kit: of the site.
        kind: see ``poison.Poison``.
        guarded: let the site's own guard see them; a site that means it would take it away.
    """
    allow_class(kit, "poison.Poison")

    def add_filter(privacy: dict[str, Any]) -> None:
        privacy["scopes"][0]["task_result_filters"] = [{"path": "poison.Poison", "args": {"kind": kind}}]
        if not guarded:
            privacy["components"] = []

    rewrite(kit / "local" / PRIVACY_FILE, kit / "local" / PRIVACY_FILE, add_filter)


class DisturbedAlliance(LocalAlliance):
    """An alliance with bad sites in it.

    Args:
        arguments: of ``LocalAlliance``.
        environments: participant -> further environment variables of its processes.
        prepared: called with the alliance when its kits are there and nothing was started yet.
        shares_fork_server: see ``LocalAlliance``.
    """

    def __init__(
        self,
        *arguments: Any,
        environments: dict[str, dict[str, str]],
        prepared: Callable[[LocalAlliance], None],
        shares_fork_server: bool = True,
    ) -> None:
        super().__init__(*arguments)
        self.shares_fork_server = shares_fork_server
        self._prepared = prepared
        self._environments = environments

    def _environment(self, participant: str) -> dict[str, str]:
        usual = super()._environment(participant)
        own = self._environments.get(participant, {})
        paths = [own.get("PYTHONPATH", ""), str(Path(__file__).parent), usual.get("PYTHONPATH", "")]
        return {**usual, **own, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}

    def _has_usual_modules(self, environment: dict[str, str]) -> bool:
        # Whoever shares a fork server among labs starts it with this folder's modules.
        return environment["PYTHONPATH"] == self._environment("")["PYTHONPATH"]

    def _prepare_kits(self) -> None:
        super()._prepare_kits()
        self._prepared(self)


def another_version(folder: Path, version: str) -> dict[str, str]:
    """Return an environment with another version of oncofed."""
    copy = folder / "oncofed"
    source = Path(oncofed.__file__).parent
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "__init__.py").write_text(f'"""Another version."""\n\n__version__ = "{version}"\n', encoding="utf-8")
    return {"PYTHONPATH": str(folder)}


def another_clock(folder: Path, seconds: float) -> dict[str, str]:
    """Return the environment of a site with a wrong clock."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(
        f"import time\n\n_true = time.time\ntime.time = lambda: _true() + {seconds}\n", encoding="utf-8"
    )
    return {"PYTHONPATH": str(folder)}


@contextlib.contextmanager
def lab(
    spec: JobSpec,
    sites: dict[str, Path],
    folder: Path,
    poisoned: dict[str, str] | None = None,
    environments: dict[str, dict[str, str]] | None = None,
    more: dict[str, dict[str, Path]] | None = None,
    prepared: Callable[[LocalAlliance], None] = lambda _: None,
    shares_fork_server: bool = True,
) -> Iterator[Lab]:
    """Start a federation with a job; stop it on leaving.

    Args:
        spec: the job.
        sites: site -> folder of its data.
        folder: for everything that is written.
        poisoned: site -> how its updates are bad; see ``poison.Poison``.
        environments: site -> further environment variables of its processes.
        more: site -> other datasets by name, for later jobs.
        prepared: called with the alliance when its kits are there and nothing was started yet.
        shares_fork_server: see ``LocalAlliance``.
    """
    port = free_port()
    links = {site: Link(port) for site in sites}
    routes = {site: ("localhost", link.port) for site, link in links.items()}
    alliance_spec = AllianceSpec(sites=tuple(sites), port=port, routes=routes)
    datasets = {site: {spec.data.dataset: path, **(more or {}).get(site, {})} for site, path in sites.items()}

    def prepare(alliance: LocalAlliance) -> None:
        for site, kind in (poisoned or {}).items():
            poison(alliance.kit(site), kind)
        prepared(alliance)

    try:
        with (
            short_path(folder / "tmp") as temporary,
            DisturbedAlliance(
                *(alliance_spec, folder / "kits", datasets, folder / "logs", temporary),
                environments=environments or {},
                prepared=prepare,
                shares_fork_server=shares_fork_server,
            ) as alliance,
        ):
            alliance.wait_registered()
            yield Lab(alliance, _submitted(alliance, spec, folder), links, folder, spec)
    finally:
        for link in links.values():
            link.close()


@contextlib.contextmanager
def undisturbed(
    spec: JobSpec, sites: dict[str, Path], folder: Path
) -> Iterator[Callable[[], tuple[RunProgress, Path]]]:
    """Run a job in the simulator, without faults.

    Yields:
        Waits for the run's end, and returns its record and the folder with its models.
    """
    job = export_job(spec, folder / "job" / spec.name)
    datasets = {site: {spec.data.dataset: path} for site, path in sites.items()}
    with (
        short_path(folder / "tmp") as temporary,
        simulation(job, datasets, folder / "simulator", folder / "logs", temporary) as running,
    ):

        def result() -> tuple[RunProgress, Path]:
            while running.ended() is None:
                running.require_going()
                time.sleep(0.1)
            state = RunProgress()
            for event in EventReader(running.events).read():
                state.apply(event)
            return state, running.fetch()

        yield result


def _submitted(alliance: LocalAlliance, spec: JobSpec, folder: Path) -> FederatedJob:
    return FederatedJob(alliance, export_job(spec, folder / "job" / spec.name, force=True), 1)


def excluded(state: RunProgress) -> dict[str, str]:
    """Return the reasons of excluded sites."""
    return {event.site: event.reason for event in state.incidents if isinstance(event, Excluded)}
