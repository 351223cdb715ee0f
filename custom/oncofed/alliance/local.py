"""An alliance on one machine, with a process per participant."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

import torch
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session
from typing_extensions import Self

from oncofed.alliance.authority import Authority
from oncofed.alliance.contents import add_contents
from oncofed.alliance.kits import keep_storage_inside, provision, start_process
from oncofed.alliance.sealing import sign_folder
from oncofed.alliance.session import quiet
from oncofed.alliance.spec import AllianceSpec
from oncofed.client.datasets import DATASETS_FILE, datasets_entry
from oncofed.errors import FederationError, NotEnoughSitesError, TransferError
from oncofed.flare.patches.own_loopback import use_own_loopback
from oncofed.flare.runtime.forkserver import FORK_SERVER_VARIABLE, ForkServer, Shared
from oncofed.flare.runtime.resources import LENDING_FILE, SiteOffer
from oncofed.locking import require_locks
from oncofed.loopback import connect, free_port, require_loopback, why_not_bound
from oncofed.packs.approvals import write_decision
from oncofed.packs.pack import Pack
from oncofed.processes import THREADS_VARIABLE, process_environment, share_of_threads, stop_processes

__all__ = ["LocalAlliance", "free_port", "require_free_loopback_port"]

_START_TIMEOUT_SECONDS = 90.0
_MOST_RESTARTS = 3
_SESSION_SECONDS = 60.0


class LocalAlliance:
    """Provisions, starts and stops an alliance on loopback.

    Use it as a context manager.

    Args:
        spec: the participants; the server must be this machine.
        workspace: folder for kits and the server's storage.
        datasets: site -> dataset name -> folder.
        logs: folder for the processes' output.
        temporary: folder for the processes' temporary files.
        authority: of the alliance; None: a new one.
        packs: code that all sites approve in advance: whoever runs them on one machine wrote it.

    Attributes:
        shares_fork_server: all participants fork their job processes from one fork server; False gives each
            participant its own, as on separate machines.
    """

    shares_fork_server = True

    def __init__(
        self,
        spec: AllianceSpec,
        workspace: Path,
        datasets: dict[str, dict[str, Path]],
        logs: Path,
        temporary: Path,
        authority: Authority | None = None,
        packs: Sequence[Pack] = (),
    ) -> None:
        self.spec = spec
        self._packs = packs
        self._authority = authority or Authority.new(spec.name)
        self.workspace = workspace.resolve()
        self._logs = logs.resolve()
        self._datasets = datasets
        self._temporary = temporary.absolute()
        self._kits = Path()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._fork_server: ForkServer | None = None
        self._common: dict[str, str] = {}
        self._session: Session | None = None
        self._restarts: dict[str, int] = {}

    def __enter__(self) -> Self:
        try:
            require_free_loopback_port(self.spec.port)
            use_own_loopback()  # for this process's session with the server
            self.workspace.mkdir(parents=True, exist_ok=True)
            require_locks(self.workspace, "Put it onto a disk of this machine.")
            self._kits = provision(self.spec, self.workspace, self._authority)
            self._prepare_kits()
            self._start(self.spec.server)
            self._wait_for_port(self.spec.server, self.spec.server, self.spec.port)
            for name, relay in self.spec.relays.items():
                self._start(name)
                self._wait_for_port(name, relay.host, relay.port)
            for site in self.spec.sites:
                self._start(site)
            return self
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def kit(self, participant: str) -> Path:
        """Return the folder of a participant's kit."""
        return self._kits / participant

    @property
    def server_kit(self) -> Path:
        """The server's kit and workspace folder."""
        return self.kit(self.spec.server)

    def session(self) -> Session:
        """Return the engineer's session with the server, over mutual TLS."""
        deadline = time.monotonic() + _SESSION_SECONDS
        while self._session is None:
            try:
                with quiet():
                    self._session = new_secure_session(self.spec.engineer, str(self.kit(self.spec.engineer)))
            except Exception:  # noqa: PERF203 - retried twice a second
                # The port opens before the server can authenticate itself.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
        return self._session

    def renew_session(self) -> Session:
        """Replace the session after a restart of the server.

        A restarted server does not know the old one.
        """
        with contextlib.suppress(Exception), quiet():
            if self._session is not None:
                self._session.close()
        self._session = None
        return self.session()

    def wait_registered(self) -> None:
        """Wait until every site is registered.

        Raises:
            NotEnoughSitesError: sites did not register in time.
            FederationError: a process ended.
        """
        expected = set(self.spec.sites)
        deadline = time.monotonic() + _START_TIMEOUT_SECONDS
        session = self.session()
        while True:
            with quiet():
                registered = {client.name for client in session.get_connected_client_list()}
            if registered >= expected:
                return
            self.require_alive()
            if time.monotonic() > deadline:
                missing = ", ".join(sorted(expected - registered))
                raise NotEnoughSitesError(
                    f"only {len(registered)} of {len(expected)} sites registered within "
                    f"{_START_TIMEOUT_SECONDS:.0f} s; missing: {missing}. Their logs: {self._logs}"
                )
            time.sleep(0.2)

    def ended(self) -> dict[str, int]:
        """Return participant -> exit status of ended processes."""
        return {name: code for name, process in self._processes.items() if (code := process.poll()) is not None}

    def restart_killed(self) -> None:
        """Restart killed processes a few times.

        A real site's service does the same.
        """
        for name, code in self.ended().items():
            if (code < 0 or code == 128 + signal.SIGKILL) and self._restarts.get(name, 0) < _MOST_RESTARTS:
                self._restarts[name] = self._restarts.get(name, 0) + 1
                self._start(name)

    def require_alive(self) -> None:
        """Require that every process is running.

        Raises:
            FederationError: names the participant and its last error.
        """
        for name, code in self.ended().items():
            role = "the server" if name == self.spec.server else name
            ended = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
            raise FederationError(f"{role} {ended}. Its log: {self._console(name)}{self._last_words(name)}")

    def site_that_failed(self, job_id: str) -> str | None:
        """Return the site whose failure ended the job.

        None if there is none.
        """
        log = self._console(self.spec.server).read_text(encoding="utf-8", errors="replace")
        found = re.search(rf"Failing job {re.escape(job_id)} due to reported failure from (\S+?):", log)
        return found[1] if found else None

    def pids(self) -> dict[str, int]:
        """Return participant -> process id."""
        return {name: process.pid for name, process in self._processes.items()}

    def close(self) -> None:
        """Stop all processes and their children."""
        if self._session is not None:
            with contextlib.suppress(Exception), quiet():
                self._session.close()
            self._session = None
        if self._fork_server:
            self._fork_server.close()
        stop_processes(self._temporary)
        if self._fork_server:
            self._fork_server.kill()
            self._fork_server = None
        for process in self._processes.values():
            process.wait()
        self._processes.clear()

    def _prepare_kits(self) -> None:
        for name in self.spec.everybody:
            add_contents(self.kit(name), self.spec, name, self._authority)
            sign_folder(self.kit(name), self._authority)
        keep_storage_inside(self.server_kit)
        for site in self.spec.sites:
            local = self.kit(site) / "local"
            (local / DATASETS_FILE).write_bytes(datasets_entry(site, self._datasets[site]))
            if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
                # A CPU build of torch means that the user wants the CPU, whatever GPU the machine has.
                (local / LENDING_FILE).write_bytes(SiteOffer(gpus=()).to_json())
            for pack in self._packs:
                write_decision(local, pack, "approved", "oncofed", "the own code of who runs this on one machine")

    def _console(self, participant: str) -> Path:
        name = "server" if participant == self.spec.server else participant
        return self._logs / f"{name}.txt"

    def _last_words(self, participant: str) -> str:
        with contextlib.suppress(OSError):
            lines = self._console(participant).read_text(encoding="utf-8", errors="replace").strip().splitlines()
            errors = [line for line in lines if "Error" in line or "ERROR" in line]
            if errors:
                return f" It said: {errors[-1][-300:]}"
        return ""

    def _start(self, participant: str) -> None:
        self._logs.mkdir(parents=True, exist_ok=True)
        with self._console(participant).open("ab") as console:
            self._processes[participant] = self.start_kit(self.kit(participant), console)

    def start_kit(self, kit: Path, console: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start a participant from its kit."""
        environment = self._environment(kit.name)
        started_with = environment
        if kit.name == self.spec.server:
            # All cores: sites wait while the server computes.
            started_with = {**environment, THREADS_VARIABLE: share_of_threads(1)}
        number = self._fork_requests(environment) if self.shares_fork_server else None
        if number is None:
            return start_process(kit, console, started_with)
        return start_process(kit, console, {**started_with, FORK_SERVER_VARIABLE: str(number)}, [number])

    def _fork_requests(self, environment: dict[str, str]) -> int | None:
        """Return the socket of a fork server for participants with this environment.

        None: the participant is to start its own.
        """
        if Shared.requests:
            return Shared.requests.fileno() if self._has_usual_modules(environment) else None
        if self._fork_server is None:
            # It imports once what all participants on this machine need for a job.
            self._fork_server, self._common = ForkServer(environment), environment
        return self._fork_server.fileno() if environment == self._common else None

    def _has_usual_modules(self, environment: dict[str, str]) -> bool:
        return environment.get("PYTHONPATH") == os.environ.get("PYTHONPATH")

    def _environment(self, participant: str) -> dict[str, str]:
        del participant
        return process_environment(self._temporary, len(self.spec.sites))

    def _wait_for_port(self, participant: str, host: str, port: int) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            self.require_alive()
            with contextlib.suppress(OSError), connect(host, port, 1.0):
                return
            time.sleep(0.1)
        role = "the server" if participant == self.spec.server else participant
        raise TransferError(f"{role} did not open port {port}. Its log: {self._console(participant)}")


def require_free_loopback_port(port: int) -> None:
    """Require that nothing listens on a port of this machine.

    Raises:
        FederationError: the port is taken.
        TransferError: this machine has no loopback address.
    """
    if any(why_not_bound(address, port) for address in require_loopback()):
        raise FederationError(
            f"port {port} is taken by another program. Give another with --port, or none to take a free one."
        )
