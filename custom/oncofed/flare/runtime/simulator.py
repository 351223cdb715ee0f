"""FLARE's simulator with sites that share memory: each is a fork of one process that has imported what training needs.

``python -m oncofed.flare.runtime.simulator JOB WORKSPACE SITE...`` runs a job as ``nvflare simulator`` does, which
starts a new program for each site: 0.4 GB and seconds of imports for each before it does anything.
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
from oncofed.flare.runtime.forkserver import Fork, ForkServer, order
from oncofed.flare.runtime.malloc import share_one_heap


def start_site(
    template: ForkServer, command: list[str], env: dict[str, str], shell: bool, preexec_fn: Callable[[], None]
) -> Fork:
    """Start a site's process as a fork, where the simulator would start a program with ``subprocess.Popen``."""
    del shell, preexec_fn  # the command is a list, and the fork leads a group of its own, as FLARE wants it
    module = command.index("-m") + 1
    return template.fork(order(command[module], command[module + 1 :], env))


class _Simulator(simulator_runner.SimulatorRunner):
    """FLARE's simulator, whose server is this very process."""

    def run(self) -> int:
        """Simulate; FLARE's own way is by two more processes, of which one outlives a parent that is killed."""
        ended: dict[str, int] = {}
        self.run_process(ended)
        return ended["run_status"]


def main() -> int:
    """Get the process ready that sites are forks of, simulate, and return FLARE's status."""
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
