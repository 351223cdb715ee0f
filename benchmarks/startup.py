"""Seconds from submission to the first training step.

With idle participants. Each participant keeps a process that has imported torch and MONAI; the baseline is the same
alliance without. The limit is the import of both in one process.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from brain import brain_job, brain_sites
from fault_lab import Lab, change_resources, lab
from harness.bench import Bench
from harness.results import Baseline, Limit, Target
from oncofed.alliance.local import LocalAlliance
from oncofed.job.spec import JobSpec
from oncofed.rounds.events import EventReader, SiteProgress

_SECONDS_UNTIL_IDLE, _SECONDS_UNTIL_IDLE_QUICK = 10.0, 3.0
_TARGET_SECONDS = 10.0


def run(bench: Bench) -> None:
    """Measure with spare processes and without."""
    jobs = 1 if bench.quick else 3
    spec = brain_job(bench.quick, {"training": {"steps_per_round": 5, "warmup_steps": 0}, "rounds": {"number": 1}})
    sites = brain_sites(bench.quick, bench.folder / "data")
    bench.doing("importing")
    command = [sys.executable, "-c", "import torch, monai.networks.nets, monai.transforms"]
    imports = bench.best(lambda: subprocess.run(command, check=True), 3)
    bench.doing("a process ready")
    idle = _SECONDS_UNTIL_IDLE_QUICK if bench.quick else _SECONDS_UNTIL_IDLE
    ready = measure(spec, sites, bench.folder / "spares", jobs, idle, bench.quick)
    beside = Baseline(name="without processes that wait", missing="left out of a quick run")
    if not bench.quick:
        bench.doing("none ready")
        none = measure(spec, sites, bench.folder / "none", jobs, idle, False, without_spares)
        beside = Baseline(name=beside.name, samples=none)
    bench.measured(
        "from submitting to the first step, server and 4 sites",
        ready,
        "s",
        settings={"sites": len(sites)},
        baseline=beside,
        limit=Limit(name="importing torch and MONAI once", value=imports),
        target=Target(of="value", value=_TARGET_SECONDS),
    )


def without_spares(alliance: LocalAlliance) -> None:
    """Configure participants without spare processes."""

    def change(resources: dict[str, Any]) -> None:
        for component in resources["components"]:
            if component.get("path", "").startswith("oncofed.flare.runtime.launchers."):
                component["args"] = {"spare": False}

    for participant in (alliance.spec.server, *alliance.spec.sites):
        change_resources(alliance.kit(participant), change)


def measure(
    spec: JobSpec,
    sites: dict[str, Path],
    folder: Path,
    runs: int,
    idle: float,
    shared: bool,
    prepared: Callable[[LocalAlliance], None] = lambda _: None,
) -> list[float]:
    """Return each run's seconds until the first step.

    At the site that came to it first.

    Args:
        spec: of the job.
        sites: site -> folder of its images.
        folder: for everything that is written.
        runs: how many.
        idle: seconds between the end of a run and the next one.
        shared: whether the participants, all on this machine, share one process that is ready.
        prepared: see ``DisturbedAlliance``.
    """
    with lab(spec, sites, folder, prepared=prepared, shares_fork_server=shared) as running:
        running.wait(lambda state: state.finished is not None, "the first job ends")
        return [_first_step(running, spec, idle) for _ in range(runs)]


def _first_step(running: Lab, spec: JobSpec, idle: float) -> float:
    time.sleep(idle)
    submitted = time.time()
    running.submit(spec)
    running.wait(lambda state: state.finished is not None, "the job ends")
    progress = (event for event in EventReader(running.job.events).read() if isinstance(event, SiteProgress))
    return next(event.time for event in progress if event.phase == "training") - submitted
