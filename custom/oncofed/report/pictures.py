"""One slice of a volume with its contours, as it stands in the report."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from oncofed.data.cases import Case
from oncofed.data.nifti import read_nifti
from oncofed.tasks.segmentation import Segmented


@dataclass(frozen=True)
class Picture:
    """One axial slice: image (float), reference and prediction (label values), each (right, anterior).

    Attributes:
        aspect: height of a pixel divided by its width.
    """

    image: NDArray[np.float32]
    reference: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    aspect: float


def best_slice(case: Case, segmented: Segmented) -> Picture:
    """Return the axial slice that shows most of the reference, however the file is oriented."""
    original = read_nifti(case.image)[0].numpy()
    turn = nib.orientations.io_orientation(segmented.affine)
    image, reference, prediction = (
        nib.orientations.apply_orientation(volume, turn)
        for volume in (original, segmented.reference, segmented.prediction)
    )
    index = int(np.argmax((reference > 0).sum(axis=(0, 1))))
    sizes = voxel_sizes(segmented.affine)
    right, anterior = (sizes[int(np.flatnonzero(turn[:, 0] == axis)[0])] for axis in (0, 1))
    return Picture(image[..., index], reference[..., index], prediction[..., index], float(anterior / right))
