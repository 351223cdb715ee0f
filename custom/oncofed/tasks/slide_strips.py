"""A model's answer for a whole slide, kept as packed strips.

A strip holds all columns of some rows of the working grid, fewer rows of a wide slide. Labels pack to a small part of
their size, so that the answer for a slide of any size takes little memory; whoever needs it unpacks one strip after the
other.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Rows of a strip, and fewest of a wide slide's; powers of two, which strips shrink by.
STRIP_ROWS, _FEWEST_ROWS = 512, 128
# Pixels of a strip with more rows than the fewest, at most.
_MOST_PIXELS = 2**24
# Pixels of a small picture along the slide's longer side, at most.
_MOST_SMALL = 1536


@dataclass(frozen=True)
class Strip:
    """Some rows of an answer.

    Attributes:
        first: number of its first row.
        shape: rows and columns.
        kind: of the values, as numpy names it.
        packed: the values, by zlib.
        heat: how likely a pixel is of the likeliest class, from 0 to 255, shrunk; (row, column) uint8.
    """

    first: int
    shape: tuple[int, int]
    kind: str
    packed: bytes
    heat: NDArray[np.uint8]

    @classmethod
    def of(cls, first: int, values: NDArray[Any], heat: NDArray[np.uint8]) -> Strip:
        """Return values (row, column) as a strip."""
        rows, columns = values.shape
        return cls(first, (rows, columns), values.dtype.str, pack(values), heat)

    @property
    def values(self) -> NDArray[Any]:
        """Its values, (row, column)."""
        return unpack(self.packed, self.kind, self.shape)


def pack(values: NDArray[Any]) -> bytes:
    """Return an array's bytes, packed."""
    return zlib.compress(np.ascontiguousarray(values).tobytes(), 1)


def unpack(packed: bytes, kind: str, shape: tuple[int, int]) -> NDArray[Any]:
    """Return an array from its packed bytes."""
    return np.frombuffer(zlib.decompress(packed), kind).reshape(shape)


@dataclass(frozen=True)
class SlideMap:
    """A model's answer for each working pixel of a slide.

    Attributes:
        strips: from the upper one down.
        size: working pixels across and down.
        pixel: side of a working pixel in pixels of the slide's finest level.
        finest: width and height of that level.
        pixel_mm2: area of a working pixel.
        tissue_mm2: area of the slide's tissue.
    """

    strips: tuple[Strip, ...]
    size: tuple[int, int]
    pixel: float
    finest: tuple[int, int]
    pixel_mm2: float
    tissue_mm2: float

    @property
    def shrink(self) -> int:
        """Working pixels along a pixel of small pictures."""
        return shrink_of(self.size)

    @property
    def heat(self) -> NDArray[np.uint8]:
        """How likely a place is of the likeliest class, 0 to 255, (row, column)."""
        return np.concatenate([strip.heat for strip in self.strips])

    def small(self) -> NDArray[Any]:
        """Return the values shrunk, (row, column): that in the middle of each square."""
        return np.concatenate([thinned(strip.values, self.shrink) for strip in self.strips])


@dataclass(frozen=True)
class SlideRegions(SlideMap):
    """A slide's segmentation: strips hold label values, uint8."""

    def pixels(self, classes: int) -> NDArray[np.int64]:
        """Return how many working pixels have each label value, (class,)."""
        total = np.zeros(classes, np.int64)
        for strip in self.strips:
            total += np.bincount(strip.values.ravel(), minlength=classes)[:classes]
        return total


@dataclass(frozen=True)
class SlideObjectMap(SlideMap):
    """A slide's single objects: strips hold their numbers, int32; 0 beside them.

    Attributes:
        classes: label value of each object, by its number; (object + 1,) uint8, the first is of no object.
    """

    classes: NDArray[np.uint8]


def shrink_of(size: tuple[int, int]) -> int:
    """Return by how much small pictures of a slide are smaller; a power of two."""
    shrink = 1
    while max(size) > _MOST_SMALL * shrink and shrink < _rows_of(size):
        shrink *= 2
    return shrink


def thinned(values: NDArray[Any], shrink: int) -> NDArray[Any]:
    """Return the value in the middle of each square of pixels."""
    rows, columns = (np.minimum(np.arange(0, length, shrink) + shrink // 2, length - 1) for length in values.shape)
    found: NDArray[Any] = values[rows][:, columns]
    return found


class StripHeat:
    """How likely a strip's pixels are of the likeliest class, summed up over squares of pixels.

    Args:
        shape: rows and columns of the strip.
        shrink: pixels along a square.
    """

    def __init__(self, shape: tuple[int, int], shrink: int) -> None:
        self._shape, self._shrink = shape, shrink
        self._sums = np.zeros([-(-length // shrink) for length in shape])

    def add(self, row: int, column: int, likely: NDArray[np.float32]) -> None:
        """Add pixels.

        Args:
            row: the first, within the strip.
            column: the first.
            likely: from 0 to 1, (row, column).
        """
        sums = likely.astype(np.float64)
        cells = []
        for axis, (first, count) in enumerate(zip((row, column), likely.shape, strict=True)):
            starts = np.r_[0, np.arange(self._shrink - first % self._shrink, count, self._shrink)]
            sums = np.add.reduceat(sums, starts, axis=axis)
            cells.append(slice(first // self._shrink, first // self._shrink + len(starts)))
        self._sums[tuple(cells)] += sums

    def shrunk(self) -> NDArray[np.uint8]:
        """Return the mean of each square, from 0 to 255."""
        sides = [np.diff(np.r_[0 : length : self._shrink, length]) for length in self._shape]
        found: NDArray[np.uint8] = np.rint(255 * self._sums / np.multiply.outer(*sides)).clip(0, 255).astype(np.uint8)
        return found


def strip_rows(size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Yield the first row of each strip of a slide, and that after its last.

    Args:
        size: of the slide, working pixels across and down.
    """
    rows, height = _rows_of(size), size[1]
    for first in range(0, height, rows):
        yield first, min(first + rows, height)


def _rows_of(size: tuple[int, int]) -> int:
    rows = STRIP_ROWS
    while rows > _FEWEST_ROWS and rows * size[0] > _MOST_PIXELS:
        rows //= 2
    return rows
