"""Generated volumes with labels, and MONAI's tutorial loop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import CacheDataset, DataLoader
from monai.losses import DiceCELoss
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    RandAdjustContrastd,
    RandAffined,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandGaussianNoised,
    RandScaleIntensityd,
    SpatialPadd,
)

from oncofed.data.register import RegisterOptions, register
from oncofed.data.spec import DataSpec
from oncofed.training import Plan

_CASES = 6


def make_volumes(folder: Path, data: DataSpec, classes: dict[int, str]) -> Path:
    """Write and register volumes on the job's grid.

    Each has one and a half patches a side.
    """
    side = data.patch[0] * 3 // 2
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, side)] * 3, indexing="ij"))
    affine = np.diag([*(data.spacing or (1, 1, 1)), 1])
    for sub in ("images", "labels"):
        (folder / "in" / sub).mkdir(parents=True)
    for number in range(_CASES):
        distance = np.linalg.norm(grid - rng.uniform(-0.3, 0.3, (3, 1, 1, 1)), axis=0)
        label = np.zeros(distance.shape, np.uint8)
        for value in sorted(classes):
            label[distance < 0.6 / value] = value
        image = (label * 200 + rng.normal(0, 60, label.shape)).astype(np.int16)
        for sub, values in (("images", image), ("labels", label)):
            nib.save(nib.Nifti1Image(values, affine), folder / "in" / sub / f"c{number}.nii")
    register(RegisterOptions(folder / "in", data.dataset, folder / "out", labels=classes))
    return folder / "out"


def tutorial_loop(plan: Plan, dataset: Path, device: torch.device, workers: int) -> Iterator[float]:
    """Yield losses of MONAI's tutorial loop.

    With the same augmentation.
    """
    keys = ("image", "label")
    fixed = [
        LoadImaged(keys),
        EnsureChannelFirstd(keys),
        Orientationd(keys, axcodes="RAS", labels=None),
        NormalizeIntensityd("image"),
        SpatialPadd(keys, plan.data.patch),
    ]
    changes: list[Any] = [
        RandCropByPosNegLabeld(keys, "label", plan.data.patch, pos=2, neg=1, num_samples=1),
        RandAffined(
            keys, prob=0.3, rotate_range=0.15, scale_range=0.1, mode=("bilinear", "nearest"), padding_mode="border"
        ),
        RandScaleIntensityd("image", factors=0.15, prob=0.3),
        RandGaussianNoised("image", prob=0.15, std=0.1),
        RandAdjustContrastd("image", prob=0.2, gamma=(0.7, 1.5)),
    ]
    if plan.training.augmentation == "full":
        changes += [RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in range(3)]
    files = [{key: dataset / "source" / f"{key}s" / f"c{n}.nii" for key in keys} for n in range(_CASES)]
    cached = CacheDataset(files, Compose([*fixed, *changes]), num_workers=2, progress=False)
    same = {"shuffle": True, "persistent_workers": workers > 0, "drop_last": True}
    loader = DataLoader(cached, num_workers=workers, batch_size=plan.training.batch_size, **same)
    network = plan.build_network().to(device)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    while True:
        for batch in loader:
            image, label = batch["image"].to(device), batch["label"].to(device)
            optimizer.zero_grad()
            output = network(image)
            loss = loss_of(output[:, 0] if output.ndim > image.ndim else output, label)
            loss.backward()
            optimizer.step()
            yield loss.item()
