"""Delete what ended jobs kept to resume.

At a site this is several times the size of its model. The server knows from FLARE's record when a job has ended, and
notifies the sites; one that was away is notified when it is back. The record of a job's rounds and a site's local
results stay.
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
# A job that failed to run may be queued again.
_ENDED = (
    RunStatus.FINISHED_COMPLETED,
    RunStatus.FINISHED_ABORTED,
    RunStatus.FINISHED_EXECUTION_EXCEPTION,
    RunStatus.FINISHED_ABNORMAL,
    RunStatus.ABANDONED,
)


class JobCleanup:
    """Deletes what ended jobs kept, everywhere."""

    def __init__(self) -> None:
        self._ended: set[str] = set()
        self._forgotten: dict[str, set[str]] = {}

    def run(self, engine: Any, resumed: Collection[str]) -> bool:
        """Clean up; return whether every connected site has done so.

        Args:
            engine: of the server's main process.
            resumed: ids of jobs that have not ended, whatever FLARE's record says.
        """
        root = Path(engine.args.workspace)
        kept = {path.name for path in (root / STATE_FOLDER).glob("*") if _is_job(path.name)}
        with engine.new_context() as fl_ctx:
            for job_id in kept - self._ended - set(resumed):
                if _has_ended(engine, job_id, fl_ctx):
                    _forget(root, job_id)
                    self._ended.add(job_id)
        missing = {client: self._ended - self._forgotten.get(client.name, set()) for client in engine.get_clients()}
        clients = [client for client, jobs in missing.items() if jobs]
        new = set[str]().union(*missing.values())
        for site, reply in query_sites(engine, _TOPIC, Shareable({_JOBS: sorted(new)}), clients).items():
            done = reply.get_header(_DONE)
            self._forgotten.setdefault(site, set()).update(new.intersection(done if isinstance(done, list) else ()))
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
    """Deletes what jobs kept that the server reports as ended."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Register for the server's notice when the site has started."""
        if event_type == EventType.SYSTEM_START:
            engine: Any = fl_ctx.get_engine()
            engine.register_aux_message_handler(_TOPIC, self._delete_ended)

    def _delete_ended(self, topic: str, request: Shareable, fl_ctx: FLContext) -> Shareable:
        del topic
        engine: Any = fl_ctx.get_engine()
        root = Path(fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_root_dir())
        reported = request.get(_JOBS)
        jobs = [job for job in reported if _is_job(job)] if isinstance(reported, list) else []
        # A job whose processes are still ending is reported again.
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
    """Return whether a name is a job's id."""
    try:
        return isinstance(name, str) and str(uuid.UUID(name)) == name
    except ValueError:
        return False
