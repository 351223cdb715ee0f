"""Exchange of a large model, by codec.

Seconds, bytes and server memory, with four sites. The federation is real: server and sites from startup kits on
loopback, mutual TLS, oncofed's rounds. Sites do not train, so that a round consists of the exchange, the checks before
and after it, the average, and keeping the state. Baseline: stock FLARE's ``FedAvgRecipe`` with NumPy arrays and a
script that returns its input. The limit copies a model from memory to memory through one loopback connection, as often
as it travels in a round: the median of three copies before the rounds and three after them. Memory is the peak of the
server's job process during the rounds, less that with a model of one megabyte, in units of the model. The first three
rounds of both do not count.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from fault_lab import DisturbedAlliance, Lab, allow_class
from harness.bench import WARM_UP_ROUNDS, Bench, Settings
from harness.limits import measure_tls
from harness.results import Baseline, Limit, Target
from oncofed.algorithms.settings import ExchangeType
from oncofed.alliance.local import LocalAlliance, free_port
from oncofed.alliance.spec import AllianceSpec
from oncofed.job.backends import FederatedJob
from oncofed.job.flare import export_job
from oncofed.job.spec import JobSpec, read_job
from oncofed.messages.compression import travelling_bytes
from oncofed.models.weights import weights_of
from peak import Peak
from stock import measure_stock, stock_baseline

_CLASS = "echo.Echo"
# Feature maps of each level for one megabyte of weights.
_WIDTH = 18.9
_LONGEST_SECONDS = 1500.0
_LOOKS_AT_LIMIT = 3


def run(bench: Bench) -> None:
    """Measure each codec, and the server's memory."""
    sites, warm_up, rounds, megabytes = (2, 0, 2, 20) if bench.quick else (4, WARM_UP_ROUNDS, WARM_UP_ROUNDS + 7, 500)
    codecs: tuple[ExchangeType, ...] = ("native",) if bench.quick else ("native", "bfloat16", "int8")
    bench.doing("a small model")
    small = None if bench.quick else measure(job_of(1, rounds, "native"), sites, bench.folder / "small")
    for codec in codecs:
        spec = job_of(megabytes, rounds, codec)
        weights = weights_of(spec.plan().build_network())
        size = sum(value.nbytes for value in weights.values())
        there, back = sites * size, sites * travelling_bytes(weights, codec)
        settings: Settings = {"sites": sites, "megabytes": round(size / 1e6), "update": codec}
        bench.doing(f"updates as {codec}")
        # Before and after: on a shared machine both change from one minute to the next.
        rates = [measure_tls(bench.folder, size) for _ in range(_LOOKS_AT_LIMIT)]
        large = measure(spec, sites, bench.folder / codec)
        rates += [measure_tls(bench.folder, size) for _ in range(_LOOKS_AT_LIMIT)]
        floor = (there + back) / statistics.median(rates)
        baseline = _stock(bench, spec, sites, rounds) if codec == "native" else None
        bench.measured(
            f"a round of {size / 1e6:.0f} MB to {sites} sites and back, updates {codec}",
            large["rounds_s"][warm_up:],
            "s",
            settings=settings,
            baseline=baseline,
            limit=Limit(name="the same bytes copied through one TLS connection", value=floor),
            target=Target(of="limit", value=1 / 1.5),
            note="looking at updates, their mean, and keeping the state are in it; all share this machine's cores",
        )
        bench.measured(
            f"bytes of that round, updates {codec}",
            [(there + back) / 1e6],
            "MB",
            settings=settings,
            baseline=Baseline(name="as they are", samples=[2 * there / 1e6]),
        )
        if small is None:
            continue  # its model is so small that other things weigh more
        bench.measured(
            f"server's memory, updates {codec}",
            [(large["server_mb"] - small["server_mb"]) / (size / 1e6)],
            "models",
            settings=settings,
            target=Target(of="value", value=2.5),
        )


def _stock(bench: Bench, spec: JobSpec, sites: int, rounds: int) -> Baseline:
    name = "FLARE's FedAvgRecipe"
    if bench.quick:
        return Baseline(name=name, missing="left out of a quick run: round_overhead has it, too")
    bench.doing("stock FLARE")
    names = tuple(f"site-{number}" for number in range(1, sites + 1))

    def measure(folder: Path) -> list[float]:
        return measure_stock(spec, names, rounds, folder)[WARM_UP_ROUNDS:]

    return stock_baseline(name, measure, bench.folder / "stock")


def _allow_echo(alliance: LocalAlliance) -> None:
    """Allow the class that trains nothing at the sites."""
    for site in alliance.spec.sites:
        allow_class(alliance.kit(site), _CLASS)


def job_of(megabytes: int, rounds: int, update: str) -> JobSpec:
    """Return a job with about ``megabytes`` of weights."""
    width = max(4, round(_WIDTH * megabytes**0.5))
    return read_job("brain_tissue_segmentation").changed(
        {
            "model": {"network": "unet", "channels": [width] * 5, "residual_units": 3},
            "rounds": {"number": rounds},
            "exchange": {"update": update},
        }
    )


def measure(spec: JobSpec, sites: int, folder: Path) -> dict[str, Any]:
    """Run one federation; return seconds and memory.

    Seconds by round, and the server's memory in MB.
    """
    names = tuple(f"site-{number}" for number in range(1, sites + 1))
    job = export_job(spec, folder / "job" / spec.name)
    client = job / "app" / "config" / "config_fed_client.json"
    config = json.loads(client.read_text(encoding="utf-8"))
    config["executors"][0]["executor"]["path"] = _CLASS
    client.write_text(json.dumps(config), encoding="utf-8")
    (folder / "data").mkdir(parents=True, exist_ok=True)
    datasets = {name: {spec.data.dataset: folder / "data"} for name in names}
    alliance_spec = AllianceSpec(sites=names, port=free_port())
    arguments = (alliance_spec, folder / "kits", datasets, folder / "logs", folder / "tmp")
    with DisturbedAlliance(*arguments, environments={}, prepared=_allow_echo) as alliance:
        alliance.wait_registered()
        lab = Lab(alliance, FederatedJob(alliance, job, sites), {}, folder, spec)
        lab.wait(lambda state: state.started is not None, "the job starts")
        with Peak(lab.process("server job")) as peak:
            state = lab.wait(lambda state: state.finished is not None, "the run ends", _LONGEST_SECONDS)
    return {"rounds_s": state.rounds_s, "server_mb": peak.most / 1e6}
