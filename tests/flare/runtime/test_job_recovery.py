"""A job waits until a site has room for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from nvflare.apis.job_def import JobMetaKey, RunStatus

from oncofed.flare.runtime.job_recovery import JobRecovery, job_mark

COUNT, HISTORY = JobMetaKey.SCHEDULE_COUNT.value, JobMetaKey.SCHEDULE_HISTORY.value


class _Manager:
    """Holds jobs as FLARE's own manager does."""

    def __init__(self, *metas: dict[str, Any]) -> None:
        self.jobs = [SimpleNamespace(job_id=str(number), meta=meta) for number, meta in enumerate(metas)]

    def get_jobs_by_status(self, status: list[RunStatus], fl_ctx: object) -> list[SimpleNamespace]:
        assert status == [RunStatus.SUBMITTED]
        return self.jobs

    def update_meta(self, job_id: str, meta: dict[str, Any], fl_ctx: object) -> None:
        self.jobs[int(job_id)].meta |= meta


def _engine(manager: _Manager) -> Any:
    @contextlib.contextmanager
    def new_context() -> Iterator[object]:
        yield object()

    return SimpleNamespace(get_component=lambda name: manager, new_context=new_context)


def test_waiting_jobs_keep_a_low_schedule_count() -> None:
    ours = {JobMetaKey.CUSTOM_PROPS.value: job_mark(), COUNT: 9, HISTORY: [f"try {n}" for n in range(500)]}
    others = {COUNT: 9, HISTORY: ["try 9"]}
    manager = _Manager(ours, others)
    recovery = JobRecovery()
    recovery._waiting_checked = -1e9
    recovery._keep_waiting(_engine(manager))
    assert ours[COUNT] < 9
    assert ours[HISTORY] == [f"try {n}" for n in range(480, 500)]
    assert others == {COUNT: 9, HISTORY: ["try 9"]}
    # Not at every look.
    ours[COUNT] = 9
    recovery._keep_waiting(_engine(manager))
    assert ours[COUNT] == 9
