"""A job of a mask beside other targets, and its dataset of discs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from oncofed.data.cases import Cases, usable_cases
from oncofed.job.spec import JobSpec, read_job

JOB = """\
schema: 1
name: discs
title: Discs and how large they are
data: {dataset: discs, modality: microscopy, channels: [grey], patch: [32, 32]}
targets:
  - {name: disc, kind: mask, classes: {1: rim, 2: heart}, weight: 2}
  - {name: radius, kind: value, unit: px, range: [2, 16]}
  - {name: striped, kind: class, classes: ["no", "yes"], weight: 0.5}
model: {network: unet, channels: [8, 16, 32], residual_units: 1}
training: {steps_per_round: 120, batch_size: 8, learning_rate: 0.01, warmup_steps: 0}
rounds: {number: 1}
seed: 3
"""


def make_discs(folder: Path, count: int = 24) -> Path:
    """Write discs of any size; every fourth has no mask, every fifth states no radius, and the last nothing at all."""
    rng = np.random.default_rng(1)
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    places = np.stack(np.meshgrid(np.arange(32), np.arange(32)))
    entries: list[dict[str, Any]] = []
    for number in range(count):
        radius, striped = float(rng.uniform(3, 14)), number % 2
        far = np.linalg.norm(places - rng.uniform(14, 18, 2)[:, None, None], axis=0)
        mask = (far < radius).astype(np.uint8) + (far < radius / 2)
        pixels = rng.normal(60, 8, (32, 32)) + 40 * mask
        pixels[:, ::4] += 40 * striped
        for sub, values in (("imagesTr", pixels.clip(0, 255)), ("labelsTr", mask)):
            Image.fromarray(values.astype(np.uint8)).save(folder / sub / f"{number:02}.png")
        entry: dict[str, Any] = {"image": f"imagesTr/{number:02}.png", "name": f"{number:02}"}
        entry["targets"] = {"striped": ["no", "yes"][striped], **({"radius": radius} if number % 5 else {})}
        entries.append(entry | ({"label": f"labelsTr/{number:02}.png"} if number % 4 else {}))
    entries.append({"image": "imagesTr/00.png", "name": "nothing"})
    declared = {"radius": {"kind": "value", "unit": "px"}, "striped": {"kind": "class"}}
    labels = {"0": "background", "1": "rim", "2": "heart"}
    text = json.dumps({"name": "discs", "labels": labels, "targets": declared, "training": entries})
    (folder / "dataset.json").write_text(text)
    return folder


def job(folder: Path, *changes: str) -> JobSpec:
    text = JOB
    for old, new in zip(changes[::2], changes[1::2], strict=True):
        assert old in text
        text = text.replace(old, new)
    (folder / "job.yaml").write_text(text)
    return read_job(folder / "job.yaml")


def cases_of(spec: JobSpec, folder: Path) -> Cases:
    plan = spec.plan()
    return usable_cases(folder, plan.data, plan.supervision(), plan.seed, "here").cases
