"""The interface of slides: levels and their pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

WHITE = 255


@dataclass(frozen=True)
class TileSpec:
    """How a slide is cut into tiles.

    Attributes:
        size: side of a tile in pixels.
        mpp: microns per pixel.
        tissue: least share of a tile that is tissue.
        quality: what is done with tiles of pen, fold, blur or bubble: they are counted, left out, or not looked for.
    """

    size: int = 256
    mpp: float = 0.5
    tissue: float = 0.25
    quality: Literal["count", "drop", "none"] = "count"

    @property
    def bytes(self) -> int:
        """Size of one tile's pixels."""
        return 3 * self.size**2


@dataclass(frozen=True)
class Level:
    """One level of a slide.

    With its size in pixels, and microns per pixel (0: unknown).
    """

    width: int
    height: int
    mpp: float


class Slide(Protocol):
    """An open slide, usable from several threads.

    Attributes:
        levels: the finest first.
        vendor: of the scanner, if stated.
        unknown: why its resolution is unknown; empty if it is known.
        notes: on how it was read, for people.
    """

    levels: list[Level]
    vendor: str | None
    unknown: str
    notes: tuple[str, ...]

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return (height, width, 3) uint8 at (x, y).

        In pixels of the level; white where nothing is stored.
        """

    def close(self) -> None:
        """Close the file."""
