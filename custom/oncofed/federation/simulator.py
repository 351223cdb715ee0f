"""FLARE's simulator with sites that share memory: each is a fork of one process that has imported what training needs.

``python -m oncofed.federation.simulator JOB WORKSPACE SITE...`` runs a job as ``nvflare simulator`` does. That starts
a program anew for each site, which costs each 0.4 GB and seconds of imports before it does anything.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.forkserver import ensure_running
from types import SimpleNamespace

from nvflare.fuel.utils.log_utils import LogMode
from nvflare.private.fed.app.simulator import simulator_runner

from oncofed.federation.heap import share_one_heap
from oncofed.federation.job_process import MODULES, become
from oncofed.processes import end_with_parent, name_process

_WORKER = "nvflare.private.fed.app.simulator.simulator_worker"
_CONTEXT = multiprocessing.get_context("forkserver")


class _ForkedSite:
    """A site's process, as much of ``subprocess.Popen`` as the simulator uses."""

    def __init__(self, command: list[str], *, env: dict[str, str], shell: bool, preexec_fn: Callable[[], None]) -> None:
        del shell, preexec_fn
        module = command.index("-m") + 1
        self._process = _CONTEXT.Process(target=_be_site, args=(command[module], command[module + 1 :], env))
        self._process.start()
        self.pid = self._process.pid
        self.terminate, self.kill = self._process.terminate, self._process.kill

    @property
    def returncode(self) -> int | None:
        """How it ended; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return how it ended; None while it runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for its end."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(_WORKER, timeout or 0.0)
        return self.returncode


def _be_site(module: str, arguments: list[str], environment: dict[str, str]) -> None:
    end_with_parent()
    os.setsid()
    name_process("oncofed site")
    # A look for garbage would write to every page that the sites share.
    gc.freeze()
    share_one_heap()
    become(module, arguments, environment)


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
    # PyTorch's usual way to look for a GPU would keep the forks from using one.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    _CONTEXT.set_forkserver_preload([*MODULES, _WORKER])
    ensure_running()
    simulator_runner.subprocess = SimpleNamespace(Popen=_ForkedSite, TimeoutExpired=subprocess.TimeoutExpired)
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
