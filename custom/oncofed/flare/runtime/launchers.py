"""Start job processes fast, and restart killed ones.

Startup kits name these launchers in ``local/resources.json``. FLARE ends a job when a job process of one site ends by
itself. Our processes keep all that they need to resume on disk, so the parent restarts them, and only the run's record
shows it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, JobConstants
from nvflare.apis.fl_context import FLContext
from nvflare.apis.job_launcher_spec import JobHandleSpec, JobReturnCode
from nvflare.app_common.job_launcher.client_process_launcher import ClientProcessJobLauncher
from nvflare.app_common.job_launcher.process_launcher import ProcessHandle, ProcessJobLauncher
from nvflare.app_common.job_launcher.server_process_launcher import ServerProcessJobLauncher
from nvflare.utils.job_launcher_utils import add_custom_dir_to_path, get_credential_env

from oncofed.flare.folders import STATE_FOLDER
from oncofed.flare.patches.own_loopback import use_own_loopback
from oncofed.flare.patches.proxy import use_proxy_of_environment
from oncofed.flare.runtime.forkserver import FORK_SERVER_VARIABLE, ForkedProcess, ForkServer, JobCommand, request_fork
from oncofed.flare.transfer.shared_port import share_port

# A process that dies more often within this time has a cause that a restart does not fix.
_MOST_RESTARTS = 5
_WITHIN_SECONDS = 600.0
_SECONDS_BEFORE_RESTART = 0.2


class RestartedProcess(JobHandleSpec):
    """FLARE's handle of a job's process that is restarted.

    Args:
        start: starts the process and returns FLARE's handle of it.
        errors: exit statuses after which it is restarted, in addition to every end by a signal.
    """

    def __init__(self, start: Callable[[], JobHandleSpec], errors: frozenset[int]) -> None:
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
        """Return how the process ended; unknown until then."""
        with self._lock:
            code = self._handle.poll()
            return code if not self._is_to_restart() else JobReturnCode.UNKNOWN

    def wait(self) -> None:
        """Wait for the end, restarting a killed process."""
        while self._wait_for_end():
            self._logger.warning("the job's process was killed and is started again (%d)", len(self._restarts))
            time.sleep(_SECONDS_BEFORE_RESTART)
            with self._lock:
                if self._terminated:
                    break
                self._handle = self._start()

    def _wait_for_end(self) -> bool:
        """Return whether the process is to be restarted."""
        self._handle.wait()
        with self._lock:
            if not self._is_to_restart():
                return False
            self._restarts.append(time.monotonic())
            return True

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


class _ReadyLauncher(ProcessJobLauncher):
    """Starts jobs as forks of a fork server.

    Args:
        spare: start the fork server before the first job. Without it that job starts some seconds later, and an idle
            participant takes 0.4 GB less memory.
    """

    restart_after: frozenset[int] = frozenset()

    def __init__(self, spare: bool = True) -> None:
        super().__init__()
        # FLARE creates this component before it connects, and no other of ours.
        use_proxy_of_environment()
        use_own_loopback()
        self._keeps_spare = spare
        self._fork_server: ForkServer | None = None
        self._lock = threading.Lock()
        shared = os.environ.pop(FORK_SERVER_VARIABLE, "")
        self._shared = socket.socket(fileno=int(shared)) if shared else None

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Start and stop the fork server with the participant."""
        super().handle_event(event_type, fl_ctx)
        if event_type == EventType.SYSTEM_START and self._keeps_spare and not self._shared:
            self._fork_server = ForkServer()
        elif event_type == EventType.SYSTEM_END and self._fork_server:
            self._fork_server.close()

    def launch_job(self, job_meta: dict[str, object], fl_ctx: FLContext) -> JobHandleSpec:
        """Start a job's process."""
        # FLARE changes its context after the first start: read everything now.
        workspace = fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT)
        environment = dict(os.environ)
        folder = workspace.get_app_custom_dir(job_meta.get(JobConstants.JOB_ID))
        if folder:
            add_custom_dir_to_path(folder, environment)
        environment.update(get_credential_env(fl_ctx.get_prop(FLContextKey.JOB_PROCESS_ARGS) or {}))
        command = shlex.split(self.get_command(job_meta, fl_ctx))
        module = command.index("-m") + 1
        job = JobCommand(command[module], command[module + 1 :], environment)
        return RestartedProcess(lambda: ProcessHandle(process=self._start(job)), self.restart_after)

    def _start(self, job: JobCommand) -> ForkedProcess:
        with self._lock:
            if self._shared:
                with contextlib.suppress(OSError):
                    return request_fork(self._shared, job)
                self._shared.close()  # its server has ended: start one for this participant
                self._shared = None
            if self._fork_server:
                with contextlib.suppress(OSError):
                    return self._fork_server.fork(job)
                self._fork_server.kill()  # it was killed: reap it
            self._fork_server = ForkServer()
            started = self._fork_server.fork(job)
            if not self._keeps_spare:
                self._fork_server.close()
                self._fork_server = None
            return started


class SiteJobLauncher(_ReadyLauncher, ClientProcessJobLauncher):
    """Starts a site's job processes; restarts those that are killed."""


class ServerJobLauncher(_ReadyLauncher, ServerProcessJobLauncher):
    """Starts the server's job processes; restarts killed and failed ones.

    FLARE ends one with status 1 when an update breaks off in transit, whichever site's link it was.
    """

    restart_after = frozenset({1})

    def __init__(self, spare: bool = True) -> None:
        super().__init__(spare)
        self._jobs = share_port()

    def launch_job(self, job_meta: dict[str, object], fl_ctx: FLContext) -> JobHandleSpec:
        """Start a job's process, which sites can reach directly."""
        root, job_id = fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT).get_root_dir(), str(job_meta[JobConstants.JOB_ID])
        self._jobs.folders[job_id] = Path(root) / STATE_FOLDER / job_id
        return super().launch_job(job_meta, fl_ctx)
