"""A person's session with an alliance's server, by FLARE's API."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
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

from oncofed.errors import FederationError, PolicyError, SpecError, TransferError
from oncofed.rounds.events import EVENTS_FILE, STATS_GROUP, Event, read_event

# FLARE's status of a job that waits to be started.
SUBMITTED = RunStatus.SUBMITTED.value

_SECONDS_BETWEEN_LOOKS = 2.0
_SECONDS_BETWEEN_TRIES = 0.5
_CONNECT_SECONDS = 30.0


class EngineerSession:
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

    def __enter__(self) -> EngineerSession:
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
            return submit_job(self._connect(), job)
        except AuthorizationError as error:
            raise PolicyError(f"{self._name} may not do this: {error}") from None

    def status(self, job_id: str) -> str:
        """Return FLARE's status of a job.

        Examples are RUNNING and FINISHED:COMPLETED.

        Raises:
            SpecError: the alliance has no such job.
            TransferError: the server did not answer.
        """
        status = self._ask(job_id, lambda session: session.get_job_status(job_id))
        if status is None:
            raise SpecError(_unknown(job_id))
        return str(status)

    def name_of(self, job_id: str) -> str:
        """Return a job's name."""
        meta = self._ask(job_id, lambda session: session.get_job_meta(job_id)) or {}
        return str(meta.get(JobMetaKey.JOB_NAME.value) or job_id)

    def why_waiting(self, job_id: str) -> str:
        """Return why a job could not start; empty if untried."""
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
        """Return a digest of a running job's record.

        It is empty for any other job.
        """

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
        """Download a finished job's result; return the server's part."""
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
            # The client library raises many types when a server has gone away: the next request opens a new session.
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


def submit_job(session: Session, job: Path) -> str:
    """Submit an exported job folder, and return FLARE's job id.

    Raises:
        FederationError: the server refused it.
    """
    try:
        with quiet():
            return str(session.submit_job(str(job.resolve())))
    except InvalidJobDefinition as error:
        raise FederationError(f"the server refused the job: {error}") from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the output of FLARE's client library."""
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
        yield


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
