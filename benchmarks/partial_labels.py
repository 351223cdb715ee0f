"""Dice where each of two sites labels one structure.

Against the same sites labelling both.

Volumes of the hippocampus (Medical Segmentation Decathlon, task 4) at two sites, scored on patients of neither, both of
whose structures are labelled. In a mask that lacks a structure its voxels are background, as a site that never looked
for it draws them. Compared are the marginal loss (``task.partial``) with and without distillation, nnU-Net's ignore
label on all that may be the other structure, and taking it for background.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from harness.bench import Bench, Settings
from oncofed.data.case import Case
from oncofed.data.cases import Cases, pool_cases, read_cases
from oncofed.job.spec import JobSpec, read_job
from oncofed.models.weights import Weights
from oncofed.tasks import Evaluation
from oncofed.training import Plan, Trainer
from synthetic import make_volume

_NAMES = {1: "anterior", 2: "posterior"}
_IGNORED = 3
_SEEDS, _DISTILLATION = (1, 2, 3), 1.0


@dataclass(frozen=True)
class Way:
    """A way to learn from two sites.

    Attributes:
        drawn: structures in the masks of each site.
        named: structures that each site's ``dataset.json`` names; empty: those that are drawn.
        rest: label value of what is not drawn.
        task: settings of the job.
        how: "federated", "alone" or "pooled".
    """

    drawn: tuple[tuple[int, ...], tuple[int, ...]] = ((1,), (2,))
    named: tuple[int, ...] = ()
    rest: int = 0
    task: dict[str, Any] = field(default_factory=lambda: {"partial": True})
    how: str = "federated"


_BOTH = ((1, 2), (1, 2))
WAYS = {
    "both label both, federated": Way(drawn=_BOTH, task={}),
    "both label both, pooled": Way(drawn=_BOTH, task={}, how="pooled"),
    "one each, federated": Way(),
    "one each, pooled": Way(how="pooled"),
    "one each, alone": Way(how="alone"),
    "one each, with distillation, federated": Way(task={"partial": True, "distillation": _DISTILLATION}),
    "one each, rest ignored, federated": Way(rest=_IGNORED, task={"ignore": _IGNORED}, named=(1, 2)),
    "one each, rest background, federated": Way(task={}, named=(1, 2)),
}


def run(bench: Bench) -> None:
    """Learn in each way with each seed."""
    volumes = _generated() if bench.quick else _real()
    if volumes is None:
        bench.skip("sites that label one structure each", "Dice", "ONCOFED_DATA names no folder with hippocampus/")
        return
    patients, rounds, steps = (2, 1, 1) if bench.quick else (20, 10, 25)
    job = read_job("hippocampus_segmentation").changed(
        {
            "data": {"split": {"validation": 0, "test": 0}, "minimum_cases": 2},
            "model": {"channels": [4, 8] if bench.quick else [8, 16, 32]},
            "training": {"steps_per_round": steps, "batch_size": 2, "warmup_steps": 0 if bench.quick else 10},
            "rounds": {"number": rounds},
        }
    )
    settings: Settings = {"patients": patients, "rounds": rounds, "steps": steps}
    of_site = [volumes[:patients], volumes[patients : 2 * patients]]
    test = _cases(job, _write(bench.folder / "test", volumes[2 * patients : 3 * patients], Way(drawn=_BOTH), 0))
    for name, way in WAYS.items():
        spec = job.changed({"task": way.task})
        sites = {
            f"site-{n}": _cases(spec, _write(bench.folder / name / str(n), own, way, n))
            for n, own in enumerate(of_site)
        }
        scores = []
        for seed in _SEEDS[:1] if bench.quick else _SEEDS:
            bench.doing(f"{name}, seed {seed}")
            plan = spec.plan().model_copy(update={"seed": seed})
            scores += [found.mean or 0.0 for found in learn(plan, way.how, sites, test.train)]
        bench.measured(name, scores, "Dice", "higher", settings)


def learn(plan: Plan, how: str, sites: Mapping[str, Cases], test: Sequence[Case]) -> list[Evaluation]:
    """Return the scores of the models that sites make."""
    if how == "pooled":
        sites = {"all": pool_cases(dict(sites))}
    trainers = [Trainer(plan, cases, site) for site, cases in sites.items()]
    if how != "federated":
        for trainer in trainers:
            trainer.train(plan.total_steps)
        return [trainer.evaluate(tuple(test)) for trainer in trainers]
    weights = plan.initial_weights()
    for _ in range(plan.rounds):
        trained = [_trained(trainer, weights) for trainer in trainers]
        # As large as each other: FedAvg is their mean.
        weights = {name: sum(one[name] for one in trained) / len(trained) for name in weights}  # type: ignore[misc]
    trainers[0].load_weights(weights)
    return [trainers[0].evaluate(tuple(test))]


def _trained(trainer: Trainer, weights: Weights) -> Weights:
    trainer.load_weights(weights)
    trainer.hold_as_teacher()
    trainer.train(trainer.plan.training.steps_per_round)
    return trainer.weights()


def _cases(spec: JobSpec, folder: Path) -> Cases:
    plan = spec.plan()
    return read_cases(folder, plan.data.split, plan.seed, plan.supervision())


def _write(folder: Path, volumes: Sequence[tuple[nib.Nifti1Image, nib.Nifti1Image]], way: Way, site: int) -> Path:
    """Write a site's volumes with the masks that it drew."""
    drawn = way.drawn[site]
    entries = []
    for number, (image, mask) in enumerate(volumes):
        values = np.asarray(mask.dataobj).astype(np.uint8)
        values[~np.isin(values, drawn)] = way.rest
        files = {"image": f"imagesTr/{number}.nii.gz", "label": f"labelsTr/{number}.nii.gz"}
        for path in files.values():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, folder / files["image"])
        nib.save(nib.Nifti1Image(values, mask.affine), folder / files["label"])
        entries.append(files)
    labels = {str(value): _NAMES[value] for value in way.named or drawn} | ({"3": "ignore"} if way.rest else {})
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "training": entries}))
    return folder


def _real() -> list[tuple[nib.Nifti1Image, nib.Nifti1Image]] | None:
    folder = Path(os.environ.get("ONCOFED_DATA", ""), "hippocampus")
    if not (folder / "dataset.json").is_file():
        return None
    listed = json.loads((folder / "dataset.json").read_text())["training"]
    return [(nib.load(folder / entry["image"]), nib.load(folder / entry["label"])) for entry in listed]


def _generated() -> list[tuple[nib.Nifti1Image, nib.Nifti1Image]]:
    pairs: Iterator[Any] = map(make_volume, range(6))
    return [(nib.Nifti1Image(image, np.eye(4)), nib.Nifti1Image(label, np.eye(4))) for image, label in pairs]
