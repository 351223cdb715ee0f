"""Sites with simulated scanners: each measures a table, or slides' features, by a shift and scale of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from oncofed.data.features import FeatureBag, write_features
from oncofed.data.features.survey import FeatureOptions
from oncofed.data.register import RegisterOptions, register
from oncofed.data.target_columns import parse_targets
from oncofed.job.spec import JobSpec

SIZE = 24
TABLE_DATA: dict[str, Any] = {
    "dataset": "flat",
    "modality": "xray",
    "channels": ["grey"],
    "patch": [32, 32],
    "max_bad_share": 1,
    "covariates": [
        {"name": "age", "unit": "years", "range": [0, 120]},
        {"name": "sex", "categories": ["F", "M"]},
        {"name": "volume", "range": [0, 40]},
        {"name": "area", "range": [0, 400]},
    ],
    "harmonization": {"columns": ["volume", "area"], "preserve": ["age", "sex"]},
}
FEATURE_DATA: dict[str, Any] = {
    "dataset": "slides",
    "modality": "microscopy",
    "channels": ["red", "green", "blue"],
    "patch": [64, 64],
    "max_bad_share": 1,
    "covariates": [{"name": "age", "unit": "years", "range": [0, 120]}],
    "harmonization": {"features": "combat", "preserve": ["age"]},
}
_TARGETS = [{"name": "outcome", "kind": "class", "classes": ["no", "yes"]}]


def table_site(folder: Path, scanner: tuple[float, float], count: int = 40, seed: int = 1, age: float = 60) -> Path:
    """Write a site's table: the outcome follows from the true volume, which its scanner shifts and scales.

    Args:
        folder: of the dataset.
        scanner: shift and scale of what it measures.
        count: patients.
        seed: of all that is random.
        age: mean of the patients'.
    """
    rng = np.random.default_rng(seed)
    (folder / "imagesTr").mkdir(parents=True)
    entries = []
    for number in range(count):
        years = float(np.clip(np.round(rng.normal(age, 10), 1), 1, 119))
        sex = number % 2
        volume = rng.normal(0, 1)
        area = rng.normal(0, 1)
        seen = [(value + 0.03 * (years - 60) + 0.3 * sex) * scanner[1] + scanner[0] for value in (volume, area)]
        Image.fromarray(rng.integers(0, 255, (32, 32)).astype(np.uint8)).save(folder / "imagesTr" / f"{number:03}.png")
        tags = {
            "age": f"{years}",
            "sex": "FM"[sex],
            "volume": f"{np.clip(20 + 2 * seen[0], 0, 40):.4f}",
            "area": f"{np.clip(200 + 20 * seen[1], 0, 400):.4f}",
        }
        image = f"imagesTr/{number:03}.png"
        outcome = {"outcome": ["no", "yes"][int(volume > 0)]}
        entries.append(
            {"image": image, "name": f"{number:03}", "patient": f"p{number}", "tags": tags, "targets": outcome}
        )
    (folder / "dataset.json").write_text(json.dumps({"targets": {"outcome": {"kind": "class"}}, "training": entries}))
    return folder


def feature_site(folder: Path, scanner: int, count: int = 30, seed: int = 1, effect: float = 1.5) -> Path:
    """Register a site's features, whose scanner gives each number a shift and scale of its own; return the dataset.

    Args:
        folder: to make.
        scanner: number that its shifts and scales are drawn from; 0: none.
        count: patients, one slide each.
        seed: of the patients.
        effect: shift of the outcome's features, in their spread.
    """
    rng, of_scanner = np.random.default_rng(seed), np.random.default_rng(scanner)
    shift = of_scanner.normal(0, 2, SIZE) if scanner else np.zeros(SIZE)
    scale = np.exp(of_scanner.normal(0, 0.3, SIZE)) if scanner else np.ones(SIZE)
    source = folder / "in"
    source.mkdir(parents=True)
    rows = ["image,patient,outcome,age"]
    for number in range(count):
        tiles, outcome, years = 12, number % 2, float(np.round(rng.normal(60, 10)))
        patient = rng.normal(0, 1, SIZE) + 0.05 * (years - 60)
        patient[:4] += effect * outcome
        features = (patient + rng.normal(0, 1, (tiles, SIZE))) * scale + shift
        places = np.array([(n % 4 * 128.0, n // 4 * 128.0) for n in range(tiles)], np.int32)
        bag = FeatureBag(features.astype(np.float32), places, 128.0, 64, 1.0, "lab-encoder", "ab" * 32)
        write_features(source / f"{number:03}.h5", bag)
        rows.append(f"{number:03}.h5,p{number},{['no', 'yes'][outcome]},{years}")
    table = source / "table.csv"
    table.write_text("\n".join(rows) + "\n")
    targets = parse_targets(["outcome=class:outcome"])
    options = RegisterOptions(
        source, "slides", folder / "set", "slides", table=table, workers=1, features=FeatureOptions(), targets=targets
    )
    register(options)
    return folder / "set"


def table_job(changes: Mapping[str, Any] | None = None, **data: Any) -> JobSpec:
    """Return a job on the table alone."""
    values = {
        "name": "outcome",
        "title": "Outcome of a table",
        "data": {**TABLE_DATA, **data},
        "targets": _TARGETS,
        "model": {"network": "table"},
        "training": {"steps_per_round": 20, "batch_size": 8, "learning_rate": 0.01, "augmentation": "none"},
        "rounds": {"number": 2},
    }
    return JobSpec.model_validate({**values, **(changes or {})})


def feature_job(changes: Mapping[str, Any] | None = None, **data: Any) -> JobSpec:
    """Return a job on slides' features."""
    values = {
        "name": "outcome",
        "title": "Outcome of slides",
        "data": {**FEATURE_DATA, **data},
        "task": {"type": "slide_targets", "targets": _TARGETS, "encoder": {"network": "lab-encoder", "features": SIZE}},
        "model": {"network": "mean_pooling"},
        "training": {"steps_per_round": 20, "batch_size": 8, "learning_rate": 0.01, "augmentation": "none"},
        "rounds": {"number": 2},
    }
    return JobSpec.model_validate({**values, **(changes or {})})
