"""Segmentation next to nnU-Net, on the same held-out patients.

Hippocampi (Medical Segmentation Decathlon, task 4): the same patients to train and to test, nnU-Net's own plan
(3d_fullres) as ``oncofed job plan --from-nnunet`` reads it, the same number of steps and batch, three seeds. On a CPU
the plan's feature maps are divided, and batch and steps are few, for both alike. A last figure gives both the same time
instead, oncofed with the job as it is shipped.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from harness.bench import Bench, Settings
from harness.results import Baseline, Better, Target
from nnunet_baseline import VERSION, Nnunet
from oncofed.data.cases import Cases, usable_cases
from oncofed.data.manifest import SALT_FILE
from oncofed.job.nnunet import read_nnunet_plan
from oncofed.job.spec import JobSpec, read_job
from oncofed.tasks.differences import Part, combined_difference
from oncofed.tasks.segmentation import Segmentation
from oncofed.tasks.surfaces import surface_figures
from oncofed.training import Trainer
from timed import steps_within, with_steps

_JOB = "hippocampus_segmentation"
_NAME = f"nnU-Net {VERSION}"
_SEEDS = (1, 2, 3)
_TEST = 60
# Of a run on a CPU: feature maps divided by, batch, steps.
_SHORT = (4, 2, 400)
_FULL_STEPS = 250_000
# What is compared: name of the figures, unit, which is better.
_METRICS: tuple[tuple[str, str, Better], ...] = (
    ("dice", "Dice", "higher"),
    ("surface_dice", "surface Dice", "higher"),
    ("hd95_mm", "mm", "lower"),
)

# Of one model: case -> figure by name.
Figures = dict[str, dict[str, float]]


def run(bench: Bench) -> None:
    """Train both with three seeds, and compare them on held-out patients."""
    data = Path(os.environ.get("ONCOFED_DATA", ""), "hippocampus")
    if bench.quick or not (data / "labelsTr").is_dir():
        why = "left out of a quick run" if bench.quick else "ONCOFED_DATA names no folder with hippocampus/"
        bench.skip("hippocampus, nnU-Net's plan", "Dice", why)
        return
    narrower, batch, steps = (1, None, _FULL_STEPS) if bench.cuda else _SHORT
    train, test = split(data)
    theirs = Nnunet(bench.folder / "nnunet", bench.device.type)
    bench.doing("nnU-Net: plan")
    try:
        theirs.take(train, test, data / "labelsTr", labels())
        theirs.plan(narrower, batch)
    except (OSError, subprocess.SubprocessError) as error:
        why = f"nnU-Net cannot be installed or run here: {type(error).__name__}"
        bench.skip("hippocampus, nnU-Net's plan", "Dice", why)
        return
    cases = own_cases(bench.folder / "set", data, train, test)
    planned = read_nnunet_plan(theirs.plans)
    settings: Settings = {
        "steps": steps,
        "batch": planned.settings["training"]["batch_size"],
        "feature maps": "/".join(map(str, planned.settings["model"]["channels"])),
        "training": len(train),
        "test": len(test),
    }
    clock = time.perf_counter if bench.cuda else time.process_time
    found, others, own, other = list[Figures](), list[Figures](), list[float](), list[float]()
    for seed in _SEEDS:
        bench.doing(f"nnU-Net, seed {seed}")
        masks, seconds = theirs.train(steps, seed)
        others.append(scores(masks, data / "labelsTr"))
        other.append(seconds)
        bench.doing(f"oncofed with nnU-Net's plan, seed {seed}")
        figures, seconds = trained(as_planned(planned.settings, seed), cases, steps, clock)
        found.append(figures)
        own.append(seconds)
    _keep(bench, "same plan and steps", found, others, settings)
    speeds = Baseline(name=_NAME, samples=[steps / seconds for seconds in other])
    bench.measured(
        "hippocampus, same plan",
        [steps / seconds for seconds in own],
        "steps/s",
        "higher",
        settings,
        baseline=speeds,
        note="" if bench.cuda else "by processor time",
    )
    timed = []
    for seed, seconds in zip(_SEEDS, other, strict=True):
        bench.doing(f"oncofed in nnU-Net's time, seed {seed}")
        shipped = as_shipped(seed)
        timed.append(trained(shipped, cases, steps_within(shipped, cases, seconds, clock), clock)[0])
    _keep(bench, "same time", timed, others, settings)


def _keep(bench: Bench, what: str, ours: list[Figures], theirs: list[Figures], settings: Settings) -> None:
    for key, unit, better in _METRICS:
        own, other = ([_mean(figures, key) for figures in model] for model in (ours, theirs))
        bench.measured(
            f"hippocampus, {what}, {unit}",
            own,
            unit,
            better,
            settings,
            baseline=Baseline(name=_NAME, samples=other),
            target=Target(of="baseline", value=0.997) if key == "dice" else None,
            note=_difference(ours, theirs, key),
        )


def labels() -> dict[str, int]:
    """Return the job's classes, name -> label value."""
    task = read_job(_JOB).task
    return {name: value for value, name in task.classes.items()}


def split(data: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return case -> image of the cases to train, and of the held-out ones; the same on every machine."""
    masks = sorted((data / "labelsTr").glob("*.nii.gz"))
    images = {path.name.removesuffix(".nii.gz"): data / "imagesTr" / path.name for path in masks}
    held_out = set(random.Random(0).sample(sorted(images), min(_TEST, len(images) // 3)))
    return (
        {name: path for name, path in images.items() if name not in held_out},
        {name: path for name, path in images.items() if name in held_out},
    )


def own_cases(folder: Path, data: Path, train: Mapping[str, Path], test: Mapping[str, Path]) -> Cases:
    """Return the same cases as oncofed reads them."""
    folder.mkdir(parents=True)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).symlink_to((data / part).resolve())
    (folder / SALT_FILE).write_text("here", encoding="utf-8")  # as a registered folder has it
    lists = {
        name: [
            {"image": f"imagesTr/{path.name}", "label": f"labelsTr/{path.name}", "name": case}
            for case, path in images.items()
        ]
        for name, images in (("training", train), ("test", test))
    }
    names = {"0": "background", **{str(value): name for name, value in labels().items()}}
    (folder / "dataset.json").write_text(json.dumps({"labels": names, **lists}), encoding="utf-8")
    plan = read_job(_JOB).plan()
    found = usable_cases(folder, plan.data, plan.supervision(), plan.seed, "here").cases
    # nnU-Net trains on all that are not held out.
    return Cases((*found.train, *found.validation), (), found.test)


def as_planned(settings: dict[str, dict[str, Any]], seed: int) -> JobSpec:
    """Return the job with nnU-Net's plan, its augmentation and its mirrored inference.

    Args:
        settings: of ``read_nnunet_plan``.
        seed: of the job.
    """
    training = {**settings["training"], "augmentation": "full"}
    changes = {**settings, "training": training, "task": {"mirror": True, "overlap": 0.5}}
    return read_job(_JOB).changed(changes).with_seed(seed)


def as_shipped(seed: int) -> JobSpec:
    """Return the job as it is shipped, with windows that overlap as nnU-Net's do."""
    return read_job(_JOB).changed({"task": {"overlap": 0.5}}).with_seed(seed)


def trained(spec: JobSpec, cases: Cases, steps: int, clock: Callable[[], float]) -> tuple[Figures, float]:
    """Train for some steps; return the held-out cases' figures, and the clock's seconds of the training."""
    trainer = Trainer(with_steps(spec, steps).plan(), cases, "here")
    trainer.prepare()
    begun = clock()
    trainer.train(steps)
    seconds = clock() - begun
    kept: list[tuple[str, Any]] = []
    trainer.evaluate(cases.test, detailed=True, keep=kept)
    trainer.close()
    return dict(kept), seconds


def scores(found: Mapping[str, Path], masks: Path) -> Figures:
    """Return each case's figures, as oncofed's own are computed.

    Args:
        found: case -> segmentation.
        masks: folder of the references, of the same file names.
    """
    task = read_job(_JOB).plan().build_task()
    assert isinstance(task, Segmentation)
    figures: Figures = {}
    for name, path in found.items():
        reference = nib.load(masks / path.name)
        pair = [np.asarray(file.dataobj).astype(np.uint8) for file in (nib.load(path), reference)]
        spacing = [float(side) for side in reference.header.get_zooms()[:3]]
        surfaces = surface_figures(pair[0], pair[1], task.spec.structures, spacing, task.spec.surface_tolerance)
        figures[name] = {f"dice.{name}": value for name, value in task.score(pair[0], pair[1]).items()} | surfaces
    return figures


def _mean(figures: Figures, key: str) -> float:
    """Return a metric's mean over cases, of each the mean over its classes."""
    return float(np.nanmean([*_by_case(figures, key).values()]))


def _by_case(figures: Figures, key: str) -> dict[str, float]:
    by_case = {
        name: [value for figure, value in own.items() if figure.startswith(f"{key}.") and not np.isnan(value)]
        for name, own in figures.items()
    }
    return {name: float(np.mean(values)) if values else float("nan") for name, values in by_case.items()}


def _difference(ours: Sequence[Figures], theirs: Sequence[Figures], key: str) -> str:
    """Return the difference with its interval over patients, each patient's the mean over seeds."""
    first, second = ([_by_case(figures, key) for figures in model] for model in (ours, theirs))
    gaps = [np.mean([a[case] - b[case] for a, b in zip(first, second, strict=True)]) for case in sorted(first[0])]
    known = [float(gap) for gap in gaps if not np.isnan(gap)]
    found = combined_difference({"here": Part.of_values(known)}, key)
    low, high = found.interval
    return (
        f"oncofed less nnU-Net {found.difference:+.4f}, 95 % interval over {found.patients} patients {low:+.4f} to "
        f"{high:+.4f}, mean over {len(ours)} seeds"
    )
