"""From stored to real values of a frame.

Rescaling: DICOM PS3.3, section C.11.1; MONOCHROME1: C.7.6.3.1.2; padding: C.7.5.1.1.2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_rescale

from oncofed.data.dicom.header_types import ImageHeader
from oncofed.errors import DataError

Values = NDArray[Any]
_PHILIPS_NOTE = "values as measured: Philips' private ScaleSlope was read"


def meant(dataset: Dataset, header: ImageHeader, notes: list[str]) -> Values:
    """Return the real values of a frame.

    Args:
        dataset: with its pixels.
        header: of the same file.
        notes: to which steps taken are added, for people.

    Returns:
        (row, column) or (row, column, 3); whole numbers as int16 or int32, others as float32, colours as uint8.

    Raises:
        DataError: there are no pixels.
    """
    if not {"PixelData", "FloatPixelData", "DoubleFloatPixelData"} & {
        element.keyword for element in dataset[0x7FE00008:]
    }:
        raise DataError("has no pixel data. Export it again with its pixels")
    stored = dataset.pixel_array
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    if photometric == "PALETTE COLOR":
        return _eight_bits(apply_color_lut(stored, dataset)[..., :3])
    if stored.ndim == 3:
        return _eight_bits(stored[..., :3])
    padding = bright_padding(header)
    pad = (stored >= padding[0]) & (stored <= padding[1]) if padding else None
    values = stored
    if photometric == "MONOCHROME1":
        integers = stored.astype(np.int64)
        values = -1 - integers if header.signed else (1 << int(dataset.get("BitsStored", 16))) - 1 - integers
        notes.append("MONOCHROME1: inverted, so that dense tissue is bright")
    return smallest(_unpadded(rescaled(values, header, dataset, notes), pad, notes))


def rescaled(values: Values, header: ImageHeader, dataset: Dataset | None, notes: list[str]) -> Values:
    """Return rescaled values, by slope and intercept or by table."""
    if dataset is not None and not header.plain_values:
        by_table: Values = apply_rescale(values, dataset)
        return by_table
    if header.philips_scale is not None and header.has_slope:
        notes.append(_PHILIPS_NOTE)
    if header.slope == 1 and header.intercept == 0:
        return values
    real: Values = values.astype(np.float64) * header.slope + header.intercept
    return real


def bright_padding(header: ImageHeader) -> list[int] | None:
    """Return the range of bright padding, if any.

    Padding is bright if it lies in the upper half of the values. Padding darker than tissue, as in CT, does no harm;
    bright padding would be the brightest part of the image.
    """
    padding: list[int] | None = header.padding
    if not padding:
        return None
    middle = 0 if header.signed else 1 << (header.bits_stored - 1)
    bright = padding[1] >= middle
    if header.photometric == "MONOCHROME1":
        bright = not bright
    if header.slope < 0:
        bright = not bright
    return padding if bright else None


def smallest(values: Values) -> Values:
    """Return values in the smallest of int16, int32, float32."""
    if np.issubdtype(values.dtype, np.floating) and not np.array_equal(values, np.rint(values)):
        return values.astype(np.float32)
    low, high = values.min(), values.max()
    for kind in (np.int16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return values.astype(kind)
    return values.astype(np.float32)


def _unpadded(values: Values, pad: Values | None, notes: list[str]) -> Values:
    """Return values with padding set to the darkest pixel."""
    if pad is None or not pad.any() or pad.all():
        return values
    notes.append(f"PixelPaddingValue: {pad.mean():.0%} of it is padding, made as dark as the darkest pixel")
    values = values.copy()
    values[pad] = values[~pad].min()
    return values


def _eight_bits(colours: Values) -> NDArray[np.uint8]:
    """Return the upper eight bits of colours."""
    if colours.dtype == np.uint8:
        return colours
    bits = max(8, int(colours.max()).bit_length())
    return (colours >> (bits - 8)).astype(np.uint8)
