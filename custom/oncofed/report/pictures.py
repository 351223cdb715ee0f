"""One slice of a volume, or a flat image, with its contours, as it stands in the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from oncofed.data.cases import Case
from oncofed.tasks.segmentation import Segmented


@dataclass(frozen=True)
class Picture:
    """One axial slice, (right, anterior), or one flat image, (right, down).

    Attributes:
        image: grey (x, y) or colour (x, y, 3).
        reference: label values (x, y).
        prediction: label values (x, y).
        aspect: height of a pixel divided by its width.
        downwards: the second axis points down.
    """

    image: NDArray[Any]
    reference: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    aspect: float
    downwards: bool = False


def best_slice(case: Case, segmented: Segmented) -> Picture:
    """Return a flat image as it is, of a volume the axial slice that shows most of the reference, however oriented."""
    original = case.read_image().values
    if segmented.reference.ndim == 2:
        image = original if original.shape[-1] == 3 else original[..., 0]
        return Picture(image, segmented.reference, segmented.prediction, 1.0, downwards=True)
    turn = nib.orientations.io_orientation(segmented.affine)
    image, reference, prediction = (
        nib.orientations.apply_orientation(volume, turn)
        for volume in (original[..., 0].astype(np.float32), segmented.reference, segmented.prediction)
    )
    index = int(np.argmax((reference > 0).sum(axis=(0, 1))))
    sizes = voxel_sizes(segmented.affine)
    right, anterior = (sizes[int(np.flatnonzero(turn[:, 0] == axis)[0])] for axis in (0, 1))
    return Picture(image[..., index], reference[..., index], prediction[..., index], float(anterior / right))
