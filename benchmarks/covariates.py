"""What columns of a table add to an image, and what columns of noise cost.

The masks of hippocampus volumes (Medical Segmentation Decathlon, task 4) stand for images, and outcomes follow stated
laws: that of volume and age is the second class where the structure's volume less the patient's age, both standardised,
is above a little noise; that of the volume has no age in it. Two further columns are noise. Three sites train together,
in memory; the score is the AUROC, the concordance of an outcome of two classes, of all sites' test patients together.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from safetensors.torch import load_file
from torch import nn

from harness.bench import Bench, Settings
from oncofed.client.in_process import InProcessTraining
from oncofed.client.local_training import PATIENTS_OF_SUMS, SiteContext
from oncofed.data.cases import Cases, pool_cases, usable_cases
from oncofed.data.manifest import SALT_FILE
from oncofed.job.spec import JobSpec
from oncofed.messages.requests import EvaluateRequest, PrepareRequest, Request, TrainRequest
from oncofed.messages.results import EvaluateResult, Result, SiteFacts
from oncofed.models import register_network
from oncofed.rounds.events import BEST_MODEL, MODELS_FOLDER
from oncofed.rounds.in_memory import InMemorySites
from oncofed.rounds.loop import RoundLoop, Server
from oncofed.training import Plan, Trainer
from oncofed.training.baselines import Baseline, train_baseline

_SITES = ("east", "north", "west")
_AGE = {"name": "age", "unit": "years", "range": [0, 120]}
_NOISE = ({"name": "draw", "range": [-10, 10]}, {"name": "colour", "categories": ["red", "green", "blue"]})
_IMAGE, _BOTH = "law of the volume", "law of volume and age"
# Name -> the law of its outcome, and how the image is joined by which columns.
VARIANTS: dict[str, tuple[str, str, tuple[dict[str, Any], ...]]] = {
    f"{_BOTH}: image alone": ("both", "none", (_AGE,)),
    f"{_BOTH}: with age, concat": ("both", "concat", (_AGE,)),
    f"{_BOTH}: with age, film": ("both", "film", (_AGE,)),
    f"{_BOTH}: age alone": ("both", "table", (_AGE,)),
    f"{_IMAGE}: image alone": ("volume", "none", _NOISE),
    f"{_IMAGE}: with noise, concat": ("volume", "concat", _NOISE),
    f"{_IMAGE}: with noise, film": ("volume", "film", _NOISE),
}


@register_network("counting", kind="image")
def counting(in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """Return a network that adds up what it sees, and trains in seconds on volumes of 16 voxels a side."""
    assert spatial_dims == 3
    convolution = nn.Conv3d(in_channels, 8, 3, stride=2, padding=1)
    added = nn.AvgPool3d(8, divisor_override=8)
    return nn.Sequential(
        convolution, nn.ReLU(), added, nn.Flatten(), nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, out_channels)
    )


def run(bench: Bench) -> None:
    """Measure each variant with three seeds: federated, pooled and alone."""
    data = Path(os.environ.get("ONCOFED_DATA", "")) / "hippocampus"
    if bench.quick or not data.is_dir():
        why = "left out of a quick run" if bench.quick else "ONCOFED_DATA names no folder with hippocampus/"
        bench.skip("covariates, federated", "AUROC", why)
        return
    found: dict[str, dict[str, list[float]]] = {name: {} for name in VARIANTS}
    for seed in (1, 2, 3):
        sites = make_sites(bench.folder / f"data-{seed}", data, seed)
        for number, name in enumerate(VARIANTS):
            bench.doing(f"{name}, seed {seed}")
            for how, score in scores(name, sites, bench.folder / f"{number}-{seed}", seed).items():
                found[name].setdefault(how, []).append(score)
    settings: Settings = {"sites": len(_SITES), "seeds": 3}
    for name, by_training in found.items():
        for how, values in by_training.items():
            bench.measured(f"{name}, {how}", values, "AUROC", "higher", settings)


def make_sites(folder: Path, data: Path, seed: int) -> dict[str, Path]:
    """Write the sites' datasets; return folders by site."""
    masks = sorted((data / "labelsTr").glob("*.nii.gz"))
    volumes = np.array([np.count_nonzero(np.asarray(nib.load(path).dataobj)) for path in masks], float)
    rng = np.random.default_rng(seed)
    ages = rng.normal(62, 11, len(masks)).clip(20, 99).round(1)
    standardised = (volumes - volumes.mean()) / volumes.std() + rng.normal(0, 0.3, len(masks))
    risks = {"volume": standardised, "both": standardised - (ages - 62) / 11}
    of_site: dict[str, list[dict[str, Any]]] = {name: [] for name in _SITES}
    for number, path in enumerate(rng.permutation(len(masks))):
        draw, colour = rng.normal(), ("red", "green", "blue")[rng.integers(3)]
        of_site[_SITES[number % len(_SITES)]].append(
            {
                "image": f"imagesTr/{masks[path].name}",
                "name": masks[path].name.partition(".")[0],
                "tags": {"age": str(ages[path]), "draw": f"{draw:.3f}", "colour": colour},
                "targets": {law: "event" if risk[path] > 0 else "none" for law, risk in risks.items()},
            }
        )
    for name, entries in of_site.items():
        (folder / name).mkdir(parents=True)
        (folder / name / SALT_FILE).write_text(name)  # as a registered folder has it, which keeps prepared images
        (folder / name / "imagesTr").symlink_to(data / "labelsTr")
        manifest = {"targets": {law: {"kind": "class"} for law in risks}, "training": entries}
        (folder / name / "dataset.json").write_text(json.dumps(manifest))
    return {name: folder / name for name in _SITES}


def job(name: str, seed: int) -> JobSpec:
    """Return the job of a variant."""
    law, fusion, columns = VARIANTS[name]
    network: dict[str, Any] = {"network": "table"}
    if fusion != "table":
        network = {"network": "counting", "fusion": fusion}
    values = {
        "name": "outcome",
        "title": name,
        "data": {
            "dataset": "hippocampus",
            "modality": "ct",
            "window": [0, 1],
            "patch": [16, 16, 16],
            "spacing": [3, 3, 3],
            "split": {"validation": 0.15, "test": 0.35},
            "covariates": list(columns),
        },
        "targets": [{"name": law, "kind": "class", "classes": ["none", "event"]}],
        "model": network,
        "training": {"steps_per_round": 50, "batch_size": 8, "learning_rate": 0.01, "augmentation": "none"},
        "rounds": {"number": 4},
        "seed": seed,
    }
    return JobSpec.model_validate(values)


def scores(name: str, sites: Mapping[str, Path], folder: Path, seed: int) -> dict[str, float]:
    """Return a variant's AUROC of all sites' test patients, by the way it was trained."""
    spec = job(name, seed)
    plan = spec.plan()
    cases = {
        site: usable_cases(data, plan.data, plan.supervision(), plan.seed, site).cases for site, data in sites.items()
    }
    pooled = pool_cases(cases)
    weights = federated(spec, sites, folder)
    judge = Trainer(plan, pooled, "pooled")
    judge.load_weights(load_file(weights))
    found = {"federated": _known(judge.evaluate(pooled.test).mean), "pooled": _alone(plan, pooled, pooled, folder)}
    alone = [_alone(plan, own, pooled, folder) for own in cases.values()]
    return {**found, "alone": float(np.mean(alone))}


def _alone(plan: Plan, own: Cases, tested: Cases, folder: Path) -> float:
    baseline = Baseline("baseline", own, {"all": tested.test}, own.validation)
    return _known(train_baseline(plan, baseline, folder, None)["all"].mean)


def _known(score: float | None) -> float:
    assert score is not None
    return score


class _Quiet:
    def progress(self, **values: Any) -> None:
        """Drop it."""

    def note(self, text: str, level: int) -> None:
        """Drop it."""


def federated(spec: JobSpec, sites: Mapping[str, Path], folder: Path) -> Path:
    """Train together in memory, and return the best model's file."""
    trainings = {
        site: InProcessTraining(
            plan=spec.plan(),
            federation=spec.federation(),
            context=SiteContext(site=site, data=data, state=folder / site),
            reporter=_Quiet(),
        )
        for site, data in sites.items()
    }
    transport = InMemorySites({site: _answering(training) for site, training in trainings.items()})
    server = Server(record=lambda event: None, sites=transport.names, clock=transport.clock)
    loop = RoundLoop(plan=spec.plan(), federation=spec.federation(), transport=transport, folder=folder, server=server)
    try:
        loop.run()
    finally:
        loop.close()
        for training in trainings.values():
            training.close()
    return folder / MODELS_FOLDER / BEST_MODEL


def _answering(training: InProcessTraining) -> Any:
    def answer(request: Request) -> Result:
        if isinstance(request, PrepareRequest):
            numbers = training.prepare()
            numbers.pop(PATIENTS_OF_SUMS, None)
            return SiteFacts(numbers)
        if isinstance(request, TrainRequest):
            return training.train(request, bool)
        assert isinstance(request, EvaluateRequest)
        return EvaluateResult(training.validate(request, bool).numbers)

    return answer
