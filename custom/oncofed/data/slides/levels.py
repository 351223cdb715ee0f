"""The interface of slides: levels and their pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

WHITE = 255


@dataclass(frozen=True)
class TileSpec:
    """How a slide is cut.

    Attributes:
        size: side of a tile in pixels.
        mpp: microns per pixel.
        tissue: least share of a tile that is tissue.
    """

    size: int = 256
    mpp: float = 0.5
    tissue: float = 0.25

    @property
    def bytes(self) -> int:
        """Of one tile's pixels."""
        return 3 * self.size**2


@dataclass(frozen=True)
class Level:
    """One level of a slide.

    Its size in pixels, and microns per pixel (0: not known).
    """

    width: int
    height: int
    mpp: float


class Slide(Protocol):
    """An open slide, for several threads until it is closed.

    Attributes:
        levels: the finest first.
        vendor: who made it, where it says so.
        unknown: why its resolution is not known; empty where it is.
        notes: what a person should know of how it was read.
    """

    levels: list[Level]
    vendor: str | None
    unknown: str
    notes: tuple[str, ...]

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return (height, width, 3) uint8 at a level's pixel (x, y).

        White where nothing is stored.
        """

    def close(self) -> None:
        """Close the file."""
