"""From files to tensors: the deterministic part, which is cached, and the random part, which is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from monai.data.meta_tensor import MetaTensor
from monai.transforms import (
    ClassesToIndicesd,
    Compose,
    EnsureTyped,
    NormalizeIntensityd,
    Orientationd,
    RandAdjustContrastd,
    RandAffined,
    RandCropByLabelClassesd,
    RandFlipd,
    RandGaussianNoised,
    RandScaleIntensityd,
    ScaleIntensityRanged,
    SelectItemsd,
    Spacingd,
    SpatialPadd,
    Transform,
)
from monai.utils.enums import MetaKeys, SpaceKeys

from oncofed.data.cases import Case
from oncofed.data.facts import Values
from oncofed.data.images import LoadedImage
from oncofed.data.spec import DataSpec

_CT_WINDOW_HU = (-1000.0, 1000.0)
_PAIR = ("image", "label")
_INDICES = "label_cls_indices"
# Voxels of each class among which a patch's centre is drawn, spread evenly over them all. All of them would take eight
# bytes for each voxel of a cached case.
_CENTRES_PER_CLASS = 10_000
# ITU-R BT.601: how bright red, green and blue are to the eye.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def as_tensor(image: LoadedImage) -> MetaTensor:
    """Return an image as (channel, x, y[, z]) float32 with its affine."""
    values = np.moveaxis(image.values, -1, 0).astype(np.float32)
    meta = {MetaKeys.SPACE: SpaceKeys.RAS, MetaKeys.ORIGINAL_CHANNEL_DIM: 0}
    return MetaTensor(np.ascontiguousarray(values), affine=image.affine, meta=meta)


class ReadCase(Transform):
    """Reads a ``Case``: {"image": (channel, x, y[, z]), "label": (1, x, y[, z])}, float32 with their affines.

    Args:
        spec: gives the channels that the network sees (a flat image's grey becomes colour, and colour grey), and
            whether bright backgrounds are inverted.
        label: also read the label.
    """

    def __init__(self, spec: DataSpec, label: bool = True) -> None:
        self._channels = len(spec.channels)
        self._darken = spec.background == "dark"
        self._label = label

    def __call__(self, case: Case) -> dict[str, MetaTensor]:
        """Read one case."""
        if not self._label:
            return {"image": as_tensor(self._fitted(case.read_image()))}
        image, label = case.read()
        return {"image": as_tensor(self._fitted(image)), "label": as_tensor(label)}

    def _fitted(self, image: LoadedImage) -> LoadedImage:
        values = image.values
        if values.shape[-1] == 1 and self._channels == 3:
            values = np.repeat(values, 3, axis=-1)
        elif values.shape[-1] == 3 and self._channels == 1:
            values = (values.astype(np.float32) @ _LUMA)[..., None]
        if self._darken:
            values = darken(values)
        return replace(image, values=values)


def darken(values: Values) -> Values:
    """Invert an image whose background is bright: whose median is nearer to its brightest percentile than its darkest.

    What covers most of a field is background, and objects differ from it: in fluorescence they are brighter, in
    bright-field and stained tissue darker.

    Args:
        values: (x, y[, z], channel).
    """
    low, median, high = np.percentile(values.mean(axis=-1), (1, 50, 99))
    if median - low <= high - median:
        return values
    inverted: Values = values.max() - values
    return inverted


def _to_grid(spec: DataSpec, keys: tuple[str, ...]) -> list[Any]:
    steps: list[Any] = []
    if spec.dimensions == 3:
        steps.append(Orientationd(keys, axcodes=spec.orientation, labels=None))
    if spec.spacing:
        modes = {"image": "bilinear", "label": "nearest"}
        steps.append(Spacingd(keys, pixdim=spec.spacing, mode=[modes[key] for key in keys]))
    return steps


def _normalise(spec: DataSpec) -> list[Any]:
    if spec.modality == "ct":
        low, high = _CT_WINDOW_HU
        return [ScaleIntensityRanged("image", a_min=low, a_max=high, b_min=-1, b_max=1, clip=True)]
    return [NormalizeIntensityd("image", channel_wise=True)]


def load_image(spec: DataSpec) -> Compose:
    """Return the deterministic part for an image alone: ``Case`` -> {"image": (channel, x, y[, z]) float32}.

    The image keeps its affine and the record of what was done to it, so that a prediction can be brought back to the
    grid of the file.
    """
    steps = [ReadCase(spec, label=False), *_to_grid(spec, ("image",)), *_normalise(spec)]
    return Compose([*steps, EnsureTyped("image", dtype=np.float32)])


def load_pair(spec: DataSpec, classes: int) -> Compose:
    """Return the deterministic part for training, from a ``Case``.

    Args:
        spec: gives the grid, the normalisation and the patch, to which smaller images are padded.
        classes: classes with background.

    Returns:
        A transform to image (channel, x, y[, z]) float32, label (1, x, y[, z]) uint8, and where each class lies.
    """
    return Compose(
        [
            ReadCase(spec),
            *_to_grid(spec, _PAIR),
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
    if change and spec.modality == "microscopy":
        # A field of a slide has no top and no left.
        steps[2:2] = [RandFlipd(_PAIR, prob=0.5, spatial_axis=axis) for axis in range(spec.dimensions)]
    # Every operation on a tensor that carries metadata costs more than the operation: the network gets plain ones.
    return Compose([*steps, EnsureTyped(_PAIR, track_meta=False)])
