"""Made cases with a table: a target that follows from age and stage, and from the image by half."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from oncofed.data.cases import Cases, usable_cases
from oncofed.job.spec import JobSpec, parse_job

JOB = """\
schema: 1
name: outcome
title: Outcome of image and table
data:
  dataset: flat
  modality: xray
  channels: [grey]
  patch: [32, 32]
  max_bad_share: 1
  covariates:
    - {name: age, unit: years, range: [0, 120]}
    - {name: stage, categories: [I, II, III]}
targets:
  - {name: outcome, kind: class, classes: ["no", "yes"]}
model: {network: densenet121, arguments: {init_features: 16, growth_rate: 16, block_config: [2, 2]}}
training: {steps_per_round: 30, batch_size: 8, learning_rate: 0.01, warmup_steps: 0, augmentation: none}
rounds: {number: 1}
"""
TABLE_ALONE = "network: table"
IMAGE = "network: densenet121, arguments: {init_features: 16, growth_rate: 16, block_config: [2, 2]}"


def make_table_site(
    folder: Path, count: int = 48, seed: int = 1, age: float = 60.0, noise: bool = False, missing: int = 0
) -> Path:
    """Write a site whose outcome follows from age and stage; with ``noise`` from the image alone.

    Each ``missing``th age is not known.
    """
    rng = np.random.default_rng(seed)
    (folder / "imagesTr").mkdir(parents=True)
    entries = []
    for number in range(count):
        years = float(np.clip(np.round(rng.normal(age, 10), 1), 1, 119))
        stage = int(rng.integers(3))
        lump = int(rng.integers(2))
        risk = (years - age) / 10 + 1.5 * (stage - 1)
        outcome = lump if noise else int(risk > 0)
        pixels = rng.normal(80, 10, (32, 32))
        pixels[8:24, 8:24] += 80 * lump
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "imagesTr" / f"{number:03}.png")
        tags = {"age": f"{years}" if not missing or number % missing else "NA", "Stage": ["I", "ii", "III"][stage]}
        entries.append(
            {
                "image": f"imagesTr/{number:03}.png",
                "name": f"{number:03}",
                "patient": f"p{number}",
                "tags": tags,
                "targets": {"outcome": ["no", "yes"][outcome]},
            }
        )
    write_entries(folder, entries)
    return folder


def read_entries(folder: Path) -> list[dict[str, object]]:
    """Return a site's cases, as its file has them."""
    entries: list[dict[str, object]] = json.loads((folder / "dataset.json").read_text())["training"]
    return entries


def write_entries(folder: Path, entries: list[dict[str, object]]) -> None:
    """Write a site's cases."""
    targets = {"outcome": {"kind": "class"}}
    (folder / "dataset.json").write_text(json.dumps({"targets": targets, "training": entries}))


def table_job(folder: Path, text: str = JOB) -> JobSpec:
    """Write a job, and read it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.yaml").write_text(text)
    return parse_job(folder / "job.yaml")


def table_cases(spec: JobSpec, folder: Path) -> Cases:
    """Return a site's usable cases."""
    plan = spec.plan()
    return usable_cases(folder, plan.data, plan.supervision(), plan.seed, "here").cases
