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
    """One axial slice, (right, anterior), or one flat image, (right, down).

    Attributes:
        image: grey (x, y) or colour (x, y, 3).
        reference: label values (x, y); None where the image as a whole has a label.
        prediction: label values (x, y); None likewise.
        heat: how much each place counts, from 0 to 1, (x, y); None where nothing is known of it.
        caption: what was expected and what was found; empty where contours show it.
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

    Of a volume the axial slice that shows most of the reference, in any orientation.

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
    index = int(np.argmax((reference > 0).sum(axis=(0, 1))))
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
    """Return (x, y) or (x, y, 3) of (x, y, channel)."""
    return values if values.shape[-1] == 3 else values[..., 0]


def _upright(volumes: tuple[Values, ...], affine: NDArray[np.float64]) -> tuple[list[Values], float]:
    """Return volumes in RAS+ with their axial pixels' aspect ratio.

    Height by width.
    """
    turn = nib.orientations.io_orientation(affine)
    sizes = voxel_sizes(affine)
    right, anterior = (sizes[int(np.flatnonzero(turn[:, 0] == axis)[0])] for axis in (0, 1))
    return [nib.orientations.apply_orientation(v, turn) for v in volumes], float(anterior / right)
