"""Decoders of a TIFF page's tiles, to red, green and blue.

By libjpeg-turbo and OpenJPEG through imagecodecs, which decode in several threads at once.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from oncofed.data.slides.colour import ColourSpace, is_transformed, jpeg_colours, looks_like_ycbcr, to_rgb
from oncofed.data.slides.levels import Pixels
from oncofed.errors import DataError

Decoder = Callable[[bytes, int], Pixels]

JPEG = {6, 7, 33007, 34892}
YCBCR = 6  # of PhotometricInterpretation
_JPEG_2000 = {33003, 33004, 33005, 34712}
_APERIO_YCBCR, _APERIO_RGB = 33003, 33005
# WebP, JPEG XL and JPEG XR, whose decoders return RGB.
_ALWAYS_RGB = {22610, 34927, 34933, 34934, 50001, 50002, 52546}
_TILES_ASKED = 8
_START_OF_SCAN = b"\xff\xda"


def declared(page: Any) -> ColourSpace:
    """Return the colour space that a page's tags state."""
    return "YCbCr" if page.photometric == YCBCR else "RGB"


def stored_tiles(descriptor: int, page: Any) -> Iterator[tuple[bytes, int]]:
    """Yield a sample of a page's stored tiles, with numbers."""
    numbers = [number for number, size in enumerate(page.databytecounts) if size]
    for number in numbers[:: max(1, math.ceil(len(numbers) / _TILES_ASKED))]:
        yield os.pread(descriptor, page.databytecounts[number], page.dataoffsets[number]), number


def decoder(page: Any, tiles: Iterator[tuple[bytes, int]]) -> Decoder:
    """Return a decoder to RGB of a page's tiles."""
    if page.compression in JPEG:
        return _jpeg_decoder(page)
    if page.compression in _JPEG_2000:
        return _jpeg_2000_decoder(page, tiles)
    decode = page.decode

    def plain(data: bytes, number: int) -> Pixels:
        tile: Pixels = decode(data, number, jpegtables=page.jpegtables)[0][0]
        return tile

    if page.photometric != YCBCR or page.compression in _ALWAYS_RGB:
        return plain
    _require_common_ycbcr(page)
    return lambda data, number: to_rgb(plain(data, number))


def _jpeg_decoder(page: Any) -> Decoder:
    import imagecodecs  # noqa: PLC0415 - optional

    stated = declared(page)
    tables, header, shape = page.jpegtables, page.jpegheader, (page.tilelength, page.tilewidth)

    known: dict[bytes, str] = {}  # by header: the tiles of a page have few different ones

    def jpeg(data: bytes, number: int) -> Pixels:
        stream = header or data
        head = stream[: stream.find(_START_OF_SCAN)]
        colours = known.get(head) or known.setdefault(head, jpeg_colours(head, tables, stated).upper())
        tile: Pixels = imagecodecs.jpeg_decode(
            data,
            bitspersample=8,
            tables=tables,
            header=header,
            colorspace=colours,
            outcolorspace="RGB",
            shape=shape,
        )
        return tile

    return jpeg


def _jpeg_2000_decoder(page: Any, tiles: Iterator[tuple[bytes, int]]) -> Decoder:
    """Return a decoder of JPEG 2000.

    If a file's statements on its colours disagree, its pixels decide.
    """
    import imagecodecs  # noqa: PLC0415 - optional

    def plain(data: bytes, number: int) -> Pixels:
        tile: Pixels = imagecodecs.jpeg2k_decode(data)
        return tile

    says_ycbcr = page.photometric == YCBCR or page.compression == _APERIO_YCBCR
    says_rgb = page.compression == _APERIO_RGB
    sampled = list(tiles)
    if says_ycbcr and (says_rgb or any(is_transformed(data) for data, _ in sampled)):
        says_ycbcr = bool(sampled) and looks_like_ycbcr([plain(data, number) for data, number in sampled])
    return (lambda data, number: to_rgb(plain(data, number))) if says_ycbcr else plain


def _require_common_ycbcr(page: Any) -> None:
    """Refuse YCbCr other than JPEG's: TIFF 6.0, section 21."""
    coefficients = page.tags.valueof("YCbCrCoefficients")
    reference = page.tags.valueof("ReferenceBlackWhite")
    common = coefficients is None or np.allclose(_rationals(coefficients), (0.299, 0.587, 0.114), atol=1e-3)
    full = reference is None or np.allclose(_rationals(reference), (0, 255, 128, 255, 128, 255), atol=1)
    if not (common and full):
        raise DataError("stores YCbCr by other coefficients than JPEG's, expected red, green and blue")


def _rationals(values: Sequence[float]) -> list[float]:
    pairs = itertools.zip_longest(values[::2], values[1::2], fillvalue=1)
    return [above / below if below else 0.0 for above, below in pairs]
