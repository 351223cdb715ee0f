"""Runs a job on this machine.

Either with a real server and sites on loopback, or in FLARE's simulator.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from oncofed.alliance.kits import APPROVED_CLASSES
from oncofed.alliance.local import LocalAlliance, free_port
from oncofed.alliance.session import quiet, submit_job
from oncofed.alliance.spec import AllianceSpec
from oncofed.client.datasets import DATASETS_FILE
from oncofed.errors import FederationError
from oncofed.flare.folders import STATE_FOLDER
from oncofed.flare.runtime.forkserver import ForkedProcess, JobCommand, Shared, request_fork
from oncofed.locking import require_locks
from oncofed.loopback import require_loopback
from oncofed.packs.load import loaded_packs
from oncofed.processes import (
    AT_ONCE_VARIABLE,
    compute_slots,
    end_with_parent,
    process_environment,
    short_path,
    stop_processes,
)
from oncofed.report.result import Backend
from oncofed.rounds.events import EVENTS_FILE

Datasets = dict[str, dict[str, Path]]

_END_TIMEOUT_SECONDS = 120.0
_SECONDS_BETWEEN_STATUS = 2.0
# After its last round a job ends within a second or two.
_SECONDS_BETWEEN_STATUS_AT_END = 0.2
# FLARE's simulator gives every job this id.
_SIMULATED = "simulate_job"


class Running(Protocol):
    """A job that runs."""

    @property
    def events(self) -> Path:
        """The server's record.

        Absent before the start and perhaps after the end.
        """

    def require_going(self) -> None:
        """Raise ``FederationError`` if the run cannot finish."""

    def ended(self) -> str | None:
        """Return how the job ended; None while it runs.

        Names the site that ended it if known.
        """

    def fetch(self) -> Path:
        """Wait for the end; return the folder of results.

        It holds the record and the models.
        """

    def state_of(self, site: str) -> Path:
        """Return the folder of what a site keeps of the job."""


class FederatedJob:
    """A job submitted with the engineer's kit.

    Attributes:
        id: FLARE's id of the job.
    """

    def __init__(self, alliance: LocalAlliance, job: Path, min_sites: int) -> None:
        self._alliance = alliance
        self._min_sites = min_sites
        self._session = alliance.session()
        self._polled = 0.0
        self.id = submit_job(self._session, job)

    @property
    def events(self) -> Path:
        """The server's record of the run."""
        return self._alliance.server_kit / STATE_FOLDER / self.id / EVENTS_FILE

    def require_going(self) -> None:
        """Raise if the run cannot finish."""
        self._alliance.restart_killed()
        ended = self._alliance.ended()
        sites = [site for site in self._alliance.spec.sites if site not in ended]
        if self._alliance.spec.server in ended or len(sites) < self._min_sites:
            self._alliance.require_alive()

    def state_of(self, site: str) -> Path:
        """Return the folder of what a site keeps of the job."""
        return self._alliance.kit(site) / STATE_FOLDER / self.id

    def ended(self) -> str | None:
        """Return how the job ended; None while it runs."""
        return self._ended(_SECONDS_BETWEEN_STATUS)

    def _ended(self, pause: float) -> str | None:
        if time.monotonic() - self._polled < pause:
            return None
        self._polled = time.monotonic()
        try:
            with quiet():
                status = str(self._session.get_job_status(self.id))
        except Exception:  # noqa: BLE001 - the client library raises many types for a server that is being restarted
            with contextlib.suppress(Exception):
                self._session = self._alliance.renew_session()
            return None
        if not status.startswith("FINISHED"):
            return None
        site = self._alliance.site_that_failed(self.id)
        ended = status.removeprefix("FINISHED:")
        return f"{ended}: {site}'s job process ended abruptly" if site else ended

    def fetch(self) -> Path:
        """Wait for the end; return the folder of results."""
        deadline = time.monotonic() + _END_TIMEOUT_SECONDS
        while self._ended(_SECONDS_BETWEEN_STATUS_AT_END) is None:
            self._alliance.restart_killed()
            if time.monotonic() > deadline:
                raise FederationError(f"the job did not end within {_END_TIMEOUT_SECONDS:.0f} s after its last round")
            self.require_going()
            time.sleep(0.1)
        with quiet():
            fetched: str = self._session.download_job_result(self.id)
        return Path(fetched) / "workspace"


def _start_simulator(
    arguments: list[str], environment: dict[str, str], output: IO[bytes]
) -> subprocess.Popen[bytes] | ForkedProcess:
    module = "oncofed.flare.runtime.simulator"
    if Shared.requests:
        return request_fork(Shared.requests, JobCommand(module, arguments, environment), output.fileno())
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
        preexec_fn=end_with_parent,  # noqa: PLW1509 - no other thread runs here
    )


class _SimulatedJob:
    def __init__(self, process: subprocess.Popen[bytes] | ForkedProcess, server: Path, console: Path) -> None:
        self._process = process
        self._server = server
        self._console = console

    @property
    def events(self) -> Path:
        return self._server / STATE_FOLDER / _SIMULATED / EVENTS_FILE

    def state_of(self, site: str) -> Path:
        return self._server.parent / site / STATE_FOLDER / _SIMULATED

    def require_going(self) -> None:
        code = self._process.poll()
        if code and not self.events.is_file():
            raise FederationError(f"FLARE's simulator ended with status {code}. Its log: {self._console}")

    def ended(self) -> str | None:
        code = self._process.poll()
        return None if code is None else f"status {code}"

    def fetch(self) -> Path:
        # The simulator fills the run folder after the last event was written.
        try:
            self._process.wait(_END_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            raise FederationError(
                f"FLARE's simulator did not end within {_END_TIMEOUT_SECONDS:.0f} s after the last round. "
                f"Its log: {self._console}"
            ) from None
        run_dir = self._server / _SIMULATED
        if not (run_dir / EVENTS_FILE).is_file():
            raise FederationError(f"FLARE's simulator left no record. Its log: {self._console}")
        return run_dir


def require_machine(folder: Path) -> None:
    """Check that this machine and folder allow runs.

    Args:
        folder: of the run.

    Raises:
        TransferError: this machine cannot reach itself.
        FederationError: no file can be locked in the folder.
    """
    require_loopback()
    require_locks(folder, "Name a folder on a disk of this machine with --out.")


@contextmanager
def started(
    kind: Backend, job: Path, datasets: Datasets, min_sites: int, work: Path, logs: Path, port: int | None = None
) -> Iterator[Running]:
    """Run an exported job on this machine; see ``federation`` and ``simulation``.

    Args:
        kind: FLARE's real server and sites, or its simulator.
        job: the exported job folder.
        datasets: site -> dataset name -> folder.
        min_sites: fewest sites that the job needs.
        work: for FLARE's files.
        logs: for the output of the processes.
        port: of the server; None takes a free one.
    """
    with short_path(work / "tmp") as temporary:
        if kind == "simulate":
            running = simulation(job, datasets, work / "simulator", logs, temporary)
        else:
            running = federation(job, datasets, min_sites, work / "alliance", logs, temporary, port)
        with running as one:
            yield one


@contextmanager
def federation(
    job: Path, datasets: Datasets, min_sites: int, workspace: Path, logs: Path, temporary: Path, port: int | None
) -> Iterator[Running]:
    """Run a job on a new local alliance.

    The job is submitted with the engineer's kit. On leaving, server and sites are stopped.

    Args:
        job: the exported job folder.
        datasets: site -> dataset name -> folder.
        min_sites: fewest sites that the job needs.
        workspace: for startup kits and FLARE's files.
        logs: for the output of the processes.
        temporary: for the processes' temporary files.
        port: of the server; None takes a free one.
    """
    spec = AllianceSpec(sites=tuple(datasets), port=port or free_port())
    with LocalAlliance(spec, workspace, datasets, logs, temporary, packs=loaded_packs()) as alliance:
        alliance.wait_registered()
        yield FederatedJob(alliance, job, min_sites)


@contextmanager
def simulation(job: Path, datasets: Datasets, workspace: Path, logs: Path, temporary: Path) -> Iterator[Running]:
    """Run a job in FLARE's simulator.

    On leaving, all its processes end.

    Args:
        job: the exported job folder.
        datasets: site -> dataset name -> folder.
        workspace: the simulator's folder, new or empty.
        logs: for its output.
        temporary: for the processes' temporary files.
    """
    local = workspace / "local"
    local.mkdir(parents=True, exist_ok=True)
    registered = {site: {name: str(folder.resolve()) for name, folder in d.items()} for site, d in datasets.items()}
    (local / DATASETS_FILE).write_text(json.dumps(registered, indent=2), encoding="utf-8")
    resources = {
        "format_version": 2,
        "class_list_enforcement_mode": "enforce",
        "class_allow_list": list(APPROVED_CLASSES),
    }
    (local / "resources.json").write_text(json.dumps(resources, indent=2), encoding="utf-8")
    logs.mkdir(parents=True, exist_ok=True)
    console = logs / "simulator.txt"
    environment = {**process_environment(temporary, len(datasets)), AT_ONCE_VARIABLE: str(compute_slots(len(datasets)))}
    with console.open("wb") as output:
        process = _start_simulator([str(job.resolve()), str(workspace.resolve()), *datasets], environment, output)
    try:
        yield _SimulatedJob(process, workspace / "server", console)
    finally:
        stop_processes(temporary)
        process.wait()
