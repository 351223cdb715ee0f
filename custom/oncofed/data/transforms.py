"""From files to tensors: the deterministic part, which is cached, and the random part, which is not."""

from __future__ import annotations

from typing import Any

import numpy as np
from monai.transforms import (
    Compose,
    EnsureTyped,
    NormalizeIntensityd,
    Orientationd,
    RandAdjustContrastd,
    RandAffined,
    RandCropByLabelClassesd,
    RandGaussianNoised,
    RandScaleIntensityd,
    ScaleIntensityRanged,
    Spacingd,
    SpatialPadd,
)

from oncofed.data.nifti import ReadNiftid
from oncofed.data.spec import DataSpec

_CT_WINDOW_HU = (-1000.0, 1000.0)


def _normalise(spec: DataSpec) -> list[Any]:
    if spec.modality == "ct":
        low, high = _CT_WINDOW_HU
        return [ScaleIntensityRanged("image", a_min=low, a_max=high, b_min=-1, b_max=1, clip=True)]
    return [NormalizeIntensityd("image", channel_wise=True)]


def load_image(spec: DataSpec) -> Compose:
    """Return the deterministic part for an image alone: {"image": path} -> {"image": (1, x, y, z) float32}.

    The image keeps its affine and the record of what was done to it, so that a prediction can be brought back to the
    grid of the file.
    """
    steps: list[Any] = [
        ReadNiftid("image"),
        Orientationd("image", axcodes=spec.orientation, labels=None),
    ]
    if spec.spacing:
        steps.append(Spacingd("image", pixdim=spec.spacing, mode="bilinear"))
    return Compose([*steps, *_normalise(spec), EnsureTyped("image", dtype=np.float32)])


def load_pair(spec: DataSpec) -> Compose:
    """Return the deterministic part for training: image (1, x, y, z) float32, label (1, x, y, z) uint8."""
    keys = ("image", "label")
    steps: list[Any] = [
        ReadNiftid(keys),
        Orientationd(keys, axcodes=spec.orientation, labels=None),
    ]
    if spec.spacing:
        steps.append(Spacingd(keys, pixdim=spec.spacing, mode=("bilinear", "nearest")))
    return Compose(
        [
            *steps,
            *_normalise(spec),
            SpatialPadd(keys, spatial_size=spec.patch),
            EnsureTyped(keys, dtype=(np.float32, np.uint8), track_meta=False),
        ]
    )


def augment(spec: DataSpec, classes: int, change: bool = True) -> Compose:
    """Return the random part: a patch around a voxel of a class drawn at random, moved and its intensities changed.

    Args:
        spec: gives the patch.
        classes: classes with background.
        change: false only draws the patch.

    Returns:
        A transform from a pair to a list of one patch.
    """
    keys = ("image", "label")
    crop = RandCropByLabelClassesd(
        keys, label_key="label", spatial_size=spec.patch, num_classes=classes, num_samples=1, warn=False
    )
    if not change:
        return Compose([crop])
    steps: list[Any] = [
        crop,
        RandAffined(
            keys,
            prob=0.3,
            rotate_range=0.15,
            scale_range=0.1,
            mode=("bilinear", "nearest"),
            padding_mode="border",
        ),
        RandScaleIntensityd("image", factors=0.15, prob=0.3),
        RandGaussianNoised("image", prob=0.15, std=0.1),
    ]
    if spec.modality == "mri":
        steps.append(RandAdjustContrastd("image", prob=0.2, gamma=(0.7, 1.5)))
    return Compose(steps)
