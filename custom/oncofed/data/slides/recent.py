"""Decoded tiles that neighbouring regions share."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from oncofed.data.slides.levels import Pixels


class Recent:
    """Decoded tiles that were used last; thread-safe.

    Args:
        most_bytes: that they take.
    """

    def __init__(self, most_bytes: int) -> None:
        self._tiles: OrderedDict[tuple[int, int, int], Pixels] = OrderedDict()
        self._free = most_bytes
        self._lock = threading.Lock()

    def get(self, place: tuple[int, int, int], decode: Callable[[int, int, int], Pixels]) -> Pixels:
        """Return a tile, which the caller does not change.

        Args:
            place: level, column and row.
            decode: makes a tile of its place; threads that want one at the same time both decode it.
        """
        with self._lock:
            if place in self._tiles:
                self._tiles.move_to_end(place)
                return self._tiles[place]
        tile = decode(*place)
        with self._lock:
            if place not in self._tiles:
                self._tiles[place] = tile
                self._free -= tile.nbytes
            while self._free < 0:
                self._free += self._tiles.popitem(last=False)[1].nbytes
        return tile
