"""Patches a second that the input gives, without any training: oncofed's batches beside MONAI's transforms.

Both draw from the same prepared volumes, held where each holds them (oncofed: on the GPU where there is one; MONAI: in
memory, with ``DataLoader`` workers), with the same kinds of changes: "light", and nnU-Net's set, "full". The programs
run in turn, and the median of the repeats counts.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, DataLoader
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandSimulateLowResolutiond,
)

from oncofed.data.batches import Batches
from oncofed.data.cases import read_cases
from oncofed.data.inputs import Patches
from oncofed.data.prepared import PreparedCases
from oncofed.data.spec import DataSpec
from oncofed.job.outcome import environment
from train_step import make_volumes

_KEYS = ("image", "label")


def main() -> None:
    """Run, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cuda = torch.cuda.is_available()
    parser.add_argument("--patch", type=int, default=128 if cuda else 64, help="side in voxels")
    parser.add_argument("--batch", type=int, default=2, help="patches a batch")
    parser.add_argument("--batches", type=int, default=50 if cuda else 20, help="in each repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="of MONAI's DataLoader")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("monai").setLevel(logging.ERROR)
    figures: dict[str, Any] = {"machine": {**environment(), "cores": os.cpu_count()}, "patch": arguments.patch}
    with tempfile.TemporaryDirectory(prefix="oncofed-input-") as folder:
        figures |= measure(arguments, Path(folder))
    print(table(figures))
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Return patches a second by augmentation and program."""
    data = DataSpec(dataset="volumes", modality="mri", patch=(arguments.patch,) * 3)
    dataset = make_volumes(folder, data, {1: "ball"})
    train = read_cases(dataset, data.split, 1).train
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rates = {}
    for augmentation in ("light", "full"):
        patches = Patches(data, augmentation, 2)
        prepared = PreparedCases(train, patches, device)
        ours = Batches(prepared, patches, arguments.batch, 1, device)
        theirs = _monai(prepared, data, augmentation == "full", arguments)
        rates[augmentation] = _rates({"oncofed": partial(next, ours), "monai": partial(next, theirs)}, arguments)
    return rates


def _monai(prepared: PreparedCases, data: DataSpec, full: bool, arguments: argparse.Namespace) -> Iterator[Any]:
    changes: list[Any] = [
        RandCropByPosNegLabeld(_KEYS, "label", data.patch, pos=1, neg=1, num_samples=1),
        RandAffined(
            _KEYS,
            prob=0.36 if full else 0.5,
            rotate_range=np.pi / 6 if full else 0.15,
            scale_range=0.3 if full else 0.1,
            mode=("bilinear", "nearest"),
            padding_mode="border",
        ),
        RandGaussianNoised("image", prob=0.1 if full else 0.15, std=0.1),
        RandScaleIntensityd("image", factors=0.15, prob=0.15 if full else 0.3),
        RandAdjustContrastd("image", prob=0.3 if full else 0.2, gamma=(0.7, 1.5)),
    ]
    if full:
        changes += [
            RandGaussianSmoothd("image", (0.5, 1.0), (0.5, 1.0), (0.5, 1.0), prob=0.2),
            RandScaleIntensityd("image", factors=0.25, prob=0.15),
            RandSimulateLowResolutiond("image", prob=0.25, zoom_range=(0.5, 1.0)),
            *(RandFlipd(_KEYS, prob=0.5, spatial_axis=axis) for axis in range(3)),
        ]
    held = [{key: prepared[n][key].cpu() for key in _KEYS} for n in range(len(prepared))]
    dataset = CacheDataset(held * 4, Compose(changes), cache_rate=0, progress=False)
    same = {"shuffle": True, "persistent_workers": True, "drop_last": True, "pin_memory": torch.cuda.is_available()}
    loader = DataLoader(dataset, num_workers=arguments.workers, batch_size=arguments.batch, **same)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    while True:
        for batch in loader:
            yield {key: batch[key].to(device, non_blocking=True) for key in _KEYS}


def _rates(programs: dict[str, Callable[[], Any]], arguments: argparse.Namespace) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in programs}
    for repeat in range(arguments.repeats + 1):
        for name, program in programs.items():
            begun = time.perf_counter()
            for _ in range(arguments.batches):
                program()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:  # the first is for warming up
                times[name].append(time.perf_counter() - begun)
    return {n: arguments.batches * arguments.batch / statistics.median(values) for n, values in times.items()}


def table(figures: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    lines = [
        f"{figures['machine']['device']}: patches of {figures['patch']}³ a second",
        "",
        "| augmentation | oncofed | MONAI's transforms and DataLoader | ratio |",
        "|---|---|---|---|",
    ]
    for name in ("light", "full"):
        ours, theirs = figures[name]["oncofed"], figures[name]["monai"]
        lines.append(f"| {name} | {ours:,.1f} | {theirs:,.1f} | {ours / theirs:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
