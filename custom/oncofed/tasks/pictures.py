"""Pictures of a model's answers for reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

Values = NDArray[Any]


@dataclass(frozen=True)
class Picture:
    """An axial slice or a flat image.

    Axes are (right, anterior) or (right, down).

    Attributes:
        image: grey (x, y) or colour (x, y, 3).
        reference: label values (x, y); None if the label is of the whole image.
        prediction: label values (x, y); None likewise.
        heat: weight of each place, from 0 to 1, (x, y); None if unknown.
        caption: expected and found class; empty if contours show it.
        aspect: height of a pixel divided by its width.
        downwards: the second axis points down.
    """

    image: Values
    reference: NDArray[np.uint8] | None = None
    prediction: NDArray[np.uint8] | None = None
    heat: NDArray[np.float32] | None = None
    caption: str = ""
    aspect: float = 1.0
    downwards: bool = False


def best_slice(
    values: Values, reference: NDArray[np.uint8], prediction: NDArray[np.uint8], affine: NDArray[np.float64]
) -> Picture:
    """Return an image's best slice.

    For a volume in any orientation, the axial slice with most of the reference; of the prediction where the reference
    is empty.

    Args:
        values: (x, y[, z], channel).
        reference: label values, (x, y[, z]).
        prediction: label values, (x, y[, z]).
        affine: (4, 4), from voxels to RAS+ in mm.
    """
    if reference.ndim == 2:
        return Picture(flat(values), reference, prediction, downwards=True)
    turned, aspect = _upright((values[..., 0].astype(np.float32), reference, prediction), affine)
    image, reference, prediction = turned
    shown = reference if reference.any() else prediction
    index = int(np.argmax((shown > 0).sum(axis=(0, 1))))
    return Picture(image[..., index], reference[..., index], prediction[..., index], aspect=aspect)


def middle_slice(values: Values, affine: NDArray[np.float64], caption: str) -> Picture:
    """Return an image's middle axial slice, with a caption.

    Args:
        values: (x, y[, z], channel).
        affine: (4, 4), from voxels to RAS+ in mm.
        caption: of the picture.
    """
    if values.ndim == 3:
        return Picture(flat(values), caption=caption, downwards=True)
    (image,), aspect = _upright((values[..., 0].astype(np.float32),), affine)
    return Picture(image[..., image.shape[-1] // 2], caption=caption, aspect=aspect)


def flat(values: Values) -> Values:
    """Drop the channel axis of (x, y, channel) unless coloured."""
    return values if values.shape[-1] == 3 else values[..., 0]


def _upright(volumes: tuple[Values, ...], affine: NDArray[np.float64]) -> tuple[list[Values], float]:
    """Return volumes in RAS+ with their axial pixels' aspect ratio.

    Height by width.
    """
    turn = nib.orientations.io_orientation(affine)
    sizes = voxel_sizes(affine)
    right, anterior = (sizes[int(np.flatnonzero(turn[:, 0] == axis)[0])] for axis in (0, 1))
    return [nib.orientations.apply_orientation(v, turn) for v in volumes], float(anterior / right)
