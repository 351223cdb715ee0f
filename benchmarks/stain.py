"""What normalised and changed stains are worth where sites stain differently.

Made slides of haematoxylin and eosin: a slide is of the second class where its nuclei are denser. Two sites train
together, in memory, each with a stain of its own; the score is the AUROC at a third site, to which other laboratories
refer their slides, each with a stain that neither has seen.
Slides are seen through the encoder of colours, and fields of the same tissue by a small network, which is what stains
are changed at random for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from harness.bench import Bench, Settings
from in_memory import federated
from oncofed.data.case import Case
from oncofed.data.cases import read_cases
from oncofed.data.register import RegisterOptions, register
from oncofed.data.slides.levels import TileSpec
from oncofed.data.stain.of_case import with_slides_colours
from oncofed.job.spec import JobSpec
from oncofed.models import register_network
from oncofed.training import Trainer
from stained_made import Stain, amounts, painted

_TRAINING, _NEW = ("east", "west"), "south"
_STAINS = {
    "east": [Stain(((0.56, 0.72, 0.41), (0.21, 0.80, 0.56)), (0.9, 1.0))],
    "west": [Stain(((0.65, 0.70, 0.29), (0.15, 0.88, 0.45)), (1.2, 0.8))],
    "south": [
        Stain(((0.76, 0.60, 0.24), (0.08, 0.93, 0.36)), (1.5, 1.3), 235),
        Stain(((0.50, 0.75, 0.43), (0.30, 0.78, 0.55)), (0.6, 1.4)),
        Stain(((0.70, 0.66, 0.27), (0.05, 0.90, 0.43)), (1.4, 0.6)),
        Stain(((0.60, 0.70, 0.38), (0.18, 0.85, 0.50)), (0.7, 0.7), 228),
    ],
}
_SLIDES, _SIDE = 24, 256
_DENSITY = (90, 122)  # nuclei of a slide, of both classes, which vary by chance
VARIANTS: dict[str, tuple[str, dict[str, str]]] = {
    "slides, as they are": ("slides", {}),
    "slides, macenko": ("slides", {"normalise": "macenko"}),
    "slides, vahadane": ("slides", {"normalise": "vahadane"}),
    "slides, reinhard": ("slides", {"normalise": "reinhard"}),
    "fields, as they are": ("fields", {}),
    "fields, macenko": ("fields", {"normalise": "macenko"}),
    "fields, hed": ("fields", {"augment": "hed"}),
    "fields, randstainna": ("fields", {"augment": "randstainna"}),
}


@register_network("few_convolutions", kind="image")
def few_convolutions(in_channels: int, out_channels: int, spatial_dims: int) -> nn.Module:
    """Return a network that trains in seconds on fields of 64 pixels a side."""
    assert spatial_dims == 2
    layers: list[nn.Module] = []
    for before, after in ((in_channels, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, out_channels))


def run(bench: Bench) -> None:
    """Measure each variant with three seeds at the site whose stain is new."""
    if bench.quick:
        bench.skip("stains, federated", "AUROC", "left out of a quick run")
        return
    found: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for seed in (1, 2, 3):
        sites = make_sites(bench.folder / f"data-{seed}", seed)
        for number, name in enumerate(VARIANTS):
            bench.doing(f"{name}, seed {seed}")
            kind, stain = VARIANTS[name]
            folder = bench.folder / f"{number}-{seed}"
            found[name].append(score(job(kind, stain, seed), {site: of[kind] for site, of in sites.items()}, folder))
    settings: Settings = {"sites": len(_TRAINING), "seeds": 3}
    for name, values in found.items():
        bench.measured(f"stain of a new site: {name}", values, "AUROC", "higher", settings)


def make_sites(folder: Path, seed: int) -> dict[str, dict[str, Path]]:
    """Write and register each site's slides and fields; return folders by site and kind."""
    rng = np.random.default_rng(seed)
    return {site: _site(folder / site, stains, rng) for site, stains in _STAINS.items()}


def _site(folder: Path, stains: Sequence[Stain], rng: np.random.Generator) -> dict[str, Path]:
    slides, fields = folder / "in-slides", folder / "in-fields"
    rows: dict[Path, list[str]] = {slides: ["image,label,patient"], fields: ["image,label,patient"]}
    for path in rows:
        path.mkdir(parents=True)
    for number in range(_SLIDES):
        label, seed, stain = number % 2, int(rng.integers(2**31)), stains[number // 2 % len(stains)]
        nuclei = int(_DENSITY[label] * rng.normal(1, 0.06))
        thickness = rng.normal(1, 0.06, 2) * np.array(stain.amounts)
        pixels = painted(amounts(seed, _SIDE, nuclei=nuclei), stain._replace(amounts=tuple(thickness)), seed)
        tifffile.imwrite(
            slides / f"{number}.tif", pixels, tile=(64, 64), resolution=(1e4, 1e4), resolutionunit="CENTIMETER"
        )
        rows[slides].append(f"{number}.tif,{('few', 'many')[label]},p{number}")
        for part in range(4):
            at = (part % 2 * 128, part // 2 * 128)
            field = pixels[at[0] : at[0] + 128, at[1] : at[1] + 128]
            Image.fromarray(field).save(fields / f"{number}-{part}.png")
            rows[fields].append(f"{number}-{part}.png,{('few', 'many')[label]},p{number}")
    found = {}
    for kind, path in (("slides", slides), ("fields", fields)):
        (path / "table.csv").write_text("\n".join(rows[path]))
        options: dict[str, Any] = {"task": "slides", "tiles": TileSpec(64, 1.0, 0.25)} if kind == "slides" else {}
        found[kind] = folder / kind
        register(RegisterOptions(path, kind, found[kind], table=path / "table.csv", workers=1, **options))
    return found


def job(kind: str, stain: Mapping[str, str], seed: int) -> JobSpec:
    """Return the job of a variant."""
    classes = {0: "few", 1: "many"}
    slides = kind == "slides"
    values = {
        "name": "density",
        "title": "Dense nuclei",
        "data": {
            "dataset": kind,
            "modality": "microscopy",
            "channels": ["red", "green", "blue"],
            "patch": [64, 64] if slides else [128, 128],
            "split": {"validation": 0.2, "test": 0.1},
            "stain": dict(stain),
        },
        "task": {"type": "slide_classification" if slides else "classification", "classes": classes},
        "model": {"network": "attention_mil" if slides else "few_convolutions"},
        "training": {
            "steps_per_round": 40,
            "batch_size": 8 if slides else 16,
            "learning_rate": 0.001 if slides else 0.003,
            "augmentation": "none",
        },
        "rounds": {"number": 3},
        "seed": seed,
    }
    return JobSpec.model_validate(values)


def score(spec: JobSpec, sites: Mapping[str, Path], folder: Path) -> float:
    """Return a job's AUROC at the site that did not train."""
    weights = federated(spec, {site: sites[site] for site in _TRAINING}, folder)
    plan = spec.plan()
    every = read_cases(sites[_NEW], plan.data.split, plan.seed, plan.supervision())
    tested: list[Case] = with_slides_colours(list(every))
    judge = Trainer(plan, every, "judge")
    judge.load_weights(load_file(weights))
    found = judge.evaluate(tuple(tested)).mean
    judge.close()
    assert found is not None
    return found
