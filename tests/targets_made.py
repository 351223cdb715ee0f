"""A made dataset that states five kinds of targets, and the run of a job that learns them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

JOB = """\
schema: 1
name: many
title: Five targets of one image
data: {dataset: many, modality: xray, channels: [grey], patch: [32, 32]}
targets:
  - {name: lump, kind: class, classes: [absent, present]}
  - {name: findings, kind: labels, findings: [striped, bright]}
  - {name: grade, kind: grade, grades: [low, middle, high]}
  - {name: size, kind: value, unit: mm, range: [0, 40]}
  - {name: death, kind: survival, unit: months, horizon: 24, intervals: 6}
model: {network: densenet121, arguments: {init_features: 8, growth_rate: 8, block_config: [1, 1]}}
seed: 3
"""
DECLARED = {
    "lump": {"kind": "class"},
    "findings": {"kind": "labels"},
    "grade": {"kind": "grade", "names": ["low", "middle", "high"]},
    "size": {"kind": "value", "unit": "cm"},
    "death": {"kind": "survival", "unit": "days"},
}


def make_dataset(folder: Path, count: int = 24) -> Path:
    """Write images of a square each; every fourth states no lump."""
    rng = np.random.default_rng(5)
    (folder / "images").mkdir(parents=True)
    entries = []
    for number in range(count):
        half, striped, bright = int(rng.integers(2, 14)), bool(number % 2), bool(rng.integers(0, 2))
        pixels = rng.normal(80, 10, (32, 32))
        pixels[16 - half : 16 + half, 16 - half : 16 + half] += 60
        pixels[:, ::4] += 30 * striped
        pixels[:4] += 50 * bright
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{number:02}.png")
        targets = {
            "findings": {"striped": striped, **({"bright": bright} if number % 3 else {})},
            "grade": ["low", "middle", "high"][half // 5],
            "size": 2 * half / 10,
            "death": {"time": float(rng.exponential(400)), "event": bool(number % 3)},
        }
        if number % 4:
            targets["lump"] = "present" if half > 7 else "absent"
        entries.append({"image": f"images/{number:02}.png", "name": f"{number:02}", "targets": targets})
    (folder / "dataset.json").write_text(json.dumps({"name": "many", "targets": DECLARED, "training": entries}))
    return folder
