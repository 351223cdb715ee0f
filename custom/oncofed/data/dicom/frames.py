"""A frame's place: from pixels to LPS in mm.

DICOM PS3.3, equation C.7.6.2.1-1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from oncofed.data.dicom.stacks import Slice

Floats = NDArray[np.float64]


def frame_affine(orientation: Sequence[float], spacing: Sequence[float], position: Sequence[float]) -> Floats:
    """Return a frame's (4, 4) affine to LPS in mm.

    From (column, row, mm along the normal).

    Args:
        orientation: direction cosines of rows and columns (ImageOrientationPatient).
        spacing: mm between rows and between columns (PixelSpacing).
        position: of the first pixel's centre (ImagePositionPatient).
    """
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * float(spacing[1]), column * float(spacing[0])
    affine[:3, 2], affine[:3, 3] = np.cross(row, column), np.array(position, float)
    return affine


def mean_orientation(slices: Iterable[Slice]) -> Floats:
    """Return the (6,) mean direction cosines of slices.

    Within one volume they differ at most by rounding.
    """
    every = np.array([item.header.orientation for item in slices])
    mean: Floats = every[0] if (every == every[0]).all() else every.mean(axis=0)
    return mean
