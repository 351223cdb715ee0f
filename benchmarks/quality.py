"""Scores after ten minutes of training on this machine.

On held-out patients. All data in one place, one process, no federation: the quality of the training itself. Each run
first measures its speed and then takes as many steps as fit into its time.

- hippocampus: 3D segmentation (Medical Segmentation Decathlon, task 4);
- nuclei: single objects in all stains (BBBC038);
- slides: generated slides, half of which hold a small region of another texture; only the slide's label is known.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from harness.bench import Bench, Settings
from harness.results import Better, Target
from oncofed.data.cases import usable_cases
from oncofed.data.register import RegisterOptions, register
from oncofed.data.slides import TileSpec
from oncofed.job.spec import JobSpec, read_job
from oncofed.tasks import SlideClassification
from oncofed.training import Evaluation, Trainer
from synthetic import make_slides
from timed import steps_within, with_steps

_TARGETS = {"hippocampus": ("Dice", 0.86), "nuclei": ("Dice", 0.85), "slides": ("AUROC", 0.95)}
_SLIDES, _SLIDES_SHORT = 120, 30
_SHORT = 30.0
_SHARE_FOR_TRAINING = 0.9


def run(bench: Bench) -> None:
    """Train on each dataset."""
    seconds = 5.0 if bench.quick else 600.0
    real = _real_images()
    for name, program in {"hippocampus": hippocampus, "nuclei": nuclei}.items():
        source = real / name if real else None
        metric, _ = _TARGETS[name]
        if bench.quick or source is None or not source.is_dir():
            why = "left out of a quick run" if bench.quick else f"ONCOFED_DATA names no folder with {name}/"
            bench.skip(f"{name}, held-out patients", metric, why)
            continue
        bench.doing(name)
        _keep(bench, name, program(bench.folder / name, source, seconds))
    bench.doing("slides")
    _keep(bench, "slides", slides(bench.folder / "slides", None, min(seconds, 60.0)))


def _keep(bench: Bench, name: str, found: dict[str, Any]) -> None:
    metric, target = _TARGETS[name]
    interval = found["interval"]
    note = f"{found['steps']} steps in {found['seconds']:.0f} s, {found['cases']['training']} patients to train"
    note += (
        f"; 95 % interval over {found['cases']['test']} patients {interval[0]:.3f} to {interval[1]:.3f}"
        if interval
        else ""
    )
    settings: Settings = {"seconds": round(found["allowed"]), "training": found["cases"]["training"]}
    bench.measured(
        f"{name}, held-out patients",
        [found["score"]],
        metric,
        "higher",
        settings,
        target=None if bench.quick else Target(of="value", value=target),
        note=note,
    )
    for key, value in found["more"].items():
        if isinstance(value, float) and not math.isnan(value):
            better: Better = "lower" if key.endswith("_error") or key.startswith("hd95") else "higher"
            bench.measured(f"{name}, {key}", [value], "score", better, settings)
    if "attention_finds_region" in found:
        share = found["attention_finds_region"]
        bench.measured(f"{name}, attention lies on what makes the label", [share], "share", "higher", settings)


def _real_images() -> Path | None:
    folder = os.environ.get("ONCOFED_DATA")
    return Path(folder) if folder else None


def hippocampus(folder: Path, data: Path, seconds: float) -> dict[str, Any]:
    """Train on volumes of the hippocampus."""
    register(RegisterOptions(data, "hippocampus", folder / "set"))
    spec = read_job("hippocampus_segmentation").changed(
        {
            "data": {"patch": [40, 56, 40]},
            "model": {"network": "unet", "channels": [16, 32, 64, 128], "residual_units": 0},
            "training": {"augmentation": "full", "batch_size": 4, "warmup_steps": 50},
            "task": {"mirror": True, "overlap": 0.5},
        }
    )
    evaluation, facts, _ = train_for(spec, folder / "set", seconds)
    return {"score": evaluation.mean, **facts}


def nuclei(folder: Path, data: Path, seconds: float) -> dict[str, Any]:
    """Train on nuclei of every stain."""
    register(RegisterOptions(data, "nuclei", folder / "set", "segmentation"))
    spec = read_job("nuclei_segmentation").changed(
        {"training": {"augmentation": "full", "batch_size": 8, "warmup_steps": 50}, "task": {"overlap": 0.5}}
    )
    evaluation, facts, _ = train_for(spec, folder / "set", seconds)
    return {"score": evaluation.extra_metrics["dice"], **facts}


def slides(folder: Path, data: Path | None, seconds: float) -> dict[str, Any]:
    """Train on generated slides, and check attention.

    It must mark the decisive region.
    """
    truth = make_slides(folder / "in", _SLIDES if seconds > _SHORT else _SLIDES_SHORT)
    spec_of_tiles = TileSpec(128, 1.0, 0.25)
    labels = folder / "in" / "labels.csv"
    register(RegisterOptions(folder / "in", "slides", folder / "set", "slides", table=labels, tiles=spec_of_tiles))
    spec = read_job("slide_classification").changed({"data": {"patch": [128, 128], "minimum_cases": 2}})
    evaluation, facts, trainer = train_for(spec, folder / "set", seconds)
    task = trainer.task
    assert isinstance(task, SlideClassification)
    found = []
    trainer.network.eval()
    for case in trainer.cases.test:
        region = truth.get(Path(case.entry.source or "").name) if case.entry else None
        if region is None:
            continue
        said = task.infer(trainer.network, task.prepared(case), trainer.device)
        assert said.attention is not None
        x, y = said.places[int(said.attention.argmax())]
        # The tile with most attention touches the region.
        found.append(
            all(low - 128 < at < low + size for at, low, size in zip((x, y), region[:2], region[2:], strict=True))
        )
    return {"score": evaluation.mean, "attention_finds_region": float(np.mean(found)), "of_slides": len(found), **facts}


def train_for(spec: JobSpec, dataset: Path, seconds: float) -> tuple[Evaluation, dict[str, Any], Trainer]:
    """Train for a time, and score held-out patients."""
    plan = spec.plan()
    cases = usable_cases(dataset, plan.data, plan.supervision(), plan.seed, "here").cases
    begun = time.perf_counter()
    steps = steps_within(spec, cases, seconds * _SHARE_FOR_TRAINING)
    trainer = Trainer(with_steps(spec, steps).plan(), cases, "here")
    trainer.train(steps)
    trained = time.perf_counter() - begun
    evaluation = trainer.evaluate(cases.test, detailed=True)
    facts = {
        "interval": evaluation.interval,
        "by_class": evaluation.by_class,
        "more": evaluation.extra_metrics,
        "cases": {"training": len(cases.train), "test": evaluation.cases},
        "steps": steps,
        "seconds": trained,
        "allowed": seconds,
    }
    return evaluation, facts, trainer
