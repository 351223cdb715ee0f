"""Heads over a slide's tiles, where the label hangs on one region in about two hundred tiles.

Generated slides of some 200 tiles with tissue, in half of which one region about as large as a tile or two has larger
and denser nuclei; only the slide's label is known. Features are those without weights (``encoder: colour``). Three
sites train together, in memory; the score is the AUROC of all sites' test patients together. Of heads with attention
also: how often the tile attended to most touches the region, and how far the answer moves without the most attended
tiles, beyond random ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from harness.bench import Bench, Settings
from harness.results import Target
from in_memory import known, pooled_and_alone, trained_together
from oncofed.data.register import RegisterOptions, register
from oncofed.data.slides import TileSpec
from oncofed.job.spec import JobSpec
from oncofed.tasks import SlideClassification
from oncofed.tasks.deletion import deletion
from oncofed.training import Trainer
from synthetic import make_slides

_SITES = ("east", "north", "west")
_SLIDES_OF_A_SITE, _TILE, _SIDE, _REGION = 60, 32, 608, 48
# Small networks: the slides hold little to learn.
_ATTENTION = {"hidden": 64, "attention": 32}
HEADS: dict[str, dict[str, Any]] = {
    "attention_mil": _ATTENTION,
    "clam_sb": _ATTENTION,
    "transmil": {"hidden": 64, "heads": 4},
    "dsmil": _ATTENTION,
    "mean_pooling": {"hidden": 64},
    "max_pooling": {"hidden": 64},
}
_LEAST = 0.95  # of gated attention

Regions = dict[str, tuple[int, int, int, int] | None]


def run(bench: Bench) -> None:
    """Measure each head with three seeds: federated, pooled and alone."""
    slides = 12 if bench.quick else _SLIDES_OF_A_SITE
    sites, regions = make_sites(bench.folder / "data", slides)
    found: dict[tuple[str, str, str], list[float]] = {}
    for seed in (1,) if bench.quick else (1, 2, 3):
        for name in HEADS:
            bench.doing(f"{name}, seed {seed}")
            folder = bench.folder / f"{name}-{seed}"
            for (what, unit), value in scores(job(name, seed, bench.quick), sites, regions, folder).items():
                found.setdefault((name, what, unit), []).append(value)
    settings: Settings = {"sites": len(_SITES), "slides": len(_SITES) * slides}
    for (name, what, unit), values in found.items():
        gated = not bench.quick and (name, what) == ("attention_mil", "federated")
        target = Target(of="value", value=_LEAST) if gated else None
        bench.measured(f"{name}, {what}", values, unit, "higher", settings, target=target)


def make_sites(folder: Path, slides: int) -> tuple[dict[str, Path], Regions]:
    """Write and register the sites' slides; return folders by site, and the regions by file."""
    sites, regions = {}, Regions()
    for number, name in enumerate(_SITES):
        made = make_slides(folder / name / "in", slides, side=_SIDE, seed=number, region_side=_REGION)
        regions |= {f"{name}/{file}": region for file, region in made.items()}
        options = RegisterOptions(
            folder / name / "in",
            name,
            folder / name / "set",
            "slides",
            table=folder / name / "in" / "labels.csv",
            tiles=TileSpec(_TILE, 1.0, 0.25),
        )
        register(options)
        sites[name] = folder / name / "set"
    return sites, regions


def job(name: str, seed: int, quick: bool = False) -> JobSpec:
    """Return the job of a head."""
    values = {
        "name": "heads",
        "title": name,
        "data": {
            "dataset": "slides",
            "modality": "microscopy",
            "channels": ["red", "green", "blue"],
            "patch": [_TILE, _TILE],
            "split": {"validation": 0.15, "test": 0.35},
            "minimum_cases": 2,
        },
        "task": {"type": "slide_classification", "classes": {0: "normal", 1: "tumour"}},
        "model": {"network": name, "arguments": HEADS[name]},
        "training": {
            "steps_per_round": 2 if quick else 80,
            "batch_size": 8,
            "learning_rate": 0.003,
            "augmentation": "none",
        },
        "rounds": {"number": 1 if quick else 5},
        "seed": seed,
    }
    return JobSpec.model_validate(values)


def scores(spec: JobSpec, sites: Mapping[str, Path], regions: Regions, folder: Path) -> dict[tuple[str, str], float]:
    """Return a head's figures by what they are, and unit."""
    folder.mkdir(parents=True)
    judge = trained_together(spec, sites, folder)
    found = {("federated", "AUROC"): known(judge.evaluate(judge.cases.test).mean)}
    found |= _attention(judge, regions, spec.seed)
    return found | {(how, "AUROC"): v for how, v in pooled_and_alone(spec, sites, folder).items()}


def _attention(trainer: Trainer, regions: Regions, seed: int) -> dict[tuple[str, str], float]:
    """Return how well attention points, and how much the answer rests on it."""
    task, tests = trainer.task, trainer.cases.test
    assert isinstance(task, SlideClassification)
    hits = []
    trainer.network.eval()
    for case in tests:
        region = regions["/".join(Path(case.image).resolve().parts[-3::2])]
        said = task.infer(trainer.network, task.prepared(case), trainer.device)
        if said.attention is None:
            return {}
        if region:
            corner = said.places[int(said.attention.argmax())]
            ends = zip(corner, region[:2], region[2:], strict=True)
            hits.append(all(low - _TILE < at < low + size for at, low, size in ends))
    faithful = deletion(task, trainer.network, tests, trainer.device, seed)
    found = {("attention lies on the region", "share"): float(np.mean(hits))} if hits else {}
    return found | ({("moved beyond random tiles", "share"): faithful.gain} if faithful else {})
