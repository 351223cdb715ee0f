"""What columns of a table add to an image, and what columns of noise cost.

The masks of hippocampus volumes (Medical Segmentation Decathlon, task 4) stand for images, and outcomes follow stated
laws: that of volume and age is the second class where the structure's volume less the patient's age, both standardised,
is above a little noise; that of the volume has no age in it. Two further columns are noise. Three sites train together,
in memory; the score is the AUROC, the concordance of an outcome of two classes, of all sites' test patients together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from harness.bench import Bench, Settings
from hippocampus import DATA, SITES, TRAINING, counting_model, hippocampus, standardised_volumes, write_sites
from in_memory import scores
from oncofed.job.spec import JobSpec

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


def run(bench: Bench) -> None:
    """Measure each variant with three seeds: federated, pooled and alone."""
    if bench.quick or not hippocampus():
        why = "left out of a quick run" if bench.quick else "ONCOFED_DATA names no folder with hippocampus/"
        bench.skip("covariates, federated", "AUROC", why)
        return
    found: dict[str, dict[str, list[float]]] = {name: {} for name in VARIANTS}
    for seed in (1, 2, 3):
        sites = make_sites(bench.folder / f"data-{seed}", seed)
        for number, name in enumerate(VARIANTS):
            bench.doing(f"{name}, seed {seed}")
            for how, score in scores(job(name, seed), sites, bench.folder / f"{number}-{seed}").items():
                found[name].setdefault(how, []).append(score)
    settings: Settings = {"sites": len(SITES), "seeds": 3}
    for name, by_training in found.items():
        for how, values in by_training.items():
            bench.measured(f"{name}, {how}", values, "AUROC", "higher", settings)


def make_sites(folder: Path, seed: int) -> dict[str, Path]:
    """Write the sites' datasets; return folders by site."""
    masks = hippocampus()
    rng = np.random.default_rng(seed)
    ages = rng.normal(62, 11, len(masks)).clip(20, 99).round(1)
    volumes = standardised_volumes(masks) + rng.normal(0, 0.3, len(masks))
    risks = {"volume": volumes, "both": volumes - (ages - 62) / 11}
    order = rng.permutation(len(masks))
    entries: list[dict[str, Any]] = [{}] * len(masks)
    for patient in order:
        draw, colour = rng.normal(), ("red", "green", "blue")[rng.integers(3)]
        entries[patient] = {
            "tags": {"age": str(ages[patient]), "draw": f"{draw:.3f}", "colour": colour},
            "targets": {law: "event" if risk[patient] > 0 else "none" for law, risk in risks.items()},
        }
    return write_sites(folder, masks, entries, {law: {"kind": "class"} for law in risks}, order)


def job(name: str, seed: int) -> JobSpec:
    """Return the job of a variant."""
    law, fusion, columns = VARIANTS[name]
    network: dict[str, Any] = {"network": "table"}
    if fusion != "table":
        network = {**counting_model(), "fusion": fusion}
    values = {
        "name": "outcome",
        "title": name,
        "data": {**DATA, "covariates": list(columns)},
        "targets": [{"name": law, "kind": "class", "classes": ["none", "event"]}],
        "model": network,
        "training": TRAINING,
        "rounds": {"number": 4},
        "seed": seed,
    }
    return JobSpec.model_validate(values)
