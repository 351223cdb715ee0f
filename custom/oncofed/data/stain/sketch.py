"""A sketch of a slide's stain: colours of pixels of its tissue.

Kept where an image was registered, in a kilobyte or so; sketches of a slide's images add up, and any estimate can be
made from them without reading an image again.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from oncofed.data.slides.tissue import is_ink

Colours = NDArray[np.uint8]

# Light that passes the glass, of 255, and the natural optical density from which a pixel shows a stain: Macenko et al.,
# ISBI 2009.
GLASS, LEAST_DENSITY = 240.0, 0.15
# Pixels of a slide, or of an image: an estimate of more is no better.
SLIDE_COLOURS, IMAGE_COLOURS = 8192, 512
# Darker pixels are pigment, dirt or the scanner's black; those with less colour are grey.
_BLACK, _GREY = 20, 10


def sketch(pixels: Colours, most: int = IMAGE_COLOURS) -> str:
    """Return up to ``most`` colours of an image's tissue, as base64.

    Without glass, ink and black; evenly spread over the image, so that the same image gives the same.

    Args:
        pixels: (..., 3).
        most: colours to keep.
    """
    flat = pixels.reshape(-1, 3)
    flat = flat[:: max(1, len(flat) // (most * 16))]
    tissue = flat[is_tissue(flat)]
    chosen = tissue[np.linspace(0, len(tissue) - 1, min(most, len(tissue))).astype(int)] if len(tissue) else tissue
    return base64.b64encode(np.ascontiguousarray(chosen).tobytes()).decode()


def is_tissue(pixels: Colours) -> NDArray[np.bool_]:
    """Return which of (pixel, 3) show stained tissue: neither glass nor ink nor black."""
    thick = density_of(pixels).max(axis=-1) > LEAST_DENSITY
    coloured = np.ptp(pixels.astype(np.int16), axis=-1) > _GREY
    found: NDArray[np.bool_] = thick & coloured & (pixels.max(axis=-1) > _BLACK) & ~is_ink(pixels)
    return found


def colours(sketches: Iterable[str]) -> Colours:
    """Return the colours of sketches together, (pixel, 3)."""
    parts = [np.frombuffer(base64.b64decode(text), np.uint8).reshape(-1, 3) for text in sketches]
    return np.concatenate(parts) if parts else np.zeros((0, 3), np.uint8)


def density_of(pixels: Colours) -> NDArray[np.float64]:
    """Return natural optical densities."""
    values: NDArray[np.float64] = -np.log((pixels.astype(np.float64) + 1) / GLASS)
    return values
