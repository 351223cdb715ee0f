"""One slice of a volume with its contours, as it stands in the report."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Picture:
    """One slice: image (float), reference and prediction (label values), each (x, y)."""

    image: NDArray
    reference: NDArray
    prediction: NDArray


def best_slice(image: NDArray, prediction: NDArray, reference: NDArray) -> Picture:
    """Return the slice that shows most of the reference, cut across the axis with the fewest voxels.

    Args:
        image: (x, y, z).
        prediction: label values, (x, y, z).
        reference: label values, (x, y, z).
    """
    axis = int(np.argmin(image.shape))
    others = tuple(a for a in range(3) if a != axis)
    index = int(np.argmax((reference > 0).sum(axis=others)))
    image, reference, prediction = (np.take(volume, index, axis=axis) for volume in (image, reference, prediction))
    return Picture(image, reference, prediction)
