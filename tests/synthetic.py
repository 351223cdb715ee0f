"""Small generated datasets.

Nested balls in noise, textures, nuclei, slides.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import tifffile
from PIL import Image

CLASSES = {1: "shell", 2: "core"}

JOB = """\
schema: 1
name: balls
title: Two nested balls
data: {dataset: balls, patch: [16, 16, 16]}
task: {type: segmentation, classes: {1: shell, 2: core}}
model: {network: unet, channels: [4, 8], residual_units: 1}
training: {steps_per_round: 4, batch_size: 2, learning_rate: 0.01, warmup_steps: 0}
rounds: {number: 2}
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


def make_textures(folder: Path, classes: list[str], each: int = 12, side: int = 32, colours: int = 3) -> Path:
    """Write one folder of striped images a class.

    Classes differ in the stripes' width; returns the folder.
    """
    rng = np.random.default_rng(0)
    for value, name in enumerate(classes):
        (folder / name.replace(" ", "_")).mkdir(parents=True)
        for number in range(each):
            waves = np.sin(np.arange(side) * 2 * np.pi * (value + 1) / side + rng.uniform(0, 6))
            image = 128 + 90 * waves[:, None, None] + rng.normal(0, 10, (side, side, colours))
            pixels = image.clip(0, 255).astype(np.uint8)
            path = folder / name.replace(" ", "_") / f"{value}-{number}.png"
            Image.fromarray(pixels if colours == 3 else pixels[..., 0]).save(path)
    return folder


def make_nuclei(folder: Path, count: int = 12, side: int = 128) -> Path:
    """Write fields of bright discs with numbered masks.

    Some touch; returns the folder.
    """
    rng = np.random.default_rng(0)
    for sub in ("images", "masks"):
        (folder / sub).mkdir(parents=True)
    y, x = np.mgrid[:side, :side]
    for field in range(count):
        numbers, shade = np.zeros((side, side), np.uint16), np.zeros((side, side))
        for number in range(1, 10 + field):
            row, column, radius = (*rng.uniform(6, side - 6, 2), rng.uniform(4, 8))
            distance = np.hypot(y - row, x - column) / radius
            own = (distance < 1) & (numbers == 0)
            numbers[own], shade[own] = number, 200 - 100 * distance[own] ** 2
        image = 40 + shade[..., None] + rng.normal(0, 12, (side, side, 3))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"f{field}.png")
        Image.fromarray(numbers).save(folder / "masks" / f"f{field}.png")
    return folder


def make_slides(
    folder: Path, count: int, side: int = 2048, seed: int = 0, region_side: int | None = None
) -> dict[str, tuple[int, int, int, int] | None]:
    """Write tissue slides and a table of classes.

    In every other slide a region of less than 3 % of the tissue has nuclei that are larger and denser.

    Args:
        folder: to make.
        count: slides.
        side: of a slide in pixels; three quarters of it are tissue.
        seed: of all that is random.
        region_side: of the region in pixels; None: an eighth of the slide's.

    Returns:
        file name -> (x, y, width, height) of that region in pixels; None where a slide has none.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    truth: dict[str, tuple[int, int, int, int] | None] = {}
    rows = ["image,label,patient"]
    for number in range(count):
        tumour = number % 2 == 1
        pixels = np.full((side, side, 3), 243, np.uint8)
        margin = side // 8
        tissue = (slice(margin, side - margin), slice(margin, side - margin))
        stain = np.array([226, 160, 196]) + rng.normal(0, 8, 3)
        pixels[tissue] = (stain + rng.normal(0, 7, (side - 2 * margin, side - 2 * margin, 3))).clip(0, 255)
        _nuclei(pixels, rng, margin, margin, side - 2 * margin, radius=4, every=900)
        region = None
        if tumour:
            size = region_side or side // 8
            x, y = (int(v) for v in rng.integers(margin, side - margin - size, 2))
            region = (x, y, size, size)
            _nuclei(pixels, rng, x, y, size, radius=7, every=350)
        name = f"slide-{number:03d}.tif"
        resolution = {"resolution": (1e4, 1e4), "resolutionunit": "CENTIMETER"}
        tifffile.imwrite(folder / name, pixels, tile=(256, 256), photometric="rgb", compression="jpeg", **resolution)
        truth[name] = region
        rows.append(f"{name},{'tumour' if tumour else 'normal'},P{number}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return truth


def _nuclei(pixels: np.ndarray, rng: np.random.Generator, x: int, y: int, size: int, radius: int, every: int) -> None:
    offsets = np.arange(-radius, radius + 1)
    disc = np.add.outer(offsets**2, offsets**2) <= radius**2
    rows, columns = np.nonzero(disc)
    for row, column in rng.integers(radius, size - radius, (size * size // every, 2)):
        at = (y + row + rows - radius, x + column + columns - radius)
        pixels[at] = (np.array([92, 58, 138]) + rng.normal(0, 10, 3)).clip(0, 255)


def make_package(folder: Path, blocks: str = "") -> Path:
    """Write a Python package that registers ``wide_net``.

    Args:
        folder: to make; its name is the package's.
        blocks: further lines of its module ``blocks``.
    """
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(
        "from torch import nn\n\nfrom oncofed.models import register_network\n\nfrom .blocks import Block\n\n\n"
        '@register_network("wide_net", divisor=1)\n'
        "def wide_net(in_channels, out_channels, spatial_dims, width=8):\n"
        "    conv = nn.Conv3d if spatial_dims == 3 else nn.Conv2d\n"
        "    return nn.Sequential(conv(in_channels, width, 3, padding=1), Block(), conv(width, out_channels, 1))\n"
    )
    (folder / "blocks.py").write_text(f"from torch import nn\n\n\nclass Block(nn.ReLU):\n    pass\n\n\n{blocks}")
    return folder


class Voice:
    """Keeps what a site's training reports; see ``oncofed.client.local_training.ProgressReporter``."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.notes: list[str] = []

    def progress(self, **values: Any) -> None:
        """Keep progress."""
        self.told.append(values)

    def note(self, text: str, level: int) -> None:
        """Keep a line of the log."""
        del level
        self.notes.append(text)


def make_lesions(folder: Path, cases: int = 12, side: int = 40, seed: int = 0, axes: int = 3) -> Path:
    """Write noisy images with up to three bright balls each, whose boxes are stated; return the folder.

    No ball touches another. Volumes have voxels of 1 x 1 x 2 mm, so that balls are half as high in voxels; every fourth
    image has no ball.
    """
    rng = np.random.default_rng(seed)
    spacing = np.array([1.0, 1.0, 2.0][:axes])
    shape = np.rint(side / spacing).astype(int)
    (folder / "imagesTr").mkdir(parents=True)
    entries = []
    places = np.stack(
        np.meshgrid(*[(np.arange(n) + 0.5) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij"), -1
    )
    for number in range(cases):
        values, boxes, centres = rng.normal(0, 1, shape), list[dict[str, Any]](), list[np.ndarray]()
        while len(boxes) < number % 4:
            radius = rng.uniform(3, 5)
            centre = rng.uniform(radius, side - radius, axes)
            if any(np.linalg.norm(centre - other) < 12 for other in centres):
                continue
            centres.append(centre)
            values[np.linalg.norm(places - centre, axis=-1) < radius] += 4
            corners = {"low": (centre - radius) / spacing, "high": (centre + radius) / spacing}
            boxes.append({name: corner.round(3).tolist() for name, corner in corners.items()})
        if axes == 3:
            name = f"imagesTr/case_{number}.nii.gz"
            nib.save(nib.Nifti1Image(values.astype(np.float32), np.diag([*spacing, 1.0])), folder / name)
        else:
            name = f"imagesTr/case_{number}.png"
            Image.fromarray((values * 20 + 80).clip(0, 255).astype(np.uint8).T).save(folder / name)
        entries.append({"image": name, "boxes": boxes})
    (folder / "dataset.json").write_text(json.dumps({"labels": {"1": "lesion"}, "training": entries}))
    return folder
