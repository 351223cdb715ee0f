"""Seconds from submitting a job to a site's first training step; a server and four sites that were idle before.

Each participant keeps one process that has imported torch and MONAI; beside it the same alliance without such spares,
in the same run.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fault_lab import Lab, change_resources, lab
from figures import hand_over, options
from oncofed.alliance.local import LocalAlliance
from oncofed.data.brain import make_hospitals
from oncofed.federation.events import EventReader
from oncofed.job.spec import JobSpec, read_job

_SECONDS_UNTIL_IDLE = 20.0
_TARGET_SECONDS = 10.0


def without_spares(alliance: LocalAlliance) -> None:
    """Have no participant keep a process ready, as its owner may."""

    def change(resources: dict[str, Any]) -> None:
        for component in resources["components"]:
            if component.get("path", "").startswith("oncofed.federation.launchers."):
                component["args"] = {"spare": False}

    for participant in (alliance.spec.server, *alliance.spec.sites):
        change_resources(alliance.kit(participant), change)


def measure(
    spec: JobSpec,
    sites: dict[str, Path],
    folder: Path,
    runs: int,
    prepared: Callable[[LocalAlliance], None] = lambda _: None,
) -> list[float]:
    """Return for each run the seconds until the first step of the site that came to it first."""
    with lab(spec, sites, folder, prepared=prepared) as running:
        running.wait(lambda state: state.finished is not None, "the first job ends")
        return [_first_step(running, spec) for _ in range(runs)]


def _first_step(running: Lab, spec: JobSpec) -> float:
    time.sleep(_SECONDS_UNTIL_IDLE)
    submitted = time.time()
    running.submit(spec)
    running.wait(lambda state: state.finished is not None, "the job ends")
    first = next(event for event in EventReader(running.job.events).read() if event.get("phase") == "training")
    return float(first["time"] - submitted)


def main() -> None:
    """Measure, print a table, and keep it where asked."""
    parser = options(__doc__)
    parser.add_argument("--runs", type=int, default=3, help="jobs of each kind (default 3)")
    arguments = parser.parse_args()
    spec = read_job("brain_tissue_segmentation").changed(
        {"training": {"steps_per_round": 5, "warmup_steps": 0}, "rounds": {"number": 1}}
    )
    with tempfile.TemporaryDirectory(prefix="oncofed-start-") as temporary:
        folder = Path(temporary)
        sites = make_hospitals(folder / "data", seed=1)
        ready = measure(spec, sites, folder / "spares", arguments.runs)
        none = measure(spec, sites, folder / "none", arguments.runs, without_spares)
    record: dict[str, Any] = {
        "benchmark": "start",
        "unit": "s",
        "sites": len(sites),
        "seconds": ready,
        "seconds_without_spares": none,
        "ratio": statistics.median(none) / statistics.median(ready),
        "target": _TARGET_SECONDS,
    }
    hand_over(record, arguments, _table(record))


def _table(record: dict[str, Any]) -> str:
    ready, none = (statistics.median(record[key]) for key in ("seconds", "seconds_without_spares"))
    return (
        f"from submitting to the first step, s, medians of {len(record['seconds'])} jobs, {record['sites']} sites\n"
        f"{'a process ready':20}{ready:6.1f}   target {record['target']:.0f}\n"
        f"{'none ready':20}{none:6.1f}"
    )


if __name__ == "__main__":
    main()
