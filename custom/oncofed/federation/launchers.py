"""Job processes that are started again when they die. A site's and the server's ``local/resources.json`` name these.

FLARE ends a job when a job process of one site ends by itself. What a process of ours needs to go on is on disk, so the
parent starts it again, and nobody but the run's record learns of it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobHandleSpec, JobReturnCode
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher
from nvflare.app_common.job_launcher.server_process_launcher import ServerProcessJobLauncher

# So often in so many seconds; a process that dies more often has a reason that starting again does not mend.
_MOST_RESTARTS = 5
_WITHIN_SECONDS = 600.0
_SECONDS_BEFORE_RESTART = 0.2
_FLARE_MODULE = "nvflare.private.fed.app.server.runner_process"
_OUR_MODULE = "oncofed.federation.server_process"


class RestartedProcess(JobHandleSpec):
    """A job's process as FLARE sees it: one that ends when it is done, or when starting it again does not help.

    Args:
        start: starts the process and returns FLARE's handle of it.
        errors: exit statuses after which it is started again too, beside every end by a signal.
    """

    def __init__(self, start: Callable[[], JobHandleSpec], errors: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self._start = start
        self._errors = errors
        self._handle = start()
        self._lock = threading.Lock()
        self._terminated = False
        self._restarts: list[float] = []
        self._logger = logging.getLogger(type(self).__name__)

    def terminate(self) -> None:
        """End the process for good."""
        with self._lock:
            self._terminated = True
            self._handle.terminate()

    def poll(self) -> JobReturnCode:
        """Return how the process ended; unknown while it runs or is about to be started again."""
        with self._lock:
            code = self._handle.poll()
            return code if not self._is_to_restart() else JobReturnCode.UNKNOWN

    def wait(self) -> None:
        """Wait for the end, and start the process again where it was killed."""
        while True:
            self._handle.wait()
            with self._lock:
                if not self._is_to_restart():
                    return
                self._restarts.append(time.monotonic())
            self._logger.warning("the job's process was killed and is started again (%d)", len(self._restarts))
            time.sleep(_SECONDS_BEFORE_RESTART)
            with self._lock:
                if self._terminated:
                    return
                self._handle = self._start()

    def _is_to_restart(self) -> bool:
        code = self._status()
        if self._terminated or code is None or (code >= 0 and code not in self._errors):
            return False
        recent = [at for at in self._restarts if time.monotonic() - at < _WITHIN_SECONDS]
        return len(recent) < _MOST_RESTARTS

    def _status(self) -> int | None:
        adapter = getattr(self._handle, "adapter", None)
        code = adapter.poll() if adapter else None
        return int(code) if code is not None else None


class SiteJobLauncher(ClientProcessJobLauncher):
    """Starts a site's job process, and starts it again when it is killed."""

    def launch_job(self, job_meta: dict[str, object], fl_ctx: FLContext) -> JobHandleSpec:
        """Start the process."""
        return _restarted(super().launch_job, job_meta, fl_ctx)


class ServerJobLauncher(ServerProcessJobLauncher):
    """Starts the server's job process, and starts it again when it is killed, or when FLARE gave it up.

    FLARE ends it with status 1 when an update breaks off on its way, whichever site's link it was.
    """

    def get_command(self, job_meta: dict[str, object], fl_ctx: FLContext) -> str:
        """Return FLARE's command, by way of our own module."""
        command: str = super().get_command(job_meta, fl_ctx)
        return command.replace(_FLARE_MODULE, _OUR_MODULE)

    def launch_job(self, job_meta: dict[str, object], fl_ctx: FLContext) -> JobHandleSpec:
        """Start the process."""
        return _restarted(super().launch_job, job_meta, fl_ctx, frozenset({1}))


def _restarted(
    launch: Callable[[dict[str, object], FLContext], JobHandleSpec],
    job_meta: dict[str, object],
    fl_ctx: FLContext,
    errors: frozenset[int] = frozenset(),
) -> JobHandleSpec:
    # FLARE changes its context after the first start: what the command is made of is kept as it is now.
    kept = fl_ctx.clone()
    return RestartedProcess(lambda: launch(job_meta, kept), errors)
