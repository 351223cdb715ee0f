"""Slides, small, with attention as a heat map."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oncofed.data.case import Case
from oncofed.data.slides import Pixels
from oncofed.data.spec import DataSpec
from oncofed.tasks.canvas import open_canvas
from oncofed.tasks.inferred import TileAttention
from oncofed.tasks.pictures import Picture

_GAP = 8  # pixels between two slides of a patient
_NOTHING = 64  # side of the picture of a vector without a place


def attention_picture(case: Case, data: DataSpec, tiles: TileAttention, caption: str) -> Picture:
    """Return a case's slides side by side, with attention relative to the largest.

    Args:
        case: a slide, or all slides of a patient.
        data: of the job.
        tiles: how much each tile counts, and where it lies.
        caption: in words.
    """
    by = math.ceil(math.sqrt(len(case.slides)))
    shown = [_drawn(slide, data, tiles.of_slide(number), by) for number, slide in enumerate(case.slides)]
    height = max(len(pixels) for pixels, _ in shown)
    width = sum(pixels.shape[1] for pixels, _ in shown) + _GAP * (len(shown) - 1)
    image, heat = np.full((height, width, 3), 255, np.uint8), np.zeros((height, width), np.float32)
    left = 0
    for pixels, weights in shown:
        place = (slice(len(pixels)), slice(left, left + pixels.shape[1]))
        image[place], heat[place] = pixels, weights
        left += pixels.shape[1] + _GAP
    return Picture(
        np.ascontiguousarray(image.swapaxes(0, 1)),
        heat=heat.T if tiles.attention is not None and heat.any() else None,
        caption=caption,
        downwards=True,
    )


def _drawn(slide: Case, data: DataSpec, tiles: TileAttention, by: int) -> tuple[Pixels, NDArray[np.float32]]:
    """Return a slide (row, column, 3), each side ``by`` times smaller than usual, and its heat (row, column)."""
    with open_canvas(slide, data) as canvas:
        if canvas is None:
            return np.full((_NOTHING, _NOTHING, 3), 255, np.uint8), np.zeros((_NOTHING, _NOTHING), np.float32)
        pixels, scale = canvas.overview()
        if by > 1:
            pixels, scale = np.asarray(Image.fromarray(pixels).reduce(by)), scale * by
        return pixels, tiles.drawn(pixels.shape[:2], canvas.step, scale)
