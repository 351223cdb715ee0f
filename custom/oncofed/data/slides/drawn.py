"""What was drawn on a slide, part by part on a job's working grid."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oncofed.data.case import Case
from oncofed.data.masks import read_mask
from oncofed.data.slides.canvas import SlideCanvas
from oncofed.data.slides.regions import fill, is_regions, read_regions, require_on_slide, values_of, with_squares
from oncofed.errors import DataError

Labels = NDArray[np.int64]

# Value of pixels whose class nobody knows.
UNKNOWN = 255
# Cells of the coarse map along its longer side, at most.
_MOST_CELLS = 4096


class DrawnLabels(ABC):
    """Labels of a slide's working pixels; 0 where nobody drew."""

    @abstractmethod
    def window(self, x: int, y: int, width: int, height: int, step: float = 1.0) -> Labels:
        """Return the label values of a box, (rows, columns).

        Args:
            x: left edge in working pixels.
            y: upper edge.
            width: columns of the answer.
            height: rows of the answer.
            step: working pixels from one row or column of the answer to the next.
        """

    def coarse(self, canvas: SlideCanvas, cell: int) -> tuple[Labels, int]:
        """Return the slide's label values by cell, and a cell's side in working pixels.

        A cell has the value at its centre.

        Args:
            canvas: the slide.
            cell: side that is wanted; of very large slides it is larger.
        """
        cell = max(cell, math.ceil(max(canvas.size) / _MOST_CELLS))
        columns, rows = (math.ceil(side / cell) for side in canvas.size)
        return self.window(0, 0, columns, rows, cell), cell


class DrawnRegions(DrawnLabels):
    """Polygons of a GeoJSON file.

    Args:
        path: of the file.
        names: class -> label value; empty: every region is 1.
        canvas: the slide.
        point_size: side of the square that a point stands for, in microns; None: points are left out.

    Attributes:
        values: label value of each polygon, (polygon,).
        boxes: left, upper, right and lower end of each in working pixels, (polygon, 4).

    Raises:
        DataError: the file or one of its regions cannot be used.
    """

    def __init__(
        self, path: Path, names: Mapping[str, int], canvas: SlideCanvas, point_size: float | None = None
    ) -> None:
        regions = read_regions(path)
        if point_size is not None:
            regions = with_squares(regions, point_size / canvas.mpp * canvas.pixel)
        values = values_of(regions, names)
        require_on_slide(regions, canvas.finest, [])
        self._polygons = [
            [ring / canvas.pixel for ring in rings]
            for region in regions
            if region.number in values
            for rings in region.polygons
        ]
        drawn = [values[region.number] for region in regions if region.number in values for _ in region.polygons]
        self.values = np.array(drawn, np.int64)
        ends = [(*rings[0].min(axis=0), *rings[0].max(axis=0)) for rings in self._polygons]
        self.boxes = np.array(ends, np.float64).reshape(-1, 4)

    def window(self, x: int, y: int, width: int, height: int, step: float = 1.0) -> Labels:
        """Return the label values of a box, (rows, columns)."""
        return self._drawn(self.values, x, y, width, height, step)

    def numbers(self, x: int, y: int, width: int, height: int) -> Labels:
        """Return each polygon's number from 1 in a box, (rows, columns); 0 beside them."""
        return self._drawn(np.arange(1, len(self.values) + 1), x, y, width, height, 1.0)

    def _drawn(self, values: Labels, x: int, y: int, width: int, height: int, step: float) -> Labels:
        cells = np.zeros((height, width), np.int64)
        low, high = np.array([x, y]), np.array([x + width * step, y + height * step])
        near = ((self.boxes[:, :2] < high) & (self.boxes[:, 2:] > low)).all(axis=1)
        for number in np.flatnonzero(near).tolist():
            part = fill([ring - low for ring in self._polygons[number]], step, (height, width))
            if part is not None:
                box, inside = part
                cells[box][inside] = values[number]
        return cells


class DrawnMask(DrawnLabels):
    """A mask image over the whole slide.

    Args:
        path: of the image.
        names: class -> label value.
        canvas: the slide.

    Raises:
        DataError: the image cannot be read, or is no flat one.
    """

    def __init__(self, path: Path, names: Mapping[str, int], canvas: SlideCanvas) -> None:
        loaded = read_mask(path, named=names.values())
        if loaded.dimensions != 2:
            raise DataError(f"its mask {path.name} is a volume, expected a flat image")
        self._values = loaded.values[..., 0].T.astype(np.int64)
        self._size = canvas.size

    def window(self, x: int, y: int, width: int, height: int, step: float = 1.0) -> Labels:
        """Return the label values of a box, (rows, columns)."""
        found = []
        for first, count, whole, pixels in zip(
            (y, x), (height, width), self._size[::-1], self._values.shape, strict=True
        ):
            found.append(((first + (np.arange(count) + 0.5) * step) / whole * pixels).astype(int))
        rows, columns = found
        beyond = (rows >= self._values.shape[0])[:, None] | (columns >= self._values.shape[1])
        picked = self._values[rows.clip(0, self._values.shape[0] - 1)][:, columns.clip(0, self._values.shape[1] - 1)]
        return np.where(beyond, 0, picked)


def drawn_labels(case: Case, canvas: SlideCanvas) -> DrawnLabels:
    """Return what was drawn on a case's slide, in the dataset's label values.

    Raises:
        DataError: it cannot be read.
    """
    names = {name: value for value, name in case.label_names}
    return (DrawnRegions if is_regions(case.mask) else DrawnMask)(case.mask, names, canvas)


def as_job(case: Case, values: Labels, classes: int, undrawn: int) -> NDArray[np.uint8]:
    """Return a dataset's label values as the job's; ``UNKNOWN`` is what the job ignores.

    Args:
        case: says which value becomes which.
        values: from ``DrawnLabels``.
        classes: of the job, with background.
        undrawn: value where nobody drew.
    """
    table = np.arange(256, dtype=np.uint8)
    if case.label_values is not None:
        table[:] = 0
        for value, target in case.label_values:
            table[value] = target
    table[table >= classes] = UNKNOWN
    table[0] = undrawn
    found: NDArray[np.uint8] = table[values.clip(0, 255)]
    return found
