"""Run FLARE's simulator with sites that share memory.

``python -m oncofed.flare.runtime.simulator JOB WORKSPACE SITE...`` runs a job as ``nvflare simulator`` does, but each
site is a fork of one preloaded process. FLARE starts a new program for each: 0.4 GB and seconds of imports before it
does anything.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial

from nvflare.fuel.utils.log_utils import LogMode
from nvflare.private.fed.app.simulator import simulator_runner

from oncofed.flare.patches.own_loopback import simulate_over_own_loopback
from oncofed.flare.patches.simulator_sites import start_sites_with
from oncofed.flare.runtime.forkserver import ForkedProcess, ForkServer, JobCommand
from oncofed.flare.runtime.malloc import share_one_heap


def start_site(
    fork_server: ForkServer, command: list[str], env: dict[str, str], shell: bool, preexec_fn: Callable[[], None]
) -> ForkedProcess:
    """Start a site as a fork, in place of ``subprocess.Popen``."""
    del shell, preexec_fn  # the command is a list, and a fork leads its own process group, as FLARE requests
    module = command.index("-m") + 1
    return fork_server.fork(JobCommand(command[module], command[module + 1 :], env))


class _Simulator(simulator_runner.SimulatorRunner):
    """FLARE's simulator with its server in this process."""

    def run(self) -> int:
        """Simulate in this process.

        FLARE uses two processes, one of which outlives a killed parent.
        """
        ended: dict[str, int] = {}
        self.run_process(ended)
        return ended["run_status"]


def main() -> int:
    """Start the fork server, simulate, and return FLARE's status."""
    share_one_heap()
    simulate_over_own_loopback()
    start_sites_with(partial(start_site, ForkServer()))
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
