"""Submits, watches and fetches jobs with an engineer's kit."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from nvflare.apis.job_def import JobMetaKey, RunStatus
from nvflare.fuel.flare_api.api_spec import (
    AuthorizationError,
    InvalidJobDefinition,
    JobNotFound,
    JobNotRunning,
    TargetType,
)
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session
from rich.console import Console
from safetensors.torch import load_file

from oncofed.alliance.local import quiet
from oncofed.artifacts.kept_bundle import complete_bundle
from oncofed.artifacts.kept_job import copy_beside_model
from oncofed.artifacts.provenance import PROVENANCE_FILE
from oncofed.errors import FederationError, PolicyError, SpecError, TransferError
from oncofed.job.card import write_cards
from oncofed.job.flare import SPEC_FILE
from oncofed.job.outcome import begin_result, note_incidents, note_rounds, note_scores
from oncofed.job.spec import JobSpec, parse_job
from oncofed.job.watch import Curves, RunProgress, RunView
from oncofed.report.html import write_report
from oncofed.report.result import Result
from oncofed.rounds.events import BEST_MODEL, EVENTS_FILE, MODELS_FOLDER, STATS_GROUP, Event, EventReader, read_event

_SECONDS_BETWEEN_LOOKS = 2.0
_SECONDS_BETWEEN_TRIES = 0.5
_CONNECT_SECONDS = 30.0


class Engineer:
    """A session with an alliance's server, as a context manager.

    Args:
        kit: the engineer's startup kit, the folder that holds ``startup``.

    Raises:
        SpecError: it is no kit of a person.
        TransferError: the server does not answer, or does not know the kit.
    """

    def __init__(self, kit: Path) -> None:
        self._kit = kit
        self._name = _person(kit)
        self._session: Session | None = None

    def __enter__(self) -> Engineer:
        self._connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def submit(self, job: Path) -> str:
        """Submit an exported job folder, and return FLARE's job id.

        Raises:
            FederationError: the server refused it.
            PolicyError: this person may not submit jobs.
        """
        try:
            with quiet():
                return str(self._connect().submit_job(str(job.resolve())))
        except InvalidJobDefinition as error:
            raise FederationError(f"the server refused the job: {error}") from None
        except AuthorizationError as error:
            raise PolicyError(f"{self._name} may not do this: {error}") from None

    def status(self, job_id: str) -> str:
        """Return FLARE's status of a job, such as RUNNING or FINISHED:COMPLETED.

        Raises:
            SpecError: the alliance has no such job.
            TransferError: the server did not answer.
        """
        status = self._ask(job_id, lambda session: session.get_job_status(job_id))
        if status is None:
            raise SpecError(_unknown(job_id))
        return str(status)

    def why_waiting(self, job_id: str) -> str:
        """Return why the server could not start a job; empty before it tried."""
        meta = self._ask(job_id, lambda session: session.get_job_meta(job_id)) or {}
        history = meta.get(JobMetaKey.SCHEDULE_HISTORY.value) or [""]
        # The reason follows the time, which has two colons but no space after them.
        return str(history[-1]).split(": ", 1)[-1]

    def connected(self) -> dict[str, datetime]:
        """Return when each connected site was last heard from.

        Raises:
            TransferError: the server did not answer.
        """
        clients = self._ask("", lambda session: session.get_connected_client_list())
        return {client.name: datetime.fromtimestamp(client.last_connect_time or 0, timezone.utc) for client in clients}

    def wait_for(self, sites: Sequence[str], report: Callable[[list[str]], None]) -> None:
        """Wait until sites are connected.

        Args:
            sites: their names.
            report: called with the missing ones whenever they change.
        """
        before = None
        while missing := sorted(set(sites) - set(self.connected())):
            if missing != before:
                report(missing)
            before = missing
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def events(self, job_id: str) -> list[Event]:
        """Return a digest of a running job's record; empty for any other job."""

        def question(session: Session) -> Any:
            with contextlib.suppress(JobNotRunning, JobNotFound):
                return session.show_stats(job_id, TargetType.SERVER)

        server = (self._ask(job_id, question) or {}).get("server")
        lines = server.get(STATS_GROUP, {}).get("events", []) if isinstance(server, dict) else []
        return [read_event(line) for line in lines]

    def stop(self, job_id: str) -> None:
        """Stop a job at the server and all sites."""
        self._ask(job_id, lambda session: session.abort_job(job_id))

    def download(self, job_id: str, folder: Path) -> Path:
        """Download a finished job's result, and return the server's part of it."""
        self._ask(job_id, lambda session: session.download_job_result(job_id, str(folder)))
        found = next(iter(folder.rglob(EVENTS_FILE)), None)
        if found is None:
            raise FederationError(f"job {job_id} left no record of its rounds: it is no training, or failed before it")
        return found.parent

    def _ask(self, job_id: str, question: Any, tries: int = 3) -> Any:
        try:
            with quiet():
                return question(self._connect())
        except JobNotFound:
            if tries > 1:
                # FLARE finds no job while it rewrites its metadata.
                time.sleep(_SECONDS_BETWEEN_TRIES)
                return self._ask(job_id, question, tries - 1)
            raise SpecError(_unknown(job_id)) from None
        except AuthorizationError as error:
            raise PolicyError(f"{self._name} may not do this: {error}") from None
        except Exception as error:  # noqa: BLE001 - see below
            # The client library raises many types for a server that went away: the next request opens a new session.
            self._close()
            raise TransferError(f"the server did not answer ({type(error).__name__})") from None

    def _connect(self) -> Session:
        if self._session is None:
            try:
                with quiet():
                    self._session = new_secure_session(self._name, str(self._kit), timeout=_CONNECT_SECONDS)
            except Exception as error:  # noqa: BLE001 - of many types
                raise TransferError(
                    f"no session with the server of the kit {self._kit.name} ({type(error).__name__}). Is it running, "
                    "and does this machine reach the host and port in startup/fed_admin.json?"
                ) from None
        return self._session

    def _close(self) -> None:
        with contextlib.suppress(Exception), quiet():
            if self._session is not None:
                self._session.close()
        self._session = None


def watch(engineer: Engineer, job_id: str, console: Console, curves: Path) -> str:
    """Follow a job through restarts of the server, and return how it ended.

    Args:
        engineer: the session.
        job_id: FLARE's id of the job.
        console: for progress.
        curves: folder for TensorBoard; is replaced.
    """
    shutil.rmtree(curves, ignore_errors=True)
    status = engineer.status(job_id)
    last, shown_why = 0.0, ""

    def look() -> str:
        """Show new events, and return the job's status; keep it if the server does not answer."""
        nonlocal last, shown_why
        try:
            events = [event for event in engineer.events(job_id) if event.time > last]
            last = max([last, *(event.time for event in events)])
            view.update(events)
            now = engineer.status(job_id)
            why = engineer.why_waiting(job_id) if now == RunStatus.SUBMITTED else ""
            if why and why != shown_why:
                console.print(f"it waits: {why}", markup=False)
            shown_why = why
            return now
        except TransferError as error:
            console.print(f"{error}; trying again. Ctrl-C ends the watching, not the job", markup=False)
            return status

    with RunView(console, Curves(curves)) as view:
        while not status.startswith("FINISHED"):
            status = look()
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    return status.removeprefix("FINISHED:")


def fetch(engineer: Engineer, job_id: str, folder: Path) -> Result:
    """Download a job's result, and write report, model and curves.

    Raises:
        FederationError: the job still runs, or left nothing.
    """
    status = engineer.status(job_id)
    if not status.startswith("FINISHED"):
        raise FederationError(f"job {job_id} is {status}. Wait for its end: oncofed job watch {job_id}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        record = engineer.download(job_id, Path(temporary))
        spec = _spec(Path(temporary))
        (folder / "job.yaml").write_text(spec.to_yaml(), encoding="utf-8")
        events = list(EventReader(record / EVENTS_FILE).read())
        best = record / MODELS_FOLDER / BEST_MODEL
        if best.is_file():
            (folder / "model").mkdir(exist_ok=True)
            shutil.copy(best, folder / "model" / "model.safetensors")
            copy_beside_model(best.parent, folder / "model")
        vouched = best.with_name(PROVENANCE_FILE)
        if vouched.is_file():
            shutil.copy(vouched, folder / PROVENANCE_FILE)
    return _write(spec, events, folder)


def _write(spec: JobSpec, events: list[Event], folder: Path) -> Result:
    state, curves = RunProgress(), Curves(folder / "tensorboard")
    for event in events:
        state.apply(event)
        curves.write(event)
    curves.close()
    result = begin_result(spec, "federation", "The sites' own data; only weights and approved numbers left them.")
    result.environment = {}
    result.rounds = state.rounds
    note_incidents(result, state)
    model = folder / "model" / "model.safetensors"
    if state.finished is not None and model.is_file():
        result.status = "completed"
        note_rounds(result, state, spec)
        note_scores(result, state)
        values = spec.model_dump(mode="json", by_alias=True)
        bundle = spec.plan().write_bundle(model.parent, spec.title, load_file(model), values)
        if bundle:
            complete_bundle(bundle, [model.parent, folder])
    else:
        result.status = "stopped" if state.stopped and not state.failed else "failed"
        result.error = state.failed or "the job was stopped before its end"
    if events:
        result.timing.startup_s = state.ready_s or 0.0
        result.timing.total_s = result.timing.federation_s = events[-1].time - events[0].time
    result.write(folder)
    if result.status == "completed":
        write_cards(spec, result, folder)
    write_report(result, {}, folder)
    return result


def _spec(folder: Path) -> JobSpec:
    found = next(iter(folder.rglob(SPEC_FILE)), None)
    if found is None:
        raise FederationError("the job's result does not hold the job: an older oncofed submitted it")
    return parse_job(found)


def _person(kit: Path) -> str:
    file = kit / "startup" / "fed_admin.json"
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["admin"]["username"])
    except (OSError, ValueError, KeyError, TypeError):
        raise SpecError(
            f"{kit}: no startup kit of a person, which holds startup/fed_admin.json. Name the folder that your "
            "alliance's admin sent you, with --kit or ONCOFED_KIT."
        ) from None


def _unknown(job_id: str) -> str:
    return f"the alliance has no job {job_id}, or it is not yours. See: nvflare job list"
