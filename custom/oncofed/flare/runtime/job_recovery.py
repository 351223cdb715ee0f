"""Resume jobs after the server or a process was killed."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import RunProcessKey, SystemComponents
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import Job, JobMetaKey, RunStatus
from nvflare.apis.job_scheduler_spec import DispatchInfo
from nvflare.private.admin_defs import Message
from nvflare.private.defs import ClientStatusKey, RequestHeader, TrainingTopic
from nvflare.private.fed.server.admin import check_client_replies
from nvflare.utils.job_launcher_utils import get_resource_manager_spec

import oncofed
from oncofed.flare.folders import has_ended
from oncofed.flare.runtime.cleanup import JobCleanup

_LOOK_SECONDS = 1.0
# How often sites are queried for the jobs they run, and how many times a site is given a job that it does not run.
_SECONDS_BETWEEN_LOOKS_AT_SITES = 3.0
_MOST_MISSED = 40
# How often a dead server's job is queued again if FLARE cannot start it.
_MOST_TRIES = 5
# FLARE gives up a job after ten tries without a site that has room.
_SECONDS_BETWEEN_LOOKS_AT_WAITING = 20.0
_TRIES_TO_COUNT = 4
_KEPT_HISTORY = 20
# How often ended jobs are cleaned up. A site that fails is notified again, at growing intervals.
_SECONDS_BETWEEN_CLEANUPS = 20.0
_FIRST_SECONDS_BETWEEN_NOTICES, _LAST_SECONDS_BETWEEN_NOTICES = 3.0, 600.0
# FLARE's status of a dead server's job, or of one that was not started because a site still ran it.
_NOT_RUNNING = (RunStatus.RUNNING, RunStatus.DISPATCHED, RunStatus.FAILED_TO_RUN)

MARK = "oncofed"


class JobRecovery(FLComponent):
    """Queues interrupted jobs again, and adds sites to running ones.

    FLARE lists a job as running for ever when its server is killed, ends a job when one site's process fails, and gives
    a job only to the sites that are connected when it starts. Only oncofed's jobs are resumed: their metadata has a
    mark, and their controllers know how to resume. Their resume state is deleted once they have ended.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stop = threading.Event()
        self._missed: dict[tuple[str, str], int] = {}
        self._sites_checked = self._waiting_checked = self._next_cleanup = 0.0
        self._cleanup, self._pause = JobCleanup(), _FIRST_SECONDS_BETWEEN_NOTICES
        # Jobs of a server process that died, and how often they were queued again.
        self._interrupted: dict[str, int] = {}

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Start and stop with the server."""
        if event_type == EventType.SYSTEM_START:
            engine = fl_ctx.get_engine()
            self._note_interrupted(engine, fl_ctx)
            threading.Thread(target=self._watch, args=(engine,), name="job recovery", daemon=True).start()
        elif event_type == EventType.JOB_COMPLETED:
            self._next_cleanup, self._pause = 0.0, _FIRST_SECONDS_BETWEEN_NOTICES
        elif event_type == EventType.SYSTEM_END:
            self._stop.set()

    def _note_interrupted(self, engine: Any, fl_ctx: FLContext) -> None:
        manager = engine.get_component(SystemComponents.JOB_MANAGER)
        for job in manager.get_jobs_by_status([RunStatus.RUNNING, RunStatus.DISPATCHED], fl_ctx):
            if _is_ours(job):
                self._interrupted[job.job_id] = 0
                self.log_info(fl_ctx, f"job {job.job_id} ran when the server ended: it goes on", fire_event=False)

    def _requeue(self, engine: Any) -> None:
        """Queue a dead server's jobs once no site runs them.

        FLARE gives up a job that a site still runs. Where such a site comes back, the job is queued again.
        """
        manager = engine.get_component(SystemComponents.JOB_MANAGER)
        for job_id, tries in list(self._interrupted.items()):
            if job_id in engine.job_runner.running_jobs or tries > _MOST_TRIES:
                del self._interrupted[job_id]
                continue
            with engine.new_context() as fl_ctx:
                job = manager.get_job(job_id, fl_ctx)
                status = job.meta.get(JobMetaKey.STATUS.value) if job else None
                if status in (RunStatus.SUBMITTED, RunStatus.APPROVED) or (tries and status == RunStatus.DISPATCHED):
                    continue
                if status not in _NOT_RUNNING:
                    del self._interrupted[job_id]  # aborted, or deleted
                    continue
                if not self._is_free(engine, job_id, fl_ctx):
                    continue
                # FLARE skips jobs that it has scheduled before.
                never = {JobMetaKey.SCHEDULE_COUNT.value: 0, JobMetaKey.LAST_SCHEDULE_TIME.value: 0.0}
                manager.update_meta(job_id, never, fl_ctx)
                (Path(manager.job_uri(job_id)) / "scheduled").unlink(missing_ok=True)
                manager.set_status(job_id, RunStatus.SUBMITTED, fl_ctx)
                self._interrupted[job_id] = tries + 1

    def _keep_waiting(self, engine: Any) -> None:
        """Let jobs wait until sites have room for them."""
        if time.monotonic() - self._waiting_checked < _SECONDS_BETWEEN_LOOKS_AT_WAITING:
            return
        self._waiting_checked = time.monotonic()
        manager = engine.get_component(SystemComponents.JOB_MANAGER)
        with engine.new_context() as fl_ctx:
            for job in manager.get_jobs_by_status([RunStatus.SUBMITTED], fl_ctx):
                if _is_ours(job) and job.meta.get(JobMetaKey.SCHEDULE_COUNT.value, 0) > _TRIES_TO_COUNT:
                    history = job.meta.get(JobMetaKey.SCHEDULE_HISTORY.value) or []
                    kept = {JobMetaKey.SCHEDULE_HISTORY.value: history[-_KEPT_HISTORY:]}
                    manager.update_meta(job.job_id, {JobMetaKey.SCHEDULE_COUNT.value: _TRIES_TO_COUNT, **kept}, fl_ctx)

    def _clean_up(self, engine: Any) -> None:
        if time.monotonic() < self._next_cleanup:
            return
        if self._cleanup.run(engine, self._interrupted):
            self._next_cleanup = time.monotonic() + _SECONDS_BETWEEN_CLEANUPS
            return
        self._next_cleanup = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LAST_SECONDS_BETWEEN_NOTICES)

    def _is_free(self, engine: Any, job_id: str, fl_ctx: FLContext) -> bool:
        """Return whether no connected site runs a job.

        The job is aborted where one still does.
        """
        running = _sites_that_run(engine, job_id)
        busy = [site for site, runs in running.items() if runs]
        if busy:
            engine.job_runner.abort_client_run(job_id, busy, fl_ctx)
        return bool(running) and not busy and not engine.run_processes.get(job_id)

    def _watch(self, engine: Any) -> None:
        while not self._stop.wait(_LOOK_SECONDS):
            try:
                self._requeue(engine)
                self._keep_waiting(engine)
                self._clean_up(engine)
            except Exception as error:  # noqa: BLE001 - tried again in a second
                self.logger.error("jobs that wait or have ended: %s: %s", type(error).__name__, error)
            for job_id, job in list(engine.job_runner.running_jobs.items()):
                if not _is_ours(job):
                    continue
                try:
                    self._watch_job(engine, job_id, job)
                except Exception as error:  # noqa: BLE001 - this thread serves all jobs
                    self.logger.error("job %s: %s: %s", job_id, type(error).__name__, error)

    def _watch_job(self, engine: Any, job_id: str, job: Job) -> None:
        runner, process = engine.job_runner, engine.run_processes.get(job_id)
        if not process:
            for client in engine.get_clients():
                runner.resolve_client_outcome(job_id, client.name)
            return
        participants: dict[str, Client] = process[RunProcessKey.PARTICIPANTS]
        for client in list(participants.values()):
            # Its controller decides whether a job goes on without a site.
            runner.resolve_client_outcome(job_id, client.name)
        if time.monotonic() - self._sites_checked < _SECONDS_BETWEEN_LOOKS_AT_SITES or has_ended(
            engine.args.workspace, job_id
        ):
            return
        self._sites_checked = time.monotonic()
        running = _sites_that_run(engine, job_id)
        participating = {client.name for client in participants.values()}
        for client in engine.get_clients():
            # A site that did not reply may run the job, or come back: that is no miss.
            runs = running.get(client.name)
            if runs is not False and client.name in participating:
                self._missed.pop((job_id, client.name), None)
            # A site that came back right after the server restarted may run it without being a participant.
            elif runs is not None and self._is_to_join(job_id, client.name):
                self._add_site(engine, job, client, participants)

    def _is_to_join(self, job_id: str, site: str) -> bool:
        """Count a miss; return whether to add the site now."""
        missed = self._missed[job_id, site] = self._missed.get((job_id, site), 0) + 1
        return 2 <= missed <= _MOST_MISSED

    def _add_site(self, engine: Any, job: Job, client: Client, participants: dict[str, Client]) -> None:
        """Start a running job at one more site."""
        site, runner = client.name, engine.job_runner
        admin = engine.server.admin_server
        with engine.new_context() as fl_ctx:
            app = next((a for a, sites in job.get_deployment().items() if is_for(sites, site)), None)
            if app is None:
                return
            # What still runs there belongs to a server or a parent that has ended.
            runner.abort_client_run(job.job_id, [site], fl_ctx)
            meta = {**job.meta, JobMetaKey.RESOURCE_SPEC.value: job.resource_spec}
            wanted = get_resource_manager_spec(meta, site)
            answer = engine.check_client_resources(job, {site: wanted}, fl_ctx).get(site, (False, ""))
            if not answer[0]:
                # It offers no resources now: that is no miss.
                self._missed.pop((job.job_id, site), None)
                return
            message = runner._make_deploy_message(job, job.get_application(app, fl_ctx), app, fl_ctx)
            reply = admin.send_requests_and_get_reply_dict({client.token: message}, timeout_secs=admin.timeout)
            if not reply.get(client.token):
                return
            job.meta[JobMetaKey.JOB_CLIENTS] = [
                *(c for c in job.meta.get(JobMetaKey.JOB_CLIENTS, []) if c.get("name") != site),
                client.to_dict(),
            ]
            started = engine.start_client_job(job, {site: DispatchInfo(app, wanted, answer[1])}, fl_ctx)
            if check_client_replies(started, [site], "start job", strict=True):
                return
            for token in [t for t, c in participants.items() if c.name == site]:
                del participants[token]
            participants[client.token] = client
            self.log_info(fl_ctx, f"{site} takes part in job {job.job_id} from now on", fire_event=False)


def _sites_that_run(engine: Any, job_id: str) -> dict[str, bool]:
    """Return whether each site that replies runs a job."""
    clients = {client.token: client.name for client in engine.get_clients()}
    message = Message(topic=TrainingTopic.CHECK_STATUS, body="")
    message.set_header(RequestHeader.REQUIRE_AUTHZ, "false")
    admin = engine.server.admin_server
    replies = admin.send_requests_and_get_reply_dict(dict.fromkeys(clients, message), timeout_secs=5.0)
    found = {}
    for token, reply in replies.items():
        if reply:
            jobs = json.loads(reply.body).get(ClientStatusKey.RUNNING_JOBS, [])
            found[clients[token]] = any(job.get(ClientStatusKey.JOB_ID) == job_id for job in jobs)
    return found


def _is_ours(job: Job) -> bool:
    return MARK in (job.meta.get(JobMetaKey.CUSTOM_PROPS) or {})


def is_for(sites: Any, site: str) -> bool:
    """Return whether an app is for a site.

    Args:
        sites: the app's entry in the job's metadata.
        site: its name.
    """
    names = sites.get("targets", []) if isinstance(sites, dict) else sites
    return any(str(name).upper() == "@ALL" or name == site for name in names)


def job_mark() -> dict[str, str]:
    """Return the custom properties that mark a job as ours."""
    return {MARK: oncofed.__version__}
