"""What a job keeps in order to go on goes once it has ended: at a site that is several times the size of its model.

The server knows from FLARE's record when a job has ended, and tells the sites; one that was away is told when it is
back. The record of a job's rounds stays, and so does what a site keeps for itself.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import Any

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_component import FLComponent
from nvflare.apis.fl_constant import FLContextKey, ReturnCode, SystemComponents
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import JobMetaKey, RunStatus
from nvflare.apis.shareable import Shareable, make_reply

from oncofed.flare.folders import STATE_FOLDER, forget_job
from oncofed.flare.runtime.site_query import query_sites

_TOPIC = "oncofed.ended"
_JOBS, _DONE = "jobs", "oncofed.done"
# One that could not be run may be put into the queue again.
_ENDED = (
    RunStatus.FINISHED_COMPLETED,
    RunStatus.FINISHED_ABORTED,
    RunStatus.FINISHED_EXECUTION_EXCEPTION,
    RunStatus.FINISHED_ABNORMAL,
    RunStatus.ABANDONED,
)


class JobCleanup:
    """At the server: forgets what ended jobs kept, and has the sites forget it."""

    def __init__(self) -> None:
        self._ended: set[str] = set()
        self._forgotten: dict[str, set[str]] = {}

    def look(self, engine: Any, going_on: Collection[str]) -> bool:
        """Look which jobs have ended, and return whether every connected site has forgotten them.

        Args:
            engine: of the server's main process.
            going_on: ids of jobs that have not ended, whatever FLARE's record says.
        """
        root = Path(engine.args.workspace)
        kept = {path.name for path in (root / STATE_FOLDER).glob("*") if _is_job(path.name)}
        with engine.new_context() as fl_ctx:
            for job_id in kept - self._ended - set(going_on):
                if _has_ended(engine, job_id, fl_ctx):
                    _forget(root, job_id)
                    self._ended.add(job_id)
        missing = {client: self._ended - self._forgotten.get(client.name, set()) for client in engine.get_clients()}
        clients = [client for client, jobs in missing.items() if jobs]
        news = set[str]().union(*missing.values())
        for site, answer in query_sites(engine, _TOPIC, Shareable({_JOBS: sorted(news)}), clients).items():
            done = answer.get_header(_DONE)
            self._forgotten.setdefault(site, set()).update(news.intersection(done if isinstance(done, list) else ()))
        return all(self._ended <= self._forgotten.get(client.name, set()) for client in clients)


def _has_ended(engine: Any, job_id: str, fl_ctx: FLContext) -> bool:
    """Return whether a job has ended, or was deleted."""
    if job_id in engine.job_runner.running_jobs or job_id in engine.run_processes:
        return False
    manager = engine.get_component(SystemComponents.JOB_MANAGER)
    job = manager.get_job(job_id, fl_ctx)
    if job is None:
        return not Path(manager.job_uri(job_id)).exists()
    return job.meta.get(JobMetaKey.STATUS.value) in _ENDED


class SiteCleanup(FLComponent):
    """At a site: forgets what the jobs kept of which the server says that they have ended."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Begin to listen when the site has started."""
        if event_type == EventType.SYSTEM_START:
            engine: Any = fl_ctx.get_engine()
            engine.register_aux_message_handler(_TOPIC, self._forget_those)

    def _forget_those(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        del topic
        engine: Any = fl_ctx.get_engine()
        root = Path(fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_root_dir())
        told = request.get(_JOBS)
        jobs = [job for job in told if _is_job(job)] if isinstance(told, list) else []
        # Its processes may still be ending; then it is told again.
        running = set(engine.get_all_job_ids())
        ended = [job for job in jobs if job not in running]
        for job in ended:
            _forget(root, job)
        reply = make_reply(ReturnCode.OK)
        reply.set_header(_DONE, ended)
        return reply


def _forget(root: Path, job_id: str) -> None:
    try:
        forget_job(root, job_id)
    except OSError as error:
        logging.getLogger(__name__).error("what job %s kept could not be removed: %s", job_id, error)


def _is_job(name: Any) -> bool:
    """Return whether something is a job's id, and not the way to another folder."""
    try:
        return isinstance(name, str) and str(uuid.UUID(name)) == name
    except ValueError:
        return False
