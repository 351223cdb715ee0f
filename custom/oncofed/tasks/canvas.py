"""What attention is drawn on: a slide, or an empty plane of its size."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from oncofed.data.case import Case
from oncofed.data.features import Stored
from oncofed.data.slides import Pixels, TileReader, TileSpec, open_slide
from oncofed.data.spec import DataSpec
from oncofed.errors import DataError
from oncofed.tasks.bags import opened_features, slide_tiles

_BLOCK = 256  # side of the parts in which a slide is read
_MOST_PIXELS = 2_000_000  # of an empty plane's overview
_GLASS, _TISSUE = 245, 215  # greys of an empty plane, and of where it has tiles


class Canvas(Protocol):
    """A plane with tiles; lengths are in pixels of the slide's finest level.

    Attributes:
        size: width and height.
        step: side of a tile.
        mpp: microns per pixel; None: unknown.
    """

    size: tuple[int, int]
    step: float
    mpp: float | None

    def overview(self) -> tuple[Pixels, float]:
        """Return a small picture (row, column, 3), and the size of its pixels."""

    def shrunk(self, by: int) -> Pixels:
        """Return the whole plane (row, column, 3), each side ``by`` times smaller."""

    def tile(self, x: int, y: int) -> Pixels | None:
        """Return a tile (row, column, 3) as the encoder saw it; None where there is no slide."""


class SlideCanvas:
    """A slide; see ``Canvas``."""

    def __init__(self, reader: TileReader) -> None:
        finest = reader.levels[0]
        self._reader = reader
        self.size, self.step = (finest.width, finest.height), reader.step
        self.mpp: float | None = finest.mpp

    def overview(self) -> tuple[Pixels, float]:
        """Return a small picture, and the size of its pixels."""
        return self._reader.overview()

    def shrunk(self, by: int) -> Pixels:
        """Return the whole slide, each side ``by`` times smaller."""
        width, height = (math.ceil(side / by) for side in self.size)
        pixels = np.empty((height, width, 3), np.uint8)
        with TileReader(self._reader.path, TileSpec(_BLOCK, self._reader.levels[0].mpp * by)) as coarse:
            for top in range(0, height, _BLOCK):
                for left in range(0, width, _BLOCK):
                    part = coarse.read(left * by, top * by)
                    bottom, right = min(top + _BLOCK, height), min(left + _BLOCK, width)
                    pixels[top:bottom, left:right] = part[: bottom - top, : right - left]
        return pixels

    def tile(self, x: int, y: int) -> Pixels | None:
        """Return a tile as the encoder saw it."""
        return self._reader.read(x, y)


class EmptyCanvas:
    """A plane with marks where tiles are, for features without their slide; see ``Canvas``.

    Args:
        places: upper left corners, (tile, 2).
        step: side of a tile.
        mpp: microns per pixel; None: unknown.
    """

    def __init__(self, places: NDArray[np.int32], step: float, mpp: float | None) -> None:
        self._places = places
        width, height = (int(side) for side in np.ceil(places.max(axis=0) + step))
        self.size, self.step, self.mpp = (width, height), step, mpp

    def overview(self) -> tuple[Pixels, float]:
        """Return a small picture of where tiles are, and the size of its pixels."""
        by = max(1, math.ceil(math.sqrt(self.size[0] * self.size[1] / _MOST_PIXELS)))
        return self.shrunk(by), float(by)

    def shrunk(self, by: int) -> Pixels:
        """Return the whole plane, each side ``by`` times smaller."""
        width, height = (math.ceil(side / by) for side in self.size)
        pixels = np.full((height, width, 3), _GLASS, np.uint8)
        starts, ends = self._places // by, np.ceil((self._places + self.step) / by).astype(int)
        for (left, top), (right, bottom) in zip(starts.tolist(), ends.tolist(), strict=True):
            pixels[top:bottom, left:right] = _TISSUE
        return pixels

    def tile(self, x: int, y: int) -> Pixels | None:
        """Return nothing: there is no slide."""


@contextlib.contextmanager
def open_canvas(slide: Case, data: DataSpec) -> Iterator[Canvas | None]:
    """Open what a slide's attention is drawn on.

    Args:
        slide: one of ``Case.slides``.
        data: the job's.

    Yields:
        The slide, where its file is at hand; an empty plane for features with places alone; None where neither is, or
        the size of a tile on the slide is not known.

    Raises:
        DataError: the slide or its features cannot be read, or are not cut as the job's.
    """
    with contextlib.ExitStack() as opened:
        if slide.features is None:
            yield SlideCanvas(opened.enter_context(TileReader(slide.image, slide_tiles(slide, data).spec)))
            return
        with opened_features(slide) as stored:
            places = stored.pixels() if stored.level == "tile" else None
        step = None if places is None else _step(stored, places)
        is_sized = step is not None or bool(stored.mpp)
        if slide.image != slide.features and (places is None or is_sized):
            spec = _tiling(slide, stored, step, data)
            yield SlideCanvas(opened.enter_context(TileReader(slide.image, spec)))
        elif places is None or step is None:
            yield None
        else:
            mpp = stored.finest or (stored.mpp * stored.tile / step if stored.mpp and stored.tile else None)
            yield EmptyCanvas(places, step, mpp)


def _tiling(slide: Case, stored: Stored, step: float | None, data: DataSpec) -> TileSpec:
    """Return size and resolution of the tiles that a slide's features describe.

    Args:
        slide: with its image.
        stored: its features.
        step: side of a tile in pixels of the finest level; None: of one vector for the slide, or unknown.
        data: the job's.

    Raises:
        DataError: nothing says the resolution.
    """
    size = stored.tile or data.patch[0]
    if stored.mpp:
        return TileSpec(size, stored.mpp)
    opened = open_slide(slide.image)
    finest = opened.levels[0].mpp
    opened.close()
    if finest <= 0:
        raise DataError("does not say its resolution (microns per pixel), and neither do its features")
    return TileSpec(size, finest if step is None else finest * max(1.0, step / size))


def _step(stored: Stored, places: NDArray[np.int32]) -> float | None:
    """Return the side of a tile; where no file says it, most tiles' distance to the next in their row or column.

    Tiles of several contours do not share one grid, and between contours any distance occurs.

    Returns:
        None where there is no such distance.
    """
    if stored.step:
        return stored.step
    gaps = np.concatenate([_gaps(places), _gaps(places[:, ::-1])])
    distances, counts = np.unique(gaps, return_counts=True)
    return float(distances[counts.argmax()]) if len(gaps) and 2 * counts.max() > len(gaps) else None


def _gaps(places: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the distances of neighbours that share their second coordinate, along the first."""
    found = np.unique(places[:, ::-1].astype(np.int64), axis=0)  # in order of rows, then along them
    gaps: NDArray[np.int64] = np.diff(found[:, 1])[np.diff(found[:, 0]) == 0]
    return gaps
