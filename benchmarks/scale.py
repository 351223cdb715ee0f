"""What many sites on one machine cost: FLARE's simulator with few and with many, each a process of its own.

The sites have few small patients and train few steps, so that what is measured is the federation: wall time of a round
divided by its sites, and the memory that the machine gives for each site.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from figures import hand_over, options
from oncofed.data.brain import HOSPITALS, make_hospitals
from oncofed.job.run import Run
from oncofed.job.spec import read_job


def measure(sites: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Run one simulation and return its rounds in seconds and the memory that it took in GB."""
    hospitals = tuple(
        dataclasses.replace(
            HOSPITALS[number % len(HOSPITALS)], name=f"site-{number + 1}", train=2, validation=1, test=1
        )
        for number in range(sites)
    )
    folders = make_hospitals(folder / "data", seed=1, hospitals=hospitals)
    spec = read_job("brain_tissue_segmentation").changed(
        {"training": {"steps_per_round": 2, "warmup_steps": 0}, "rounds": {"number": rounds}}
    )
    before, most, over = psutil.virtual_memory().used, 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.5):
            most = max(most, psutil.virtual_memory().used)

    threading.Thread(target=watch, daemon=True).start()
    started = time.time()
    result = Run(spec, folders, "simulate", folder / "run", Console(quiet=True), baselines=False).execute()
    over.set()
    return {
        "sites": sites,
        "rounds_s": result.timing.rounds_s,
        "s_per_site_round": statistics.median(result.timing.rounds_s) / sites,
        "startup_s": result.timing.startup_s,
        "total_s": time.time() - started,
        "memory_gb_per_site": (most - before) / 1e9 / sites,
    }


def main() -> None:
    """Measure, print a table, and keep it where asked."""
    parser = options(__doc__)
    parser.add_argument("--sites", type=int, nargs="+", default=[8, 24], help="how many, one simulation each")
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="oncofed-bench-") as temporary:
        rows = [measure(sites, arguments.rounds, Path(temporary) / str(sites)) for sites in arguments.sites]
    record = {"benchmark": "scale", "rows": rows}
    hand_over(record, arguments, _table(rows))


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'sites':>6}{'s per site-round':>18}{'start, s':>10}{'GB per site':>13}"]
    for row in rows:
        figures = f"{row['s_per_site_round']:18.3f}{row['startup_s']:10.0f}{row['memory_gb_per_site']:13.2f}"
        lines.append(f"{row['sites']:6}{figures}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
