"""Strips that become whole, from blocks of a map."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from oncofed.tasks.slide_strips import StripHeat, shrink_of
from oncofed.tasks.whole_slide.stitching import Block

Places = Sequence[tuple[int, int]]


def parts_of(block: Block, places: Places) -> Iterator[tuple[int, int, slice]]:
    """Yield first and last row of each strip that a block reaches into, and the rows of the block there.

    Args:
        block: of the map.
        places: rows of strips, from the top.
    """
    end = block.y + block.height
    number = max(0, bisect_right(places, (block.y, math.inf)) - 1)
    while number < len(places) and places[number][0] < end:
        low, high = places[number]
        if high > block.y:
            yield low, high, slice(max(low - block.y, 0), min(high, end) - block.y)
        number += 1


class Heats:
    """How likely pixels are of the likeliest class, of strips that are not whole yet.

    Args:
        places: rows of strips, from the top.
        size: of the slide, working pixels across and down.
    """

    def __init__(self, places: Places, size: tuple[int, int]) -> None:
        self._places, self._size = places, size
        self._heats: dict[int, StripHeat] = {}

    def add(self, block: Block, likely: NDArray[np.float32]) -> None:
        """Add a block's pixels, from 0 to 1, (row, column)."""
        for first, end, rows in parts_of(block, self._places):
            self._of(first, end).add(block.y + rows.start - first, block.x, likely[rows])

    def take(self, first: int, end: int) -> NDArray[np.uint8]:
        """Return those of a strip that is whole, shrunk, and forget them."""
        heat = self._of(first, end)
        del self._heats[first]
        return heat.shrunk()

    def _of(self, first: int, end: int) -> StripHeat:
        if first not in self._heats:
            self._heats[first] = StripHeat((end - first, self._size[0]), shrink_of(self._size))
        return self._heats[first]
