"""Colour spaces of decoded components.

A stream's statements take precedence over its container's.

JPEG: JFIF (ITU-T T.871) and Adobe's marker (ITU-T T.872, 6.5.3), in the order of libjpeg. JPEG 2000: the multiple
component transformation of the codestream (ITU-T T.800, A.6.1 and annex G).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image

from oncofed.data.slides.levels import Pixels

ColourSpace = Literal["RGB", "YCbCr"]

_IN_GAMUT = 0.98
_SLACK = 12  # of 255: by which compression may move colours out of range


def to_rgb(values: Pixels) -> Pixels:
    """Convert (row, column, 3) uint8 full-range YCbCr to RGB.

    ITU-T T.871, 7.
    """
    height, width = values.shape[:2]
    data = np.ascontiguousarray(values)
    return np.asarray(Image.frombuffer("YCbCr", (width, height), data, "raw", "YCbCr", 0, 1).convert("RGB"))


def jpeg_colours(stream: bytes, tables: bytes | None, declared: ColourSpace) -> ColourSpace:
    """Return the colour space of a three-component JPEG stream.

    Args:
        stream: of one tile or frame.
        tables: TIFF's tables for all tiles (JPEGTables), if present.
        declared: by the container; used if the stream states nothing.
    """
    markers = _jpeg_markers(stream)
    if tables:
        markers = {**_jpeg_markers(tables), **markers}
    if "jfif" in markers:
        return "YCbCr"
    if "adobe" in markers:
        return "YCbCr" if markers["adobe"] else "RGB"
    if markers.get("letters"):
        return "RGB"
    # Subsampled components are not red, green and blue.
    return "YCbCr" if markers.get("subsampled") else declared


def _jpeg_markers(stream: bytes) -> dict[str, int]:
    """Return the colours that a stream's header states."""
    found: dict[str, int] = {}
    at = 2
    while at + 4 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        if marker in {0xDA, 0xD9}:
            break
        length = stream[at + 2] << 8 | stream[at + 3]
        if marker == 0xE0 and stream[at + 4 : at + 9] == b"JFIF\0":
            found["jfif"] = 1
        elif marker == 0xEE and stream[at + 4 : at + 9] == b"Adobe" and length >= 14:
            found["adobe"] = stream[at + 15]
        elif 0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}:
            components = stream[at + 10 : at + 2 + length]
            found["letters"] = int(components[0::3] == b"RGB")
            found["subsampled"] = int(len(set(components[1::3])) > 1)
        at += 2 + length
    return found


def is_transformed(stream: bytes) -> bool:
    """Return whether a JPEG 2000 stream's decoder gives RGB."""
    at = stream.find(b"\xff\x4f\xff\x51")  # also inside the boxes of a JP2 file
    at = at + 2 if at >= 0 else len(stream)
    while at + 4 <= len(stream):
        marker, length = struct.unpack_from(">HH", stream, at)
        if marker == 0xFF52:  # coding style: length, Scod, order and layers precede the transformation
            return stream[at + 8 : at + 9] != b"\0"
        if marker == 0xFF90:
            break
        at += 2 + length
    return False


def looks_like_ycbcr(tiles: Sequence[Pixels]) -> bool:
    """Return whether components are plausible YCbCr.

    Most RGB components are not: white glass in RGB, taken for YCbCr, is far outside the range of colours.
    """
    values = np.concatenate([tile.reshape(-1, 3) for tile in tiles]).astype(np.float32)
    luma, blue, red = values[:, 0], values[:, 1] - 128, values[:, 2] - 128
    colours = np.stack([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue])
    inside = ((colours >= -_SLACK) & (colours <= 255 + _SLACK)).all(axis=0)
    return bool(inside.mean() > _IN_GAMUT)
