"""Accuracy under differential privacy: hippocampus, at epsilon 8 and 3, and without.

Patients are dealt to sites, each of which makes its own noise; the mean of their updates is the next model. Besides
from scratch, it starts from a model that was trained on a tenth of the patients, who then take no further part: a
stand-in for a public one, of the same scanner, as no public data come with this project.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from harness.bench import Bench, Settings
from oncofed.data.cases import Cases, usable_cases
from oncofed.data.register import RegisterOptions, register
from oncofed.job.spec import JobSpec, read_job
from oncofed.models.weights import Weights
from oncofed.training import Trainer

_EPSILONS = (None, 8.0, 3.0)
_SEEDS, _SITES, _ROUNDS, _STEPS = 3, 4, 12, 5
_DELTA = 1e-3
_PUBLIC = 0.1
_JOB: dict[str, Any] = {
    "data": {"patch": [32, 48, 32]},
    "model": {"network": "unet", "channels": [8, 16, 32, 64], "residual_units": 0},
    "training": {
        "optimizer": "sgd",
        "momentum": 0.9,
        "learning_rate": 0.2,
        "schedule": "constant",
        "warmup_steps": 0,
        "steps_per_round": _STEPS,
        "batch_size": 8,
    },
    "rounds": {"number": _ROUNDS},
}
_PRIVATE = {"delta": _DELTA, "sampling": 0.25, "patches": 2, "clip": 0.5}
# Without noise the same draws are taken, and gradients clipped; the multiplier is not used then.
_WITHOUT = {"noise_multiplier": 1.0, **_PRIVATE}


def run(bench: Bench) -> None:
    """Train with each epsilon, from scratch and from a warm start."""
    folder = os.environ.get("ONCOFED_DATA")
    data = Path(folder) / "hippocampus" if folder else None
    if bench.quick or data is None or not data.is_dir():
        why = "left out of a quick run" if bench.quick else "ONCOFED_DATA names no folder with hippocampus/"
        bench.skip("hippocampus under differential privacy, held-out patients", "Dice", why)
        return
    register(RegisterOptions(data, "hippocampus", bench.folder / "set"))
    base = read_job("hippocampus_segmentation").changed(_JOB)
    plan = base.plan()
    cases = usable_cases(bench.folder / "set", plan.data, plan.supervision(), plan.seed, "here").cases
    public, sites = dealt(cases, _SITES)
    for warm in (False, True):
        for epsilon in _EPSILONS:
            begin = "a warm start" if warm else "scratch"
            name = f"hippocampus from {begin}, {'no noise' if epsilon is None else f'epsilon {epsilon:g}'}"
            bench.doing(name)
            scores, begun = [], time.process_time()
            for seed in range(1, _SEEDS + 1):
                start = pretrained(base.with_seed(seed), public, bench) if warm else None
                scores.append(federated(base.with_seed(seed), sites, epsilon, bench, start))
            settings: Settings = {"sites": _SITES, "steps": _ROUNDS * _STEPS, "delta": _DELTA}
            note = f"{_SEEDS} seeds, {(time.process_time() - begun) / 60:.1f} CPU minutes"
            bench.measured(name, scores, "Dice", "higher", settings, note=note)


def dealt(cases: Cases, sites: int) -> tuple[Cases, list[Cases]]:
    """Return the patients of the warm start, and those of each site; all have the same test patients."""
    patients = sorted({case.patient for case in cases.train})
    first = round(_PUBLIC * len(patients))
    place = {patient: number - first for number, patient in enumerate(patients)}
    public = replace(cases, train=tuple(case for case in cases.train if place[case.patient] < 0))
    parts = [
        replace(cases, train=tuple(c for c in cases.train if place[c.patient] >= 0 and place[c.patient] % sites == n))
        for n in range(sites)
    ]
    return public, parts


def pretrained(spec: JobSpec, public: Cases, bench: Bench) -> Weights:
    """Return a model of the public patients."""
    usual = {"optimizer": "adamw", "learning_rate": 0.003, "batch_size": 4}
    trainer = Trainer(spec.changed({"training": usual}).plan(), public, "public", bench.device)
    trainer.train(_ROUNDS * _STEPS)
    return trainer.weights()


def federated(spec: JobSpec, sites: list[Cases], epsilon: float | None, bench: Bench, start: Weights | None) -> float:
    """Train at all sites in turn, average, and return the mean Dice of the test patients."""
    private = {"epsilon": epsilon, **_PRIVATE} if epsilon else _WITHOUT
    plan = spec.changed({"privacy": {"differential_privacy": private}}).plan()
    trainers = [Trainer(plan, cases, f"site-{number}", bench.device) for number, cases in enumerate(sites)]
    if epsilon is None:
        for trainer in trainers:
            assert trainer.patient_gradients
            trainer.patient_gradients.deviation = 0.0
    model = start or trainers[0].weights()
    for _ in range(_ROUNDS):
        for trainer in trainers:
            trainer.load_weights(model)
            trainer.train(_STEPS)
        updates = [trainer.weights() for trainer in trainers]
        model = {name: torch.stack([update[name].float() for update in updates]).mean(0) for name in model}
    trainers[0].load_weights(model)
    score = trainers[0].evaluate(sites[0].test).mean
    assert score is not None
    return score
