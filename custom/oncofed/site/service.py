"""Run a site or server as a service.

It starts, restarts and stops FLARE's process.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import logging.handlers
import os
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

import psutil

from oncofed.alliance.facts import KIT_FILE, KitFacts, read_facts
from oncofed.alliance.kits import keep_storage_inside, start_process
from oncofed.alliance.launchers import DEPLOY_FOLDER
from oncofed.alliance.sealing import changed_files
from oncofed.alliance.site_settings import SETTINGS_FILE, SiteSettings, read_settings
from oncofed.client.datasets import DATASETS_FILE, datasets_entry
from oncofed.client.status_file import RUN_FOLDER
from oncofed.errors import AllianceError, FederationError, PolicyError
from oncofed.flare.runtime.resources import LENDING_FILE
from oncofed.locking import lock_error
from oncofed.loopback import ANY, why_not_bound
from oncofed.private_files import write_private
from oncofed.processes import JOB_PROCESS, not_ignored, process_environment, short_path, stop_processes
from oncofed.proxy import PROXY_VARIABLE, parse_proxy

LOG_FILE = "console.log"
_LOGS_KEPT = 5
_LOCK_FILE = "lock"
_STATE_FILE = "service.json"
_LONGEST_BACK_OFF_SECONDS = 60.0
_HOUR = 3600.0
# A process that ran this long did not fail for lack of something at its start.
_STABLE_SECONDS = 60.0
_STOP_SECONDS = 60.0
_SECONDS_BETWEEN_CHECKS = 2.0
_TEMPORARY = "tmp"
_COMPILED, _COMPILED_VARIABLE = "compiled", "TORCHINDUCTOR_CACHE_DIR"


@dataclass(frozen=True)
class ServiceState:
    """The state of a site's service.

    Attributes:
        running: its process exists.
        pid: of that process.
        since: time of FLARE's last start.
        restarts: number of restarts.
        trouble: why it ended; empty after a normal stop.
    """

    running: bool
    pid: int = 0
    since: float = 0.0
    restarts: int = 0
    trouble: str = ""


class Service:
    """Runs a kit's server, relay or site in the foreground.

    Args:
        folder: the kit; everything that is written stays in it.
        report: called with one line per event.

    Raises:
        AllianceError: the folder is not a machine's kit.
        PolicyError: the kit was changed.
    """

    def __init__(self, folder: Path, report: Callable[[str], None]) -> None:
        self._folder = folder.resolve()
        self._report = report
        self._read_kit()
        self._mark = self._folder / _TEMPORARY
        self._stop = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._starts: list[float] = []
        self._next_check = 0.0

    def _read_kit(self) -> None:
        self._kit_seen_at = _kit_written_at(self._folder)
        self.facts = machine_facts(self._folder)
        self._settings = read_settings(self._folder)
        require_unchanged(self._folder)
        require_readable(self._folder)
        self._expires = self.facts.certificate(self._folder).not_valid_after_utc.timestamp()

    def run(self) -> None:
        """Run until SIGTERM or Ctrl-C.

        Raises:
            FederationError: it runs already, or its process keeps ending.
        """
        (self._folder / RUN_FOLDER).mkdir(exist_ok=True, mode=0o700)
        with _sole_service(self._folder), short_path(self._folder / _TEMPORARY) as temporary, self._signals():
            # Left by an earlier service that was killed.
            stop_processes(self._mark)
            require_free_server_port(self.facts)
            prepare(self._folder, self.facts, self._settings)
            try:
                self._keep_running(temporary)
            finally:
                stop_processes(self._mark)

    def _keep_running(self, temporary: Path) -> None:
        back_off = 1.0
        while not self._stop.is_set():
            started = time.monotonic()
            status = self._run_once(temporary)
            if self._stop.is_set():
                break
            stop_processes(self._mark)
            if status is None:
                self._report("its kit was renewed: it starts again with the new certificate")
                self._read_kit()
                prepare(self._folder, self.facts, self._settings)
                self._starts.clear()
                continue
            self._require_few_restarts(status)
            was_stable = time.monotonic() - started > _STABLE_SECONDS
            back_off = 1.0 if was_stable else min(back_off * 2, _LONGEST_BACK_OFF_SECONDS)
            self._report(f"its process ended with status {status}; it is started again in {back_off:.0f} s")
            self._stop.wait(back_off)
        self._write_state()
        self._report("stopped")

    def _run_once(self, temporary: Path) -> int | None:
        """Run FLARE's process, and return its exit status.

        None if it ended for a newer kit.
        """
        environment = process_environment(temporary, 1, self._mark)
        environment[_COMPILED_VARIABLE] = str(self._compiled())
        if self._settings.proxy:
            environment[PROXY_VARIABLE] = self._settings.proxy
        self._process = start_process(self._folder, subprocess.PIPE, environment)
        self._starts.append(time.monotonic())
        self._write_state()
        assert self._process.stdout
        pump = threading.Thread(target=self._write_log, args=(self._process.stdout,), name="log")
        pump.start()
        renew = False
        while self._process.poll() is None and not self._stop.is_set() and not renew:
            time.sleep(0.1)
            renew = self._should_renew(self._process.pid)
        if self._stop.is_set() or renew:
            stop_processes(self._mark)
        status = self._process.wait()
        pump.join()
        return None if renew else status

    def _compiled(self) -> Path:
        """Return the cache folder of PyTorch's compiled programs.

        Each takes minutes.

        Its content is executed, so only its owner may write to it.
        """
        folder = self._folder / RUN_FOLDER / _COMPILED
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
        return folder

    def _should_renew(self, pid: int) -> bool:
        """Return whether to restart for a newer kit.

        When no job runs, or just before the old certificate expires.

        FLARE's processes read their certificate only at their start.
        """
        if time.monotonic() < self._next_check:
            return False
        self._next_check = time.monotonic() + _SECONDS_BETWEEN_CHECKS
        if _kit_written_at(self._folder) == self._kit_seen_at:
            return False
        return self._expires - time.time() < _HOUR or not _has_job(pid)

    def _write_log(self, printed: IO[bytes]) -> None:
        handler = logging.handlers.RotatingFileHandler(
            self._folder / LOG_FILE, maxBytes=self._settings.log_mb << 20, backupCount=_LOGS_KEPT, encoding="utf-8"
        )
        (self._folder / LOG_FILE).chmod(0o600)
        with contextlib.closing(handler), printed:
            for line in printed:
                text = line.decode(errors="replace").rstrip()
                handler.emit(logging.LogRecord("", logging.INFO, "", 0, "%s", (text,), None))

    def _require_few_restarts(self, status: int) -> None:
        recent = [at for at in self._starts if time.monotonic() - at < _HOUR]
        if len(recent) > self._settings.restarts_an_hour:
            trouble = f"its process ended {len(recent)} times within an hour, the last time with status {status}"
            self._write_state(trouble)
            raise FederationError(f"{trouble}. Look into {self._folder / LOG_FILE}, and run: oncofed site doctor")

    def _write_state(self, trouble: str = "") -> None:
        running = self._process is not None and self._process.poll() is None
        state = {
            "pid": os.getpid(),
            "since": time.time() if running else 0.0,
            "restarts": max(len(self._starts) - 1, 0),
            "trouble": trouble,
        }
        write_private(self._folder / RUN_FOLDER / _STATE_FILE, json.dumps(state).encode())

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(number: int, frame: FrameType | None) -> None:
            self._stop.set()

        before = {
            number: signal.signal(number, stop) for number in not_ignored(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _kit_written_at(folder: Path) -> int:
    """Return when a kit was written, in ns.

    A renewal writes this file last.
    """
    with contextlib.suppress(OSError):
        return (folder / KIT_FILE).stat().st_mtime_ns
    return 0


def runs_job(folder: Path) -> bool:
    """Return whether a site's service runs a job."""
    state = service_state(folder)
    return state.running and _has_job(state.pid)


def _has_job(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(child.name() == JOB_PROCESS for child in psutil.Process(pid).children(recursive=True))
    return False


def machine_facts(folder: Path) -> KitFacts:
    """Read the facts of a machine's kit.

    Raises:
        AllianceError: the folder holds no kit, or that of a person.
    """
    facts = read_facts(folder)
    if facts.kind == "person":
        raise AllianceError(
            f"{folder} is the kit of {facts.participant}, a person: nothing is started from it. Submit jobs with: "
            f"oncofed job submit JOB --kit {folder}"
        )
    return facts


def require_unchanged(folder: Path) -> None:
    """Require that a kit's signed files are unchanged.

    The site may change some of them.

    Raises:
        PolicyError: a file was changed, or others can read the private key.
    """
    readable = readable_by_others(folder)
    if readable:
        raise PolicyError(
            f"others on this machine can read {readable[0]}: chmod -R go-rwx {folder}. Where somebody did, ask for a "
            "new kit."
        )
    changed = [problem for problem in changed_files(folder) if not is_site_file(problem)]
    if changed:
        raise PolicyError(
            f"{folder} is not as the alliance made it: {changed[0]}. Open the kit again, or ask for a new one."
        )


def require_readable(folder: Path) -> None:
    """Require that the site's JSON files are valid.

    With a broken one FLARE's process would keep ending.

    Raises:
        AllianceError: names the broken file.
    """
    for path in sorted((folder / "local").glob("*.json")):
        try:
            json.loads(path.read_bytes())
        except ValueError as error:  # noqa: PERF203 - a handful of files
            raise AllianceError(
                f"{path} is broken ({error}). Put back what was there, or open the kit anew and take its file"
            ) from None


def require_free_server_port(facts: KitFacts) -> None:
    """Require that a server's port is free.

    FLARE would retry for ever.

    Raises:
        FederationError: names the port.
    """
    why = why_not_bound(ANY, facts.port) if facts.kind == "server" else ""
    if why:
        raise FederationError(f"port {facts.port}: {why}. What listens there: ss -ltnp 'sport = :{facts.port}'")


def readable_by_others(folder: Path) -> list[str]:
    """Return a kit's secrets that other users can read."""
    secrets = [folder / "startup", *sorted((folder / "startup").glob("*.key"))]
    exposed = [path for path in secrets if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)]
    return [path.relative_to(folder).as_posix() for path in exposed]


def is_site_file(problem: str) -> bool:
    """Return whether the site may change a file.

    The file is named as in the problems that ``changed_files`` returns.
    """
    return problem.startswith(("local/", f"{DEPLOY_FOLDER}/", SETTINGS_FILE))


def prepare(folder: Path, facts: KitFacts, settings: SiteSettings) -> None:
    """Write a site's settings to FLARE's files."""
    if facts.kind == "site":
        datasets = {name: folder / path for name, path in settings.datasets.items()}
        write_private(folder / "local" / DATASETS_FILE, datasets_entry(facts.participant, datasets))
        write_private(folder / "local" / LENDING_FILE, settings.offer.to_json())
    if facts.kind == "server":
        keep_storage_inside(folder)


def service_state(folder: Path) -> ServiceState:
    """Return the state of a site's service."""
    values: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        values = json.loads((folder / RUN_FOLDER / _STATE_FILE).read_text(encoding="utf-8"))
    return ServiceState(_is_running(folder), **values)


def stop_service(folder: Path) -> bool:
    """Stop a site's service and its processes.

    Return whether it was running.

    Raises:
        FederationError: it does not end.
    """
    state = service_state(folder)
    if state.running:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(state.pid)
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except psutil.TimeoutExpired:
                raise FederationError(
                    f"process {state.pid} does not end. Look into {folder / LOG_FILE}, then kill it."
                ) from None
    stop_processes(folder.resolve() / _TEMPORARY)
    return state.running


def is_connected(folder: Path) -> bool:
    """Return whether the site is connected to the server.

    That is, to the server's port or the proxy's.
    """
    facts, state = read_facts(folder), service_state(folder)
    if not state.running:
        return False
    proxy = read_settings(folder).proxy
    port = parse_proxy(proxy).port if proxy else facts.reaches_port
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(state.pid).children(recursive=True):
            connections = process.net_connections("tcp")
            if any(c.status == psutil.CONN_ESTABLISHED and c.raddr and c.raddr.port == port for c in connections):
                return True
    return False


@contextlib.contextmanager
def _sole_service(folder: Path) -> Iterator[None]:
    """Lock a site's folder for one service.

    Raises:
        FederationError: it runs already.
    """
    with (folder / RUN_FOLDER / _LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = service_state(folder).pid
            raise FederationError(f"{folder} runs already (process {pid}). Stop it with: oncofed site stop") from None
        except OSError as error:
            why = error.strerror or str(error)
            raise lock_error(folder, why, "Move the kit to a disk of this machine.") from None
        yield


def _is_running(folder: Path) -> bool:
    try:
        with (folder / RUN_FOLDER / _LOCK_FILE).open("r") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
