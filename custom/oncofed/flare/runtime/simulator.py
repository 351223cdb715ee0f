"""FLARE's simulator with sites that share memory: each is a fork of one process that has imported what training needs.

``python -m oncofed.flare.runtime.simulator JOB WORKSPACE SITE...`` runs a job as ``nvflare simulator`` does, which
starts a new program for each site: 0.4 GB and seconds of imports for each before it does anything.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

from nvflare.fuel.utils.log_utils import LogMode
from nvflare.fuel.utils.network_utils import get_open_ports
from nvflare.private.fed.app.simulator import simulator_runner

from oncofed.flare.patches.own_loopback import simulate_over_own_loopback
from oncofed.flare.runtime.forkserver import Fork, ForkServer, order
from oncofed.flare.runtime.malloc import share_one_heap


def start_site(
    template: ForkServer, command: list[str], env: dict[str, str], shell: bool, preexec_fn: Callable[[], None]
) -> Fork:
    """Start a site's process as a fork, where the simulator would start a program with ``subprocess.Popen``."""
    del shell, preexec_fn  # the command is a list, and the fork leads a group of its own, as FLARE wants it
    module = command.index("-m") + 1
    return template.fork(order(command[module], command[module + 1 :], env))


class Starter(simulator_runner.SimulatorClientRunner):
    """Starts each site from a thread of its own.

    FLARE's threads write the name of their site into one dictionary, which they then send to the site's process: of two
    that do so at once one sends the other's name.
    """

    def __init__(self, *args: Any) -> None:
        self._of_thread = threading.local()
        super().__init__(*args)

    @property
    def build_ctx(self) -> dict[str, Any]:
        """What a site's process is told, and this thread alone changes."""
        own: dict[str, Any] = self._of_thread.__dict__.setdefault("build_ctx", dict(self._common))
        return own

    @build_ctx.setter
    def build_ctx(self, common: dict[str, Any]) -> None:
        self._common = common


class Ports:
    """Ports that nobody listens on, none of them twice.

    A site's process begins to listen on its own some time after FLARE looked for it; another site would be given the
    same one meanwhile, and both would wait for ever.
    """

    def __init__(self) -> None:
        self._given: set[int] = set()
        self._lock = threading.Lock()

    def take(self, number: int) -> list[int]:
        """Return so many."""
        with self._lock:
            new: list[int] = []
            while len(new) < number:
                new += set(get_open_ports(number - len(new))) - self._given
                self._given.update(new)
            return new


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
    simulator_runner.subprocess = SimpleNamespace(
        Popen=partial(start_site, ForkServer()), TimeoutExpired=subprocess.TimeoutExpired
    )
    simulator_runner.SimulatorClientRunner = Starter
    simulator_runner.get_open_ports = Ports().take
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
