"""A slide's segmentation against what was drawn on it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from oncofed.data.case import Case
from oncofed.data.slides.canvas import SlideCanvas
from oncofed.data.slides.drawn import UNKNOWN, DrawnLabels, as_job
from oncofed.tasks.overlap import confusion
from oncofed.tasks.slide_strips import SlideMap, SlideRegions

# Cells along a window, by which is found whether anything was drawn there.
_CELLS = 8


def drawn_confusion(
    found: SlideRegions, case: Case, drawn: DrawnLabels, classes: int, undrawn: int
) -> NDArray[np.int64]:
    """Return a confusion matrix of a slide's working pixels; see ``confusion``.

    Args:
        found: of the slide.
        case: says what the dataset's label values are in the job.
        drawn: on the slide.
        classes: of the job, with background.
        undrawn: label value where nobody drew; ``UNKNOWN`` counts nowhere.
    """
    total = np.zeros((classes + 1, classes), np.int64)
    for strip in found.strips:
        rows, columns = strip.shape
        expected = as_job(case, drawn.window(0, strip.first, columns, rows), classes, undrawn)
        total += confusion(torch.from_numpy(strip.values.copy()), torch.from_numpy(expected), classes, UNKNOWN)
    return total


def where_known(
    case: Case, drawn: DrawnLabels, canvas: SlideCanvas, undrawn: int
) -> Callable[[int, int, int, int], bool] | None:
    """Return whether a box can be scored; None: wherever there is tissue.

    Where what nobody drew is unknown, only windows near what was drawn are looked at.
    """
    if undrawn != UNKNOWN:
        return None
    values, cell = drawn.coarse(canvas, max(1, canvas.side // _CELLS))
    known = values > 0

    def look(x: int, y: int, width: int, height: int) -> bool:
        rows = slice(max(0, y // cell - 1), math.ceil((y + height) / cell) + 1)
        columns = slice(max(0, x // cell - 1), math.ceil((x + width) / cell) + 1)
        return bool(known[rows, columns].any()) and canvas.shows_tissue(x, y, width, height)

    return look


def on_overview(found: SlideMap, canvas: SlideCanvas) -> NDArray[np.int64]:
    """Return an answer's values by pixel of the slide's overview, (row, column)."""
    small, (pixels, scale) = found.small(), canvas.overview
    rows, columns = (
        ((np.arange(count) + 0.5) * scale / found.shrink).astype(int).clip(0, side - 1)
        for count, side in zip(pixels.shape[:2], small.shape, strict=True)
    )
    found_there: NDArray[np.int64] = small[rows][:, columns].astype(np.int64)
    return found_there
