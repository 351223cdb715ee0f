"""A small federation that things are done to: real server and sites from startup kits, disturbed on purpose."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from oncofed.alliance.kits import AllianceSpec
from oncofed.alliance.local import LocalAlliance, free_port
from oncofed.errors import FederationError
from oncofed.federation.events import EventReader
from oncofed.federation.folders import STATE_FOLDER
from oncofed.job.backends import FederatedJob
from oncofed.job.flare import export_job
from oncofed.job.spec import JobSpec
from oncofed.job.watch import RunState
from oncofed.processes import short_path

_PROCESS_MODULES = {
    "server": "nvflare.private.fed.app.server.server_train",
    "server job": "oncofed.federation.server_process",
    "site": "nvflare.private.fed.app.client.client_train",
    "site job": "nvflare.private.fed.app.client.worker_process",
}


class Link:
    """A TCP proxy on loopback between one site and the server, which can be cut and mended.

    Args:
        port: of the server.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._cut = threading.Event()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self.delay = 0.0
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End all connections and take no new ones."""
        self._cut.set()
        for pair in self._pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()

    def mend(self) -> None:
        """Take connections again."""
        self._cut.clear()

    def close(self) -> None:
        """Take nothing any more."""
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
            threading.Thread(target=self._carry, args=(near, far), daemon=True).start()

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        other = {near: far, far: near}
        with near, far, contextlib.suppress(OSError, ValueError):
            while True:
                for end in select.select([near, far], [], [])[0]:
                    data = end.recv(1 << 16)
                    if not data:
                        return
                    if self.delay:
                        time.sleep(self.delay)
                    other[end].sendall(data)


@dataclass
class Lab:
    """A running federation, and what was recorded of it so far.

    Attributes:
        alliance: its processes.
        job: the submitted job.
        links: site -> its link to the server.
        state: what the server recorded.
    """

    alliance: LocalAlliance
    job: FederatedJob
    links: dict[str, Link]
    state: RunState = field(default_factory=RunState)

    def __post_init__(self) -> None:
        self._reader = EventReader(self.job.events)

    def look(self) -> RunState:
        """Return what is known now."""
        for event in self._reader.read():
            self.state.apply(event)
        return self.state

    def wait(self, condition: Callable[[RunState], object], what: str, seconds: float = 180) -> RunState:
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
        """Return a process by its kind: "server", "server job", "site" or "site job"."""
        kit = str(self.alliance.kit(site)) if site else str(self.alliance.server_kit)
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                line = process.cmdline()
                if _PROCESS_MODULES[kind] in line and kit in line:
                    return process
        raise FederationError(f"there is no process {kind} {site}")

    def kill(self, kind: str, site: str = "") -> None:
        """Kill a process as the system does when memory is short."""
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
        """Let a process run one part of the time in ``factor``."""
        process = self.process(kind, site)
        with contextlib.suppress(psutil.Error):
            while not until() and process.is_running():
                process.send_signal(signal.SIGSTOP)
                time.sleep(0.05 * (factor - 1))
                process.send_signal(signal.SIGCONT)
                time.sleep(0.05)


def poison(kit: Path, kind: str) -> None:
    """Make a site send bad updates, as its owner could: a filter of its own on what leaves it."""
    local = kit / "local"
    resources = json.loads((local / "resources.json").read_text(encoding="utf-8"))
    resources["class_allow_list"].append("poison.Poison")
    (local / "resources.json").write_text(json.dumps(resources), encoding="utf-8")
    scope = {"name": "public", "task_result_filters": [{"path": "poison.Poison", "args": {"kind": kind}}]}
    privacy = {"scopes": [scope], "default_scope": "public"}
    (local / "privacy.json").write_text(json.dumps(privacy), encoding="utf-8")


@contextlib.contextmanager
def lab(spec: JobSpec, sites: dict[str, Path], folder: Path, poisoned: dict[str, str] | None = None) -> Iterator[Lab]:
    """Start a federation, submit a job, and stop all on leaving.

    Args:
        spec: the job.
        sites: site -> folder of its data.
        folder: for everything that is written.
        poisoned: site -> how its updates are bad; see ``poison.Poison``.
    """
    port = free_port()
    links = {site: Link(port) for site in sites}
    routes = {site: ("localhost", link.port) for site, link in links.items()}
    alliance_spec = AllianceSpec(sites=tuple(sites), port=port, routes=routes)
    datasets = {site: {spec.data.dataset: path} for site, path in sites.items()}
    job = export_job(spec, folder / "job" / spec.name)
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = paths
    try:
        _PoisonedAlliance.poisoned = poisoned or {}
        with (
            short_path(folder / "tmp") as temporary,
            _PoisonedAlliance(alliance_spec, folder / "kits", datasets, folder / "logs", temporary) as alliance,
        ):
            alliance.wait_registered()
            yield Lab(alliance, FederatedJob(alliance, job, 1), links)
    finally:
        _PoisonedAlliance.poisoned = {}
        for link in links.values():
            link.close()
        if before is None:
            os.environ.pop("PYTHONPATH")
        else:
            os.environ["PYTHONPATH"] = before


class _PoisonedAlliance(LocalAlliance):
    poisoned: dict[str, str] = {}  # noqa: RUF012 - set by ``lab`` before it is used

    def _prepare_kits(self) -> None:
        super()._prepare_kits()
        for site, kind in self.poisoned.items():
            poison(self.kit(site), kind)


def state_of(lab_: Lab) -> Path:
    """Return the folder in which the server keeps the run's state."""
    return lab_.alliance.server_kit / STATE_FOLDER / lab_.job.events.parent.name


Fault = Callable[[Lab], Any]
