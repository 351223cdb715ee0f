"""Pixel sizes in the patient and on a detector.

PS3.3, section 10.7 (Basic Pixel Spacing Calibration Macro): Imager Pixel Spacing is measured on the detector, where the
patient appears magnified. Pixel Spacing is in the patient if it has a calibration type (GEOMETRY, FIDUCIAL) or differs
from Imager Pixel Spacing; if both are the same without a type, nothing was corrected.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable
from typing import NamedTuple

from oncofed.data.dicom.elements import Elements, floats, number, tag_of, text
from oncofed.errors import DataError

# Needed in addition to the spacings.
SIZE_TAGS = ("PixelSpacingCalibrationType", "EstimatedRadiographicMagnificationFactor")
_OF_DETECTOR = (
    "its header says how large pixels are on the detector alone: lengths are those of the shadow there, larger than in "
    "the patient"
)


class PixelSize(NamedTuple):
    """The size of pixels.

    Attributes:
        spacing: mm between rows and between columns; empty: not stated.
        magnified: factor by which the detector's spacing was divided; 0: unknown; None: the spacing is not the
            detector's.
    """

    spacing: list[float]
    magnified: float | None


def pixel_size(elements: Elements) -> PixelSize:
    """Return the size of an image's pixels.

    Raises:
        DataError: the spacing is not a number.
    """
    own = floats(elements, "PixelSpacing", 2)
    try:
        imager = floats(elements, "ImagerPixelSpacing", 2)
    except DataError:
        if not own:
            raise
        imager = []
    is_calibrated = bool(text(elements, tag_of(SIZE_TAGS[0])))
    if not imager or (own and (is_calibrated or own != imager)):
        return PixelSize(own, None)
    factor = 0.0
    with contextlib.suppress(DataError):
        factor = number(elements, SIZE_TAGS[1], 0)
    if not math.isfinite(factor) or factor < 1:  # nothing appears smaller than it is
        return PixelSize(imager, 0.0)
    return PixelSize([side / factor for side in imager], factor)


def size_notes(magnified: float | None) -> list[str]:
    """Return the notes on a flat image's pixel size."""
    if magnified is None:
        return []
    if not magnified:
        return [_OF_DETECTOR]
    return [f"pixels are as large as on the detector, divided by the magnification of its header ({magnified:g})"]


def is_of_detector(notes: Iterable[str]) -> bool:
    """Return whether lengths are the detector's, by the notes."""
    return _OF_DETECTOR in notes
