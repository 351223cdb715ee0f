"""Stream the tiles of many slides, read ahead by threads."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from oncofed.data.slides import Pixels, TileReader, TileSpec
from oncofed.errors import DataError

# Tiles that a thread reads before handing them over.
_TILES_A_RUN = 32
# Each may keep another slide's files open; processes are often limited to 1,024.
_MOST_RUNS = 256


@dataclass(frozen=True)
class SlideTiles:
    """The places of one slide's tiles.

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
        tiles: file from registering.

    Raises:
        DataError: the file is missing or broken.
    """
    with _opened(tiles) as grid:
        spec = TileSpec(int(grid["size"]), float(grid["mpp"]))
        return SlideTiles(path=path, spec=spec, x=grid["x"], y=grid["y"])


def tissue_shares(tiles: Path) -> NDArray[np.float32]:
    """Return how much of each of a registered slide's tiles is tissue, (tile,), from 0 to 1.

    Args:
        tiles: file from registering.

    Raises:
        DataError: the file is missing or broken.
    """
    with _opened(tiles) as grid:
        return np.asarray(grid["tissue"], np.float32)


@contextlib.contextmanager
def _opened(tiles: Path) -> Iterator[Mapping[str, NDArray[Any]]]:
    try:
        with np.load(tiles) as grid:
            yield grid
    except (OSError, KeyError, ValueError, EOFError, BadZipFile):
        raise DataError(
            "the file of its tiles is missing or damaged, expected what registering wrote. Register the dataset again"
        ) from None


def stream_tiles(
    slides: Sequence[SlideTiles], threads: int | None = None, ahead: int = 8, most_bytes: int = 512 * 2**20
) -> Generator[tuple[int, int, list[Pixels]], None, None]:
    """Yield runs of tiles, slide after slide, in order.

    All threads read from the same slide. At the end, in any case, slides are closed and threads have stopped.

    Args:
        slides: to read.
        threads: that read; None: one a core.
        ahead: runs to read ahead, per thread.
        most_bytes: of tiles to read ahead, for all threads together; one run is always read.

    Yields:
        (number of the slide, number of the first tile, tiles (size, size, 3) uint8).

    Raises:
        DataError: a tile cannot be read.
    """
    threads = threads or os.cpu_count() or 1
    most_runs = min(threads * ahead, _MOST_RUNS)
    opened: dict[int, TileReader] = {}
    stopped = threading.Event()
    pool = ThreadPoolExecutor(threads)
    try:
        runs = _runs(slides, opened, most_bytes // (2 * threads))
        coming = next(runs, None)
        pending: deque[tuple[_Run, Future[list[Pixels]]]] = deque()
        held = 0
        while coming or pending:
            while coming and len(pending) < most_runs and (not pending or held + coming.bytes <= most_bytes):
                pending.append((coming, pool.submit(coming.read, stopped)))
                held += coming.bytes
                coming = next(runs, None)
            run, future = pending.popleft()
            tiles = future.result()
            held -= run.bytes
            if run.last == len(run.slide):  # all earlier ones are done
                opened.pop(run.number).close()
            yield run.number, run.first, tiles
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)
        for reader in opened.values():
            reader.close()


def _runs(slides: Sequence[SlideTiles], opened: dict[int, TileReader], most_bytes: int) -> Iterator[_Run]:
    """Yield runs of tiles, opening each slide as it begins."""
    for number, slide in enumerate(slides):
        if not len(slide):
            continue
        count = max(1, min(_TILES_A_RUN, most_bytes // slide.spec.bytes))
        reader = opened[number] = TileReader(slide.path, slide.spec)
        for first in range(0, len(slide), count):
            yield _Run(slide=slide, number=number, first=first, last=min(first + count, len(slide)), reader=reader)


@dataclass(frozen=True)
class _Run:
    """Tiles ``first`` to ``last`` of a slide, for one thread."""

    slide: SlideTiles
    number: int
    first: int
    last: int
    reader: TileReader

    @property
    def bytes(self) -> int:
        return (self.last - self.first) * self.slide.spec.bytes

    def read(self, stopped: threading.Event) -> list[Pixels]:
        tiles = []
        try:
            for n in range(self.first, self.last):
                if stopped.is_set():  # the consumer is gone
                    break
                tiles.append(self.reader.read(int(self.slide.x[n]), int(self.slide.y[n])))
        except (DataError, MemoryError):
            raise
        except Exception:  # noqa: BLE001 - decoders raise many types for broken tiles
            raise DataError(
                "its tiles cannot be read: the file is damaged. Copy it again, then register the dataset again"
            ) from None
        return tiles
