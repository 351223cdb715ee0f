"""Seconds from submitting a job to a site's first training step; a server and four sites that were idle before.

Each participant keeps one process that has imported torch and MONAI; beside it the same alliance without such spares,
in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from fault_lab import DisturbedAlliance, Lab, lab
from machine import machine
from oncofed.data.brain import make_hospitals
from oncofed.job.spec import JobSpec, read_job

_BASELINE = Path(__file__).parent / "baselines" / "start.json"
_SECONDS_UNTIL_IDLE = 20.0
_TARGET_SECONDS = 10.0


def without_spares(alliance: DisturbedAlliance) -> None:
    """Have no participant keep a process ready, as its owner may."""
    for kit in (alliance.server_kit, *(alliance.kit(site) for site in alliance.spec.sites)):
        file = kit / "local" / "resources.json"
        resources = json.loads(file.read_text(encoding="utf-8"))
        for component in resources["components"]:
            if component["path"].startswith("oncofed.federation.launchers."):
                component["args"] = {"spare": False}
        file.write_text(json.dumps(resources), encoding="utf-8")


def measure(spec: JobSpec, sites: dict[str, Path], folder: Path, spares: bool, runs: int) -> list[float]:
    """Return for each run the seconds until the first step of the site that came to it first."""
    prepared = None if spares else without_spares
    with lab(spec, sites, folder, prepared=prepared) as running:
        running.wait(lambda state: state.finished is not None, "the first job ends")
        return [_first_step(running, spec) for _ in range(runs)]


def _first_step(running: Lab, spec: JobSpec) -> float:
    time.sleep(_SECONDS_UNTIL_IDLE)
    submitted = time.time()
    running.submit(spec)
    running.wait(lambda state: any(site.step for site in state.sites.values()), "the first step")
    running.wait(lambda state: state.finished is not None, "the job ends")
    with running.job.events.open(encoding="utf-8") as events:
        steps = [event for event in map(json.loads, events) if event.get("phase") == "training"]
    return float(steps[0]["time"] - submitted)


def main() -> None:
    """Measure, print a table, and keep it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="jobs of each kind (default 3)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--save", action="store_true", help="keep the figures in benchmarks/baselines/")
    arguments = parser.parse_args()
    spec = read_job("brain_tissue_segmentation").changed(
        {"training": {"steps_per_round": 5, "warmup_steps": 0}, "rounds": {"number": 1}}
    )
    with tempfile.TemporaryDirectory(prefix="oncofed-start-") as temporary:
        folder = Path(temporary)
        sites = make_hospitals(folder / "data", seed=1)
        with_spares = measure(spec, sites, folder / "spares", True, arguments.runs)
        without = measure(spec, sites, folder / "none", False, arguments.runs)
    record: dict[str, Any] = {
        "benchmark": "start",
        "unit": "s",
        "sites": len(sites),
        "seconds": with_spares,
        "seconds_without_spares": without,
        "ratio": statistics.median(without) / statistics.median(with_spares),
        "target": _TARGET_SECONDS,
        "machine": machine(),
    }
    if arguments.save:
        _BASELINE.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if arguments.json:
        print(json.dumps(record, indent=2))
    else:
        print(f"from submitting to the first step, s, medians of {arguments.runs} jobs, {len(sites)} sites")
        print(f"{'a process ready':20}{statistics.median(with_spares):6.1f}   target {_TARGET_SECONDS:.0f}")
        print(f"{'none ready':20}{statistics.median(without):6.1f}")


if __name__ == "__main__":
    main()
