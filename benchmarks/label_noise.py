"""How many spoiled labels a site finds by the federated model's answers.

Three sites of hippocampus volumes (Medical Segmentation Decathlon, task 4) train together in memory; a tenth of one
site's labels are spoiled before. It lists its cases afterwards, those first whose labels disagree with the model
(``evaluation.doubtful_labels``). As many as were spoiled are looked at: the share of them that are spoiled is precision
and recall at once. Beside it: the cases that the site's list suspects, and chance.

- masks: exchanged parts, another patient's mask, a mask moved by a fifth of the volume, one part left out;
- classes: the other one of small and large structures, whose mask is the image.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from harness.bench import Bench, Settings
from hippocampus import DATA, SITES, TRAINING, counting_model, hippocampus, standardised_volumes, write_sites
from in_memory import federated
from oncofed.job.spec import JobSpec, read_job

_SPOILED, _SEEDS = 0.1, (1, 2, 3)
_BETWEEN = 0.43  # standard deviations from the median, within which a third of a normal distribution lies
_SPOILED_SITE = SITES[-1]
Mask = NDArray[Any]
Spoil = Callable[[Mask, Mask, np.random.Generator], Mask]


def run(bench: Bench) -> None:
    """Measure both kinds of labels with three seeds."""
    if bench.quick or not hippocampus():
        why = "left out of a quick run" if bench.quick else "ONCOFED_DATA names no folder with hippocampus/"
        bench.skip("spoiled labels, masks", "share", why)
        return
    for kind, (make, spec) in {"masks": (mask_sites, mask_job), "classes": (class_sites, class_job)}.items():
        found: dict[str, list[float]] = {}
        settings: Settings = {"sites": len(SITES), "seeds": len(_SEEDS), "spoiled": _SPOILED}
        for seed in _SEEDS:
            bench.doing(f"{kind}, seed {seed}")
            folder = bench.folder / f"{kind}-{seed}"
            sites, spoiled = make(folder / "data", seed)
            federated(spec(seed), sites, folder)
            for name, value in judged(folder / _SPOILED_SITE / "label_doubts.csv", spoiled).items():
                found.setdefault(name, []).append(value)
        for name, values in found.items():
            bench.measured(f"spoiled {kind}, {name}", values, "share", "higher", settings)


def judged(table: Path, spoiled: set[str]) -> dict[str, float]:
    """Return how well a site's list finds spoiled labels."""
    with table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    first = {row["case"] for row in rows[: len(spoiled)]}
    suspected = {row["case"] for row in rows if row["suspected"] == "True"}
    return {
        "spoiled among as many first": len(first & spoiled) / len(spoiled),
        "suspected of the spoiled": len(suspected & spoiled) / len(spoiled),
        "spoiled of the suspected": len(suspected & spoiled) / max(len(suspected), 1),
        "spoiled of all, which is chance": len(spoiled) / len(rows),
    }


def mask_job(seed: int) -> JobSpec:
    """Return the job of masks: the shipped one, smaller."""
    changes: dict[str, dict[str, Any]] = {
        "model": {"channels": [8, 16, 32, 64]},
        "training": {"steps_per_round": 40, "batch_size": 2},
        "rounds": {"number": 5},
        "evaluation": {"doubtful_labels": True},
    }
    return read_job("hippocampus_segmentation").changed(changes).with_seed(seed)


def mask_sites(folder: Path, seed: int) -> tuple[dict[str, Path], set[str]]:
    """Write the sites' volumes; return folders, and the spoiled cases."""
    masks, rng = hippocampus(), np.random.default_rng(seed)
    order = rng.permutation(len(masks))
    spoiled: set[str] = set()
    sites = {site: folder / site for site in SITES}
    for number, (site, target) in enumerate(sites.items()):
        own = order[number :: len(SITES)]
        bad = set(own[: round(_SPOILED * len(own))]) if site == _SPOILED_SITE else set()
        for sub in ("imagesTr", "labelsTr"):
            (target / sub).mkdir(parents=True)
        entries = []
        for patient in own:
            name = masks[patient].name
            (target / "imagesTr" / name).symlink_to(masks[patient].parents[1] / "imagesTr" / name)
            label = target / "labelsTr" / name
            if patient in bad:
                _write_spoiled(masks[patient], masks[rng.choice(order)], label, rng)
                spoiled.add(name.partition(".")[0])
            else:
                label.symlink_to(masks[patient])
            entries.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
        (target / "dataset.json").write_text(json.dumps({"training": entries}))
    return sites, spoiled


def _write_spoiled(mask: Path, other: Path, target: Path, rng: np.random.Generator) -> None:
    image = nib.load(mask)
    label, another = (np.asarray(nib.load(path).dataobj).astype(np.uint8) for path in (mask, other))
    spoil: Spoil = (_exchanged, _of_another, _moved, _without_a_part)[rng.integers(4)]
    nib.save(nib.Nifti1Image(spoil(label, another, rng), image.affine), target)


def _exchanged(label: Mask, another: Mask, rng: np.random.Generator) -> Mask:
    del another, rng
    return np.array([0, 2, 1], np.uint8)[label]


def _of_another(label: Mask, another: Mask, rng: np.random.Generator) -> Mask:
    del rng
    found = np.zeros_like(label)
    both = tuple(slice(min(a, b)) for a, b in zip(label.shape, another.shape, strict=True))
    found[both] = another[both]
    return found


def _moved(label: Mask, another: Mask, rng: np.random.Generator) -> Mask:
    del another
    axis = int(rng.integers(3))
    return np.roll(label, label.shape[axis] // 5, axis)


def _without_a_part(label: Mask, another: Mask, rng: np.random.Generator) -> Mask:
    del another
    return np.where(label == rng.integers(1, 3), 0, label).astype(np.uint8)


def class_job(seed: int) -> JobSpec:
    """Return the job of classes: large structures from small ones."""
    return JobSpec.model_validate(
        {
            "name": "size",
            "title": "Size of the hippocampus",
            "data": DATA,
            "task": {"type": "classification", "classes": {0: "small", 1: "large"}},
            "model": counting_model(),
            "training": TRAINING,
            "rounds": {"number": 8},
            "evaluation": {"doubtful_labels": True},
            "seed": seed,
        }
    )


def class_sites(folder: Path, seed: int) -> tuple[dict[str, Path], set[str]]:
    """Write the sites' masks as images, with a class; return folders, and the spoiled cases."""
    masks, rng = hippocampus(), np.random.default_rng(seed)
    volumes = standardised_volumes(masks)
    large = volumes > 0
    # A third of the patients lies between the classes, whose labels nobody could call wrong.
    order = rng.permutation(np.flatnonzero(np.abs(volumes - np.median(volumes)) > _BETWEEN))
    own = order[SITES.index(_SPOILED_SITE) :: len(SITES)]
    bad = {int(patient) for patient in own[: round(_SPOILED * len(own))]}
    entries = [{"label": int(large[n] != (n in bad))} for n in range(len(masks))]
    sites = write_sites(folder, masks, entries, {}, order)
    return sites, {masks[patient].name.partition(".")[0] for patient in bad}
