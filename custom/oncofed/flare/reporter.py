"""Progress of a site's local training, for server and site."""

from __future__ import annotations

import logging
from typing import Any

from nvflare.apis.executor import Executor
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

from oncofed.client.status_file import StatusFile
from oncofed.flare import wire
from oncofed.flare.folders import kit_folder
from oncofed.privacy.outbound import progress_that_may_leave


class FlareReporter:
    """Reports to the server and to the site's local log.

    See ``ProgressReporter``.

    Args:
        executor: of the site.
        fl_ctx: of the job.
        private: losses stay here: the job has differential privacy, or they are summed under masks.
    """

    def __init__(self, executor: Executor, fl_ctx: FLContext, private: bool = False) -> None:
        self._executor, self._engine = executor, fl_ctx.get_engine()
        self._status = status_file(fl_ctx)
        self._fl_ctx, self._private = fl_ctx, private

    def progress(self, **values: Any) -> None:
        """Report to the status file and, filtered, to the server."""
        self._status.now(**values)
        values = progress_that_may_leave(values, self._private)
        with self._engine.new_context() as context:
            self._executor.fire_fed_event(wire.PROGRESS_EVENT, Shareable(values), context)

    def note(self, text: str, level: int) -> None:
        """Write to the site's local log."""
        logs = {logging.INFO: self._executor.log_info, logging.WARNING: self._executor.log_warning}
        logs.get(level, self._executor.log_error)(self._fl_ctx, text, fire_event=False)


def status_file(fl_ctx: FLContext) -> StatusFile:
    """Return the status file for the site's admin."""
    return StatusFile(kit_folder(fl_ctx), str(fl_ctx.get_job_id()))
