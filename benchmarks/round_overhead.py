"""Overhead of a round, against stock FLARE and Flower.

In seconds. Both federations are provisioned by FLARE and run as one server and four sites on loopback with mutual TLS;
both exchange the weights of the same network. oncofed's sites train one step a round and score the model, which is
subtracted: the overhead is a round's wall time less the slowest site's training and validation. Stock FLARE runs its
``FedAvgRecipe`` with a script that returns its input, so that its whole round is overhead. The limit is the time of the
same bytes through one loopback connection with TLS. A third federation masks its updates, and what that adds to a round
is another figure; a fourth is oncofed in FLARE's simulator; another is Flower's deployment without TLS, installed into
a separate environment if a package index can be reached.
"""

from __future__ import annotations

import statistics
from pathlib import Path

from rich.console import Console

from brain import brain_job, brain_sites
from flower import flower_baseline, measure_flower
from harness.bench import Bench, Settings
from harness.results import Baseline, Limit, Target
from oncofed.data.brain import HOSPITALS
from oncofed.job.run import Run
from oncofed.job.spec import JobSpec
from oncofed.report.result import Backend
from stock import measure_stock, stock_baseline

# A model of one megabyte.
_CHANNELS = [12, 24, 48, 96]
# Seconds of a round with a server and four sites, and in the simulator.
_TARGET, _TARGET_SIMULATED = 0.15, 0.10
# Seconds that masks add.
_TARGET_MASKS = 0.25


def run(bench: Bench) -> None:
    """Measure a server with four sites, masks, and the simulator."""
    rounds = 2 if bench.quick else 10
    spec = brain_job(
        bench.quick,
        {
            "model": {"channels": _CHANNELS},
            "training": {"steps_per_round": 1, "warmup_steps": 0},
            "rounds": {"number": rounds},
        },
    )
    weights = spec.plan().build_network().state_dict()
    size = sum(tensor.nbytes for tensor in weights.values())
    settings: Settings = {"sites": len(HOSPITALS), "megabytes": round(size / 1e6, 2), "rounds": rounds}
    bytes_a_round = 2 * len(HOSPITALS) * size
    limit = Limit(name="the same bytes through one TLS connection", value=bytes_a_round / bench.limits.loopback_tls())
    bench.doing("stock FLARE")
    sites = brain_sites(bench.quick, bench.folder / "data")
    stock = stock_baseline(
        "FLARE's FedAvgRecipe",
        lambda folder: measure_stock(spec, tuple(sites), rounds, folder),
        bench.folder / "stock",
    )
    bench.doing("a server and four sites")
    plain = measure_oncofed(spec, sites, bench.folder / "oncofed", "federation")
    bench.measured(
        "a round beyond the sites' work, server and 4 sites",
        plain,
        "s",
        settings=settings,
        baseline=stock,
        others=[_flower(bench, size // 4, rounds)],
        limit=limit,
        target=Target(of="value", value=_TARGET),
    )
    bench.doing("a server and four sites, with masks")
    secure = spec.changed({"privacy": {"secure_aggregation": {}}})
    masked = measure_oncofed(secure, sites, bench.folder / "masked", "federation")
    without = statistics.median(plain)
    bench.measured(
        "what masks add to a round, server and 4 sites",
        [seconds - without for seconds in masked],
        "s",
        settings=settings,
        target=Target(of="value", value=_TARGET_MASKS),
        note=f"beside {without:.3f} s of a round without masks",
    )
    bench.doing("FLARE's simulator")
    bench.measured(
        "a round beyond the sites' work, simulated",
        measure_oncofed(spec, sites, bench.folder / "simulated", "simulate"),
        "s",
        settings=settings,
        target=Target(of="value", value=_TARGET_SIMULATED),
    )


def measure_oncofed(spec: JobSpec, sites: dict[str, Path], folder: Path, backend: Backend) -> list[float]:
    """Return each round's overhead in seconds."""
    timing = Run(spec, sites, backend, folder / "run", Console(quiet=True), baselines=False).execute().timing
    return [whole - busy for whole, busy in zip(timing.rounds_s, timing.train_s_max_per_round, strict=True)]


def _flower(bench: Bench, floats: int, rounds: int) -> Baseline:
    def measure() -> list[float]:
        return measure_flower(floats, len(HOSPITALS), rounds, bench.folder / "flower")

    return flower_baseline(bench, ", without TLS", measure)
