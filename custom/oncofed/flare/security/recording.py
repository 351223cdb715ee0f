"""Entries that job processes write to the audit log."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_def import JobMetaKey

from oncofed.audit import ANCHORED, Anchor, AuditLog
from oncofed.errors import AuditError
from oncofed.flare.folders import kit_folder


def audit_log(fl_ctx: FLContext) -> AuditLog:
    """Return this participant's audit log."""
    return AuditLog(kit_folder(fl_ctx))


def record(fl_ctx: FLContext, what: str, **facts: Any) -> Anchor:
    """Write an entry in the name of the job's submitter.

    Raises:
        AuditError: it cannot be written.
    """
    _, person = name_and_person(fl_ctx)
    return audit_log(fl_ctx).write(what, person or "unknown", job=str(fl_ctx.get_job_id()), **facts)


class AnchorKeeper:
    """Records the last line of each site's audit log, at the server, in a thread of its own.

    Each message brings one. While one is being written to disk a site's newer line takes the place of its older one:
    it follows from that one, and says as much.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[str, Callable[[], object]] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    def keep(self, site: str, reported: str | None, fl_ctx: FLContext) -> None:
        """Keep an anchor, soon.

        Args:
            site: its name.
            reported: the log's last line, as a result reports it. Invalid values are ignored: a site may send anything.
            fl_ctx: of the server's job.
        """
        try:
            anchor = Anchor.parse(reported or "")
        except ValueError:
            return
        log, job = audit_log(fl_ctx), str(fl_ctx.get_job_id())
        with self._changed:
            self._waiting[site] = partial(log.write, ANCHORED, site, job=job, anchor=str(anchor))
            if self._thread is None:
                self._thread = threading.Thread(target=self._write, name="anchors", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def close(self) -> None:
        """Write what was kept; return once it is on disk."""
        with self._changed:
            self._closed, thread = True, self._thread
            self._changed.notify_all()
        if thread:
            thread.join()

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                lines, self._waiting = list(self._waiting.values()), {}
                if not lines:
                    self._thread = None  # a later message begins another
                    return
            for write in lines:
                _try(write)


def _try(write: Callable[[], object]) -> None:
    try:
        write()
    except AuditError as error:
        logging.getLogger(__name__).error(str(error))


def name_and_person(fl_ctx: FLContext) -> tuple[str, str | None]:
    """Return a job's name and, if known, its submitter."""
    meta = fl_ctx.get_prop(FLContextKey.JOB_META) or {}
    person = meta.get(JobMetaKey.SUBMITTER_NAME.value)
    return str(meta.get(JobMetaKey.JOB_NAME.value, "")), str(person) if person else None
