"""Run FLARE's simulator with sites that share memory.

``python -m oncofed.flare.runtime.simulator JOB WORKSPACE SITE...`` runs a job as ``nvflare simulator`` does, but each
site is a fork of a process that was itself split off from the server's, once that had imported what both need. FLARE
starts a new program for each: 0.4 GB and seconds of imports before it does anything.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from multiprocessing import connection
from threading import Thread

from nvflare.fuel.utils.log_utils import LogMode
from nvflare.private.fed.app.simulator import simulator_runner

from oncofed.flare.patches.simulator_sites import start_sites_with
from oncofed.flare.runtime.forkserver import ForkedProcess, ForkServer, JobCommand, request_fork
from oncofed.flare.runtime.forkserver_process import SPARE_PROCESS, serve
from oncofed.flare.runtime.malloc import share_one_heap
from oncofed.flare.runtime.preload import import_all
from oncofed.processes import name_process

Fork = Callable[[JobCommand], ForkedProcess]


def start_site(
    fork: Fork, command: list[str], env: dict[str, str], shell: bool, preexec_fn: Callable[[], None]
) -> ForkedProcess:
    """Start a site as a fork, in place of ``subprocess.Popen``."""
    del shell, preexec_fn  # the command is a list, and a fork leads its own process group, as FLARE requests
    module = command.index("-m") + 1
    return fork(JobCommand(command[module], command[module + 1 :], env))


class _Simulator(simulator_runner.SimulatorRunner):
    """FLARE's simulator with its server in this process."""

    def run(self) -> int:
        """Simulate in this process.

        FLARE uses two processes, one of which outlives a killed parent.
        """
        ended: dict[str, int] = {}
        self.run_process(ended)
        return ended["run_status"]


def split_off_fork_server() -> Fork:
    """Split a process that starts sites off this one.

    It and this process share what is imported here. Call it before this process has threads; in a site it does not
    return.
    """
    # PyTorch's usual way to look for a GPU would keep the forks from using one.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    warning = import_all()
    if warning:
        return ForkServer().fork  # which gives the warning, and whose forks start Python again
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork():
        theirs.close()
        return partial(request_fork, ours)
    ours.close()
    os.setsid()
    name_process(SPARE_PROCESS)
    serve(theirs)
    sys.exit()


def end_with(parent: int) -> None:
    """Kill this process once its parent has ended.

    A fork's parent is whichever process requested it, which the system knows nothing of.
    """
    try:
        connection.wait([os.pidfd_open(parent)])
    except ProcessLookupError:
        pass  # it has ended already
    except (AttributeError, OSError):
        return  # older than Linux 5.3
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    """Start the fork server, simulate, and return FLARE's status."""
    share_one_heap()
    start_sites_with(partial(start_site, split_off_fork_server()))
    Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    job, workspace, *sites = sys.argv[1:]
    simulator = _Simulator(
        job_folder=job,
        workspace=workspace,
        clients=",".join(sites),
        threads=len(sites),
        log_config=os.environ.get("FL_LOG_LEVEL", LogMode.CONCISE),
        max_clients=len(sites),
    )
    return simulator.run()


if __name__ == "__main__":
    sys.exit(main())
