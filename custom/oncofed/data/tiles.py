"""The tiles of many slides as one stream, read ahead by threads: who takes them never waits at a slide's end."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oncofed.data.slides import Pixels, TileReader, TileSpec
from oncofed.errors import DataError

# Tiles that one thread reads before it hands them over.
_TILES_A_TURN = 32


@dataclass(frozen=True)
class SlideTiles:
    """Where the tiles of one slide lie.

    Attributes:
        path: of the slide.
        spec: size and resolution of a tile.
        x: left edge of each tile in pixels of the finest level.
        y: upper edge.
    """

    path: Path
    spec: TileSpec
    x: NDArray[np.int32]
    y: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.x)


def read_tiles(path: Path, tiles: Path) -> SlideTiles:
    """Return where a registered slide's tiles lie.

    Args:
        path: of the slide.
        tiles: file that registering wrote.

    Raises:
        DataError: the file is missing or broken.
    """
    try:
        with np.load(tiles) as grid:
            spec = TileSpec(int(grid["size"]), float(grid["mpp"]))
            return SlideTiles(path, spec, grid["x"], grid["y"])
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"its tiles cannot be read ({type(error).__name__}); register the dataset again") from None


def stream_tiles(
    slides: Sequence[SlideTiles], threads: int | None = None, ahead: int = 8
) -> Iterator[tuple[int, int, list[Pixels]]]:
    """Yield runs of tiles, slide after slide, in order.

    Args:
        slides: to read.
        threads: that read; None: one a core.
        ahead: runs that are read before they are asked for, for each thread.

    Yields:
        (number of the slide, number of the first tile, tiles (size, size, 3) uint8).

    Raises:
        DataError: a tile cannot be read.
    """
    threads = threads or os.cpu_count() or 1
    with contextlib.ExitStack() as open_slides, ThreadPoolExecutor(threads) as pool:
        pending: deque[tuple[int, int, Future[list[Pixels]]]] = deque()
        turns = _turns(slides)
        finished = False
        while True:
            while not finished and len(pending) < threads * ahead:
                turn = next(turns, None)
                if turn is None:
                    finished = True
                    break
                number, first, reader = turn
                if first == 0:
                    open_slides.callback(reader.close)
                pending.append((number, first, pool.submit(reader.read, first)))
            if not pending:
                return
            number, first, future = pending.popleft()
            try:
                yield number, first, future.result()
            except GeneratorExit:
                for _, _, waiting in pending:
                    waiting.cancel()
                raise


def _turns(slides: Sequence[SlideTiles]) -> Iterator[tuple[int, int, _Reader]]:
    for number, slide in enumerate(slides):
        reader = _Reader(slide)
        for first in range(0, len(slide), _TILES_A_TURN):
            yield number, first, reader


class _Reader:
    """Reads one slide's tiles, and closes it after the last one."""

    def __init__(self, slide: SlideTiles) -> None:
        self._slide = slide
        self._tiles = TileReader(slide.path, slide.spec)
        self._left = len(slide)
        self._lock = threading.Lock()

    def read(self, first: int) -> list[Pixels]:
        slide = self._slide
        last = min(first + _TILES_A_TURN, len(slide))
        try:
            read = [self._tiles.read(int(slide.x[n]), int(slide.y[n])) for n in range(first, last)]
        except DataError:
            raise
        except Exception as error:  # noqa: BLE001 - decoders raise many types for broken tiles
            raise DataError(f"its tiles cannot be read ({type(error).__name__})") from None
        with self._lock:
            self._left -= last - first
            if self._left == 0:
                self._tiles.__exit__(None, None, None)
        return read

    def close(self) -> None:
        """Close a slide that was not read to its end."""
        with self._lock:
            if self._left > 0:
                self._left = 0
                self._tiles.__exit__(None, None, None)
