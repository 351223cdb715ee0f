"""Deterministic preprocessing: from files to tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms import (
    Compose,
    EnsureTyped,
    NormalizeIntensityd,
    Orientationd,
    Resize,
    ResizeWithPadOrCropd,
    ScaleIntensityRanged,
    Spacing,
    Spacingd,
    SpatialPadd,
    Transform,
)
from monai.utils.enums import MetaKeys, SpaceKeys

from oncofed.data.case import Case
from oncofed.data.case_facts import Values
from oncofed.data.grids import in_larger_units, is_same, resampled
from oncofed.data.harmonization.landmarks import intensity_row, mapped
from oncofed.data.harmonization.spec import HarmonizationSpec
from oncofed.data.images import LoadedImage
from oncofed.data.spec import DataSpec
from oncofed.data.stain.of_case import Normaliser

_CT_WINDOW_HU = (-1000.0, 1000.0)
_COLOURS = {"a_min": 0.0, "a_max": 255.0, "b_min": -1.0, "b_max": 1.0}
_PAIR = ("image", "label")
# ITU-R BT.601: how bright red, green and blue are to the eye.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# Distances that differ by no more than this share of the range between an image's darkest and brightest percentile are
# equal, so that rounding decides nothing.
NEARLY = 1e-6


def as_tensor(image: LoadedImage) -> MetaTensor:
    """Return an image as a float32 tensor, with affine.

    Shape (channel, x, y[, z]).
    """
    values = np.moveaxis(image.values, -1, 0).astype(np.float32)
    meta = {MetaKeys.SPACE: SpaceKeys.RAS, MetaKeys.ORIGINAL_CHANNEL_DIM: 0}
    return MetaTensor(np.ascontiguousarray(values), affine=image.affine, meta=meta)


class ReadCase(Transform):
    """Reads a ``Case`` into tensors.

    {"image": (channel, x, y[, z]), "label": (1, x, y[, z])}, float32 with their affines.

    Args:
        spec: gives the network's input channels (flat images are converted from grey to colour or back), and
            whether bright backgrounds are inverted.
        label: also read the label.
    numbered: keep the numbers of masks that number their objects.
    """

    def __init__(self, spec: DataSpec, label: bool = True, numbered: bool = False) -> None:
        self._channels = len(spec.channels)
        self._darken = spec.background == "dark"
        self._label = label
        self._numbered = numbered
        self._spec = spec

    def __call__(self, case: Case) -> dict[str, MetaTensor]:
        """Read one case."""
        if not self._label:
            return {"image": as_tensor(self._fitted(case.read_image(), case))}
        image, label = case.read(self._numbered)
        return {"image": as_tensor(self._fitted(image, case)), "label": as_tensor(label)}

    def _fitted(self, image: LoadedImage, case: Case) -> LoadedImage:
        values = image.values
        if values.shape[-1] == 1 and self._channels == 3:
            values = np.repeat(values, 3, axis=-1)
        elif values.shape[-1] == 3 and self._channels == 1:
            values = (values.astype(np.float32) @ LUMA)[..., None]
        if self._spec.stain.normalise != "none":
            values = Normaliser(self._spec.stain, self._spec.template).image(values, case)
        if self._darken:
            values = darken(values)
        return replace(image, values=values)


def darken(values: Values) -> Values:
    """Invert an image with a bright background.

    That is one whose median is nearer to its brightest percentile than to its darkest.

    Background covers most of a field, and objects differ from it: in fluorescence they are brighter, in bright-field
    and stained tissue darker.

    Args:
        values: (x, y[, z], channel).
    """
    low, median, high = np.percentile(values.mean(axis=-1, dtype=np.float64), (1, 50, 99))
    if median - low <= high - median + NEARLY * (high - low):
        return values
    inverted: Values = values.max() - values
    return inverted


class _Respace(Transform):
    """``Spacingd`` in float32, one axis after the other."""

    def __init__(self, spacing: tuple[float, ...]) -> None:
        self._scale = _scale(spacing)
        self._plan = Spacing([side * self._scale for side in spacing], lazy=True)

    def __call__(self, data: dict[str, MetaTensor]) -> dict[str, MetaTensor]:
        image = data["image"]
        planned = self._plan(_scaled(image, self._scale))
        source, target = image.affine.numpy(), planned.peek_pending_affine().numpy()
        target = np.diag([*[1 / self._scale] * 3, 1.0]) @ target
        shape = [int(side) for side in planned.peek_pending_shape()]
        if shape == list(image.shape[1:]) and is_same(source, target, len(shape)):
            return data
        values = resampled(image.as_tensor(), source, target, shape)
        moved = MetaTensor(values).copy_meta_from(image)
        moved.affine = torch.from_numpy(target)
        return {**data, "image": moved}


class _Spaced(Transform):
    """``Spacingd`` for voxels of any size."""

    def __init__(self, keys: tuple[str, ...], spacing: tuple[float, ...]) -> None:
        self._scale = _scale(spacing)
        modes = {"image": "bilinear", "label": "nearest"}
        pixdim = [side * self._scale for side in spacing]
        self._spacing = Spacingd(keys, pixdim=pixdim, mode=[modes[key] for key in keys])

    def __call__(self, data: dict[str, MetaTensor]) -> dict[str, MetaTensor]:
        moved = dict(self._spacing({key: _scaled(value, self._scale) for key, value in data.items()}))
        return {key: _scaled(value, 1 / self._scale) for key, value in moved.items()}


def _scale(spacing: tuple[float, ...]) -> float:
    return in_larger_units(np.diag([*spacing, *[1.0] * (4 - len(spacing))]))


def _scaled(image: MetaTensor, by: float) -> MetaTensor:
    """Return an image with its affine in other units.

    MONAI's tolerance is for voxels of about 1 mm.
    """
    if by == 1:
        return image
    scaled = MetaTensor(image).copy_meta_from(image)
    scaled.affine = torch.diag(torch.tensor([by, by, by, 1.0], dtype=torch.float64)) @ image.affine
    return scaled


def _to_grid(spec: DataSpec, keys: tuple[str, ...]) -> list[Any]:
    steps: list[Any] = []
    if spec.dimensions == 3:
        steps.append(Orientationd(keys, axcodes=spec.orientation, labels=None))
    if spec.spacing:
        steps.append(_Spaced(keys, spec.spacing))
    return steps


def intensity_range(spec: DataSpec) -> dict[str, float] | None:
    """Return the range for ``ScaleIntensityRanged``.

    None if each channel is standardised instead.
    """
    if spec.stain.is_used:
        return _COLOURS
    if spec.modality != "ct":
        return None
    low, high = spec.window or _CT_WINDOW_HU
    return {"a_min": low, "a_max": high, "b_min": 0.0 if spec.window else -1.0, "b_max": 1.0}


def _normalise(spec: DataSpec) -> list[Any]:
    found = intensity_range(spec)
    if found is None:
        return [
            NormalizeIntensityd("image", channel_wise=True),
            *([_ToTemplate(spec)] if spec.intensity_columns else []),
        ]
    return [ScaleIntensityRanged("image", **found, clip=True)]


class _ToTemplate(Transform):
    """Maps a standardised image's intensities to the template that the sites agreed on, once they did.

    Args:
        spec: knows it.
    """

    def __init__(self, spec: DataSpec) -> None:
        self._spec = spec

    def __call__(self, data: dict[str, MetaTensor]) -> dict[str, MetaTensor]:
        """Return the same, with other intensities."""
        image, template = data["image"], self._spec.intensities
        if template is None:
            return data
        return {**data, "image": MetaTensor(mapped(image.as_tensor(), template)).copy_meta_from(image)}


def image_landmarks(case: Case, spec: DataSpec) -> dict[str, float]:
    """Return a case's landmarks of intensity by column, as the sites agree on them.

    Raises:
        DataError: a file cannot be read.
    """
    own = spec.model_copy(update={"harmonization": HarmonizationSpec()})
    return intensity_row(load_image(own)(case)["image"].as_tensor(), spec.intensity_columns)


def load_image(spec: DataSpec) -> Compose:
    """Return the preprocessing of an image without label.

    ``Case`` -> {"image": (channel, x, y[, z]) float32}.

    The image keeps its affine, so that a prediction can be mapped back to the file's grid. It is resampled in
    float32; ``load_pair`` uses float64.
    """
    return Compose([ReadCase(spec, label=False), *to_working_grid(spec).transforms])


def to_working_grid(spec: DataSpec) -> Compose:
    """Return ``load_image`` without reading the file.

    It maps {"image": (channel, x, y[, z])} with affine to the same.
    """
    steps: list[Any] = []
    if spec.dimensions == 3:
        steps.append(Orientationd("image", axcodes=spec.orientation, labels=None))
    if spec.spacing:
        steps.append(_Respace(spec.spacing))
    steps += _normalise(spec)
    return Compose([*steps, EnsureTyped("image", dtype=np.float32)])


def load_pair(spec: DataSpec, numbered: bool = False) -> Compose:
    """Return the preprocessing for training on patches.

    Args:
        spec: gives the grid, the normalisation and the patch, to which smaller images are padded.
        numbered: keep the numbers of single objects instead of their class.

    Returns:
        A transform to image (channel, x, y[, z]) float32 and label (1, x, y[, z]) uint8 or, numbered, int32.
    """
    return Compose(
        [
            ReadCase(spec, numbered=numbered),
            *_to_grid(spec, _PAIR),
            *_normalise(spec),
            SpatialPadd(_PAIR, spatial_size=spec.patch),
            EnsureTyped(_PAIR, dtype=(np.float32, np.int32 if numbered else np.uint8), track_meta=False),
        ]
    )


def load_unlabelled(spec: DataSpec) -> Compose:
    """Return the preprocessing for training on patches without labels.

    Returns:
        A transform to {"image": (channel, x, y[, z]) float32}, padded to the patch where it is smaller.
    """
    return Compose(
        [
            *load_image(spec).transforms,
            SpatialPadd("image", spatial_size=spec.patch),
            EnsureTyped("image", dtype=np.float32, track_meta=False),
        ]
    )


def load_whole(spec: DataSpec) -> Compose:
    """Return the preprocessing for classification.

    It gives a whole image on a grid of ``spec.patch``.

    If the job sets a spacing, the image keeps its scale and is cropped or padded around its centre; else its longest
    side is scaled to fit and the others are padded.

    Returns:
        A transform from a ``Case`` to {"image": (channel, x, y[, z]) float32}, which keeps its affine.
    """
    steps = [ReadCase(spec, label=False), *_to_grid(spec, ("image",))]
    if not spec.spacing:
        steps.append(_FitInto(spec.patch))
    steps += [*_normalise(spec), ResizeWithPadOrCropd("image", spatial_size=spec.patch)]
    return Compose([*steps, EnsureTyped("image", dtype=np.float32)])


class _FitInto(Transform):
    """Scales an image to fit a box of any proportions."""

    def __init__(self, box: tuple[int, ...]) -> None:
        self._box = box

    def __call__(self, data: dict[str, MetaTensor]) -> dict[str, MetaTensor]:
        shape = data["image"].shape[1:]
        factor = min(side / length for side, length in zip(self._box, shape, strict=True))
        size = [max(1, round(length * factor)) for length in shape]
        mode = "area" if factor < 1 else "trilinear" if len(shape) == 3 else "bilinear"
        return {**data, "image": Resize(size, mode=mode)(data["image"])}
