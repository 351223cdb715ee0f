"""From a federation's start to a good model.

Measured in seconds, GPU-hours and joules. Four sites in FLARE's simulator train until the mean Dice on their validation
patients reaches the target. The baseline is the same training on all patients in one place: the difference is the cost
of the federation. The limit is the slowest site's training and validation. With the environment variable ONCOFED_DATA
naming a folder that holds ``hippocampus/`` (Medical Segmentation Decathlon, task 4), the patients are real and the
target is a Dice of 0.85; else they are generated.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from brain import brain_job, brain_sites
from harness.bench import Bench, Settings
from harness.results import Baseline, Limit, Target
from oncofed.data.partition import deal_to_sites
from oncofed.job.run import Run
from oncofed.job.spec import JobSpec, read_job
from oncofed.report.result import Result

_SHARES = (0.45, 0.27, 0.18, 0.10)
_GOOD, _GOOD_GENERATED = 0.85, 0.80
# A quick run only shows that the suite works: any model is good enough.
_QUICK = {"rounds": {"number": 2}, "training": {"steps_per_round": 8}}
_GOOD_QUICK = 0.0


def run(bench: Bench) -> None:
    """Train both ways, and keep the cost of each."""
    spec, sites, whole, good = _work(bench)
    what = f"until Dice {good}"
    bench.doing("federated")
    joules = _joules()
    federated = _train(spec, sites, bench.folder / "federated")
    energy = joules()
    bench.doing("pooled")
    pooled = _train(spec, whole, bench.folder / "pooled")
    settings: Settings = {"job": spec.name, "sites": len(sites), "dice": good}
    seconds, alone = _seconds_until(federated, good), _seconds_until(pooled, good)
    reached = {name: _best(result) for name, result in (("federated", federated), ("pooled", pooled))}
    note = f"best validation Dice: federated {reached['federated']:.3f}, pooled {reached['pooled']:.3f}"
    if seconds is None:
        bench.skip(what, "s", f"not reached in {spec.rounds.number} rounds; {note}")
        return
    needed = len(_rounds_until(federated, good) or [])
    busy = sum(federated.timing.train_s_max_per_round[:needed]) + federated.timing.startup_s
    bench.measured(
        what,
        [seconds],
        "s",
        settings=settings,
        baseline=Baseline(name="pooled", samples=[alone] if alone else [], missing="" if alone else "not reached"),
        limit=Limit(name="the slowest site's training", value=busy),
        target=Target(of="limit", value=1 / 1.1),
        note=note,
    )
    if bench.cuda:
        bench.measured(f"GPU-hours {what}", [seconds * torch.cuda.device_count() / 3600], "h", settings=settings)
    if energy is None:
        bench.skip("energy of the whole federated run", "kJ", "NVML tells none here")
    else:
        bench.measured("energy of the whole federated run", [energy / 1000], "kJ", settings=settings)


def _work(bench: Bench) -> tuple[JobSpec, dict[str, Path], dict[str, Path], float]:
    """Return the job, sites, pooled patients, and target."""
    real = os.environ.get("ONCOFED_DATA")
    source = Path(real) / "hippocampus" if real else None
    if source and source.is_dir() and not bench.quick:
        spec = read_job("hippocampus_segmentation").changed({"rounds": {"number": 20}})
        sites = deal_to_sites(source, bench.folder / "sites", _SHARES, spec.seed)
        whole = deal_to_sites(source, bench.folder / "whole", (1.0,), spec.seed)
        return spec, sites, whole, _GOOD
    spec = brain_job(bench.quick, _QUICK if bench.quick else {"rounds": {"number": 10}})
    sites = brain_sites(bench.quick, bench.folder / "sites")
    return (
        spec,
        sites,
        {"all": _together(sites, bench.folder / "whole")},
        _GOOD_QUICK if bench.quick else _GOOD_GENERATED,
    )


def _together(sites: dict[str, Path], folder: Path) -> Path:
    """Link all sites' patients into one dataset."""
    import json

    manifest: dict[str, object] = {}
    lists: dict[str, list[dict[str, object]]] = {}
    for site, source in sites.items():
        manifest = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
        for split in ("training", "validation", "test"):
            for entry in manifest.get(split, []):  # type: ignore[attr-defined]
                moved = dict(entry)
                for key in ("image", "label"):
                    name = f"{site}-{Path(entry[key]).name}"
                    target = folder / Path(entry[key]).parent / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.symlink_to((source / entry[key]).resolve())
                    moved[key] = str(target.relative_to(folder))
                moved["patient"] = f"{site}-{entry.get('patient', Path(entry['image']).name)}"
                lists.setdefault(split, []).append(moved)
    (folder / "dataset.json").write_text(json.dumps({**manifest, **lists}), encoding="utf-8")
    return folder


def _train(spec: JobSpec, sites: dict[str, Path], folder: Path) -> Result:
    return Run(spec, sites, "simulate", folder, Console(quiet=True), baselines=False).execute()


def _rounds_until(result: Result, good: float) -> list[float] | None:
    """Return the seconds until the first good round."""
    scores = sorted((int(number), score) for number, score in result.curves["validation"].items())
    for index, (_, score) in enumerate(scores, 1):
        if score >= good:
            return result.timing.rounds_s[:index]
    return None


def _seconds_until(result: Result, good: float) -> float | None:
    rounds = _rounds_until(result, good)
    return None if rounds is None else result.timing.startup_s + sum(rounds)


def _best(result: Result) -> float:
    return max(result.curves["validation"].values(), default=0.0)


def _joules() -> Callable[[], float | None]:
    """Return a function of the joules used since now.

    Of all GPUs; None without NVML.
    """

    def read() -> float | None:
        with contextlib.suppress(Exception):
            import pynvml

            pynvml.nvmlInit()
            handles = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
            return float(sum(map(pynvml.nvmlDeviceGetTotalEnergyConsumption, handles))) / 1000
        return None

    before = read()

    def since() -> float | None:
        now = read()
        return None if now is None or before is None else now - before

    return since
