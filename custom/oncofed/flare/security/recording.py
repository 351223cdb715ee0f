"""Entries that job processes write to the audit log."""

from __future__ import annotations

import logging
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


def keep_anchor(site: str, reported: str | None, fl_ctx: FLContext) -> None:
    """Record the anchor of a site's audit log.

    Runs on the server.

    Args:
        site: its name.
        reported: the log's last line, as a result reports it. Invalid values are ignored: a site may send anything.
        fl_ctx: of the server's job.
    """
    try:
        anchor = Anchor.parse(reported or "")
    except ValueError:
        return
    try:
        audit_log(fl_ctx).write(ANCHORED, site, job=str(fl_ctx.get_job_id()), anchor=str(anchor))
    except AuditError as error:
        logging.getLogger(__name__).error(str(error))


def name_and_person(fl_ctx: FLContext) -> tuple[str, str | None]:
    """Return a job's name and, if known, its submitter."""
    meta = fl_ctx.get_prop(FLContextKey.JOB_META) or {}
    person = meta.get(JobMetaKey.SUBMITTER_NAME.value)
    return str(meta.get(JobMetaKey.JOB_NAME.value, "")), str(person) if person else None
