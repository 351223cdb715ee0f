"""Small datasets made on the spot: two nested balls in noise, written as NIfTI in Decathlon layout."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np

CLASSES = {1: "shell", 2: "core"}

JOB = """\
schema: 1
name: balls
title: Two nested balls
data: {dataset: balls, patch: [16, 16, 16]}
task: {type: segmentation, classes: {1: shell, 2: core}}
model: {network: unet, channels: [4, 8], residual_units: 1}
training: {steps_per_round: 4, batch_size: 2, learning_rate: 0.01, warmup_steps: 0}
federation: {rounds: 2}
seed: 3
"""


def make_volume(seed: int, side: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Return image (float32) and label (uint8) of ``side``³ voxels."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"))
    centre = rng.uniform(side * 0.4, side * 0.6, 3)[:, None, None, None]
    distance = np.linalg.norm(grid - centre, axis=0)
    label = ((distance < side * 0.35).astype(np.uint8) + (distance < side * 0.2)).astype(np.uint8)
    return (label + rng.normal(0, 0.2, label.shape)).astype(np.float32), label


def make_site(folder: Path, cases: int = 6, seed: int = 0) -> Path:
    """Write a site's folder and return it."""
    for sub in ("imagesTr", "labelsTr"):
        (folder / sub).mkdir(parents=True)
    entries = []
    for number in range(cases):
        image, label = make_volume(seed * 1000 + number)
        for sub, array in (("imagesTr", image), ("labelsTr", label)):
            nib.save(nib.Nifti1Image(array, np.eye(4)), folder / sub / f"case_{number}.nii.gz")
        entries.append({"image": f"./imagesTr/case_{number}.nii.gz", "label": f"./labelsTr/case_{number}.nii.gz"})
    (folder / "dataset.json").write_text(json.dumps({"training": entries}))
    return folder


def write_job(folder: Path, text: str = JOB) -> Path:
    """Write ``folder/job.yaml`` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "job.yaml"
    file.write_text(text)
    return file
