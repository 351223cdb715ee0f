"""Many simulated sites: time and memory per site-round.

On one machine. The sites have few patients, coarse images and few steps, so that the federation dominates: wall time of
a round over its sites, and memory of each site. Baselines train nothing: FLARE's simulator with its ``FedAvgRecipe``
over the same network and a script that returns its input, and Flower's simulation with its FedAvg over as many numbers.
Oncofed's first three rounds do not count.
"""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from brain import brain_job
from flower import flower_baseline, simulate_flower
from harness.bench import WARM_UP_ROUNDS, Bench, Settings
from harness.results import Baseline, Figure, Target
from oncofed.data.brain import HOSPITALS, make_hospitals
from oncofed.job.run import Run
from oncofed.job.spec import read_job
from stock import simulate_stock, stock_baseline

# FLARE's simulator imports torch and MONAI in each site's process: more sites do not fit into 24 GiB.
_MOST_STOCK = 8
# 8 sites run before and after 64: on a shared machine speed changes over time.
_FEW, _MANY = 8, 64
_ROUNDS = 7


def run(bench: Bench) -> None:
    """Measure few and many sites."""
    if bench.quick:
        _tell(bench, 4, [measure(4, 2, bench.folder / "4")])
        return
    before = _steady(bench, _FEW, "before")
    for sites in (4, 24):
        _tell(bench, sites, [_steady(bench, sites, "only")])
    many = _steady(bench, _MANY, "only")
    few = _tell(bench, _FEW, [before, _steady(bench, _FEW, "after")])
    _tell(bench, _MANY, [many], Target(of="value", value=few.value))


def _steady(bench: Bench, sites: int, name: str) -> dict[str, Any]:
    bench.doing(f"{sites} sites")
    found = measure(sites, WARM_UP_ROUNDS + _ROUNDS, bench.folder / f"{sites}-{name}")
    return found | {"rounds_s": found["rounds_s"][WARM_UP_ROUNDS:]}


def _tell(bench: Bench, sites: int, runs: list[dict[str, Any]], target: Target | None = None) -> Figure:
    """Keep the figures of all runs with ``sites``.

    Returns that of a site-round.
    """
    settings: Settings = {"sites": sites, "runs": len(runs)}
    rounds = len(runs[0]["rounds_s"])
    figure = bench.measured(
        f"a site-round, {sites} sites",
        [seconds / sites for run in runs for seconds in run["rounds_s"]],
        "s",
        settings=settings,
        baseline=_stock(bench, sites, rounds) if sites <= _MOST_STOCK else None,
        others=[_flower(bench, sites, rounds)],
        target=target,
    )
    bench.measured(f"until {sites} sites are ready", [run["startup_s"] for run in runs], "s", settings=settings)
    memory = [run["memory_gb_per_site"] for run in runs]
    bench.measured(f"memory of a site, {sites} sites", memory, "GB", settings=settings)
    return figure


def _stock(bench: Bench, sites: int, rounds: int) -> Baseline:
    bench.doing(f"FLARE's simulator, {sites} sites")
    spec = read_job("brain_tissue_segmentation")

    def measure(folder: Path) -> list[float]:
        return [seconds / sites for seconds in simulate_stock(spec, sites, rounds, folder)]

    return stock_baseline("FLARE's simulator, no training", measure, bench.folder / f"stock-{sites}")


def _flower(bench: Bench, sites: int, rounds: int) -> Baseline:
    def site_rounds() -> list[float]:
        numbers = read_job("brain_tissue_segmentation").plan().layout().nbytes // 4
        return [s / sites for s in simulate_flower(numbers, sites, rounds, bench.folder / "flower")]

    return flower_baseline(bench, "'s simulation, no training", site_rounds)


def measure(sites: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Run one simulation; return seconds and memory.

    Seconds by round, memory in GB.
    """
    hospitals = tuple(
        dataclasses.replace(
            HOSPITALS[number % len(HOSPITALS)], name=f"site-{number + 1}", train=2, validation=1, test=1
        )
        for number in range(sites)
    )
    folders = make_hospitals(folder / "data", seed=1, hospitals=hospitals)
    spec = brain_job(True, {"training": {"steps_per_round": 2, "warmup_steps": 0}, "rounds": {"number": rounds}})
    before, most, over = psutil.virtual_memory().used, 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.5):
            most = max(most, psutil.virtual_memory().used)

    threading.Thread(target=watch, daemon=True).start()
    result = Run(spec, folders, "simulate", folder / "run", Console(quiet=True), baselines=False).execute()
    over.set()
    return {
        "rounds_s": result.timing.rounds_s,
        "startup_s": result.timing.startup_s,
        "memory_gb_per_site": (most - before) / 1e9 / sites,
    }
