"""Picture of how many objects lie where on a slide."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oncofed.data.slides.canvas import SlideCanvas
from oncofed.prediction.model import TrainedModel
from oncofed.prediction.outputs.slide_pictures import write_heat_picture
from oncofed.prediction.sources import Source

# Side of the cells in which objects are counted, in mm.
CELL_MM = 0.1


def write_density(counts: NDArray[np.int64], source: Source, model: TrainedModel, path: Path) -> None:
    """Write a picture of the objects per mm² of a slide.

    Args:
        counts: objects of each cell of ``CELL_MM``, (row, column).
        source: the slide.
        model: model that predicted.
        path: of the picture.

    Raises:
        DataError: the slide cannot be read.
    """
    with SlideCanvas(source.case.image, model.job.data, model.job.data.patch[0]) as canvas:
        pixels, scale = canvas.overview
        side = CELL_MM / canvas.pixel_mm2**0.5 / scale
        heat = over((counts / CELL_MM**2).astype(np.float32), pixels.shape[:2], side)
        most = max(float(heat.max()), 1.0)
        write_heat_picture(pixels, heat, most, "objects per mm²", canvas.mpp * scale, path)


def over(cells: NDArray[np.float32], shape: tuple[int, ...], side: float) -> NDArray[np.float32]:
    """Return cells of ``side`` pixels as a picture (row, column)."""
    rows, columns = (
        ((np.arange(count) + 0.5) / side).astype(int).clip(0, cells.shape[axis] - 1)
        for axis, count in enumerate(itertools.islice(shape, 2))
    )
    found: NDArray[np.float32] = cells[rows][:, columns]
    return found
