"""The mask that an image's label files are drawn on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed.errors import DataError

Index = tuple[Any, ...]


class OutsideError(DataError):
    """A label file's regions lie outside the image."""


class Canvas:
    """A mask; where regions overlap, the higher value stays.

    Args:
        shape: of the image, without channels.
        names: label value -> name of its region.

    Attributes:
        values: label values, uint8, or uint16 where a value needs it.
    """

    def __init__(self, shape: tuple[int, ...], names: Mapping[int, str]) -> None:
        self.values: NDArray[Any] = np.zeros(shape, np.uint8 if max(names) < 256 else np.uint16)
        self.names = dict(names)
        self._shared: Counter[tuple[int, int]] = Counter()

    def draw(self, where: Index, value: int) -> None:
        """Set a label value at distinct voxels."""
        before = self.values[where]
        other = before[(before != 0) & (before != value)]
        for earlier, count in zip(*np.unique(other, return_counts=True), strict=True):
            self._shared[min(int(earlier), value), max(int(earlier), value)] += int(count)
        self.values[where] = np.maximum(before, value)

    def overlaps(self) -> Iterator[str]:
        """Yield a note on overlapping regions, the largest first.

        More than three pairs give one note with their number.
        """
        for (low, high), count in self._shared.most_common(3):
            lower, higher = self.names[low], self.names[high]
            yield f"{lower} and {higher} overlap in {count} voxels: they count as {higher}"
        if len(self._shared) > 3:
            yield f"{len(self._shared) - 3} more pairs of regions overlap: the one with the higher value counts"
