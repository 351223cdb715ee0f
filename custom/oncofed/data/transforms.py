"""From files to tensors: the deterministic part, which is cached, and the random part, which is not."""

from __future__ import annotations

from typing import Any

import numpy as np
from monai.transforms import (
    ClassesToIndicesd,
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
    SelectItemsd,
    Spacingd,
    SpatialPadd,
)

from oncofed.data.nifti import ReadNiftid
from oncofed.data.spec import DataSpec

_CT_WINDOW_HU = (-1000.0, 1000.0)
_PAIR = ("image", "label")
_INDICES = "label_cls_indices"
# Voxels of each class among which a patch's centre is drawn, spread evenly over them all. All of them would take eight
# bytes for each voxel of a cached case.
_CENTRES_PER_CLASS = 10_000


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


def load_pair(spec: DataSpec, classes: int) -> Compose:
    """Return the deterministic part for training, from {"image": path, "label": path}.

    Args:
        spec: gives the grid, the normalisation and the patch, to which smaller images are padded.
        classes: classes with background.

    Returns:
        A transform to image (1, x, y, z) float32, label (1, x, y, z) uint8, and where each class lies.
    """
    steps: list[Any] = [
        ReadNiftid(_PAIR),
        Orientationd(_PAIR, axcodes=spec.orientation, labels=None),
    ]
    if spec.spacing:
        steps.append(Spacingd(_PAIR, pixdim=spec.spacing, mode=("bilinear", "nearest")))
    return Compose(
        [
            *steps,
            *_normalise(spec),
            SpatialPadd(_PAIR, spatial_size=spec.patch),
            EnsureTyped(_PAIR, dtype=(np.float32, np.uint8), track_meta=False),
            ClassesToIndicesd("label", num_classes=classes, max_samples_per_class=_CENTRES_PER_CLASS),
        ]
    )


def augment(spec: DataSpec, classes: int, change: bool = True) -> Compose:
    """Return the random part: a patch around a voxel of a class drawn at random, moved and its intensities changed.

    Args:
        spec: gives the patch.
        classes: classes with background.
        change: false only draws the patch.

    Returns:
        A transform from what ``load_pair`` returns to a list of one patch: image and label, plain tensors.
    """
    steps: list[Any] = [
        RandCropByLabelClassesd(
            _PAIR,
            label_key="label",
            indices_key=_INDICES,
            spatial_size=spec.patch,
            num_classes=classes,
            num_samples=1,
            warn=False,
        ),
        SelectItemsd(_PAIR),
    ]
    if change:
        steps += [
            RandAffined(
                _PAIR,
                prob=0.3,
                rotate_range=0.15,
                scale_range=0.1,
                mode=("bilinear", "nearest"),
                padding_mode="border",
            ),
            RandScaleIntensityd("image", factors=0.15, prob=0.3),
            RandGaussianNoised("image", prob=0.15, std=0.1),
        ]
    if change and spec.modality == "mri":
        steps.append(RandAdjustContrastd("image", prob=0.2, gamma=(0.7, 1.5)))
    # Every operation on a tensor that carries metadata costs more than the operation: the network gets plain ones.
    return Compose([*steps, EnsureTyped(_PAIR, track_meta=False)])
