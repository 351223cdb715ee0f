"""Stream the tiles of many slides, read ahead by threads."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
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


class SlideError(DataError):
    """A slide that cannot be read.

    Attributes:
        number: of the slide among those that are streamed.
    """

    def __init__(self, reason: str, number: int) -> None:
        super().__init__(reason)
        self.number = number


@dataclass(frozen=True)
class KeptAt:
    """Where a slide's features may be kept.

    Attributes:
        folder: of a dataset's features.
        name: of the slide.
        source: changes with the slide's files.
    """

    folder: Path
    name: str
    source: str


@dataclass(frozen=True)
class SlideTiles:
    """The places of one slide's tiles.

    Attributes:
        path: of the slide.
        spec: size and resolution of a tile.
        x: left edge of each tile in pixels of the finest level.
        y: upper edge.
        kept: where its features may be kept; None: nowhere.
    """

    path: Path
    spec: TileSpec
    x: NDArray[np.int32]
    y: NDArray[np.int32]
    kept: KeptAt | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def digest(self) -> str:
        """SHA-256 of size, resolution and places of the tiles."""
        found = hashlib.sha256(f"{self.spec.size} {round(self.spec.mpp, 6)} ".encode())
        found.update(np.stack([self.x, self.y]).astype("<i4").tobytes())
        return found.hexdigest()


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
    slides: Iterable[SlideTiles], threads: int | None = None, ahead: int = 8, most_bytes: int = 512 * 2**20
) -> Generator[tuple[int, int, list[Pixels]], None, None]:
    """Yield runs of tiles, slide after slide, in order.

    All threads read from the same slide, which the first of them opens. At the end, in any case, slides are closed and
    threads have stopped.

    Args:
        slides: to read; the next one is asked for when the threads come near it.
        threads: that read; None: one a core.
        ahead: runs to read ahead, per thread.
        most_bytes: of tiles to read ahead, for all threads together; one run is always read.

    Yields:
        (number of the slide, number of the first tile, tiles (size, size, 3) uint8).

    Raises:
        SlideError: a slide cannot be opened, or a tile cannot be read. All tiles before it were yielded.
    """
    threads = threads or os.cpu_count() or 1
    most_runs = min(threads * ahead, _MOST_RUNS)
    opened: dict[int, _Source] = {}
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
        for source in opened.values():
            source.close()


def _runs(slides: Iterable[SlideTiles], opened: dict[int, _Source], most_bytes: int) -> Iterator[_Run]:
    """Yield runs of tiles, slide after slide."""
    for number, slide in enumerate(slides):
        if not len(slide):
            continue
        count = max(1, min(_TILES_A_RUN, most_bytes // slide.spec.bytes))
        source = opened[number] = _Source(slide)
        for first in range(0, len(slide), count):
            yield _Run(slide=slide, number=number, first=first, last=min(first + count, len(slide)), source=source)


class _Source:
    """A slide that is opened when it is first read.

    By a reading thread: opening takes a large slide as long as hundreds of tiles, and the consumer does not wait.
    """

    def __init__(self, slide: SlideTiles) -> None:
        self._slide = slide
        self._lock = threading.Lock()
        self._reader: TileReader | None = None

    def reader(self) -> TileReader:
        """Return the open slide.

        Raises:
            DataError: it cannot be opened.
        """
        with self._lock:
            if self._reader is None:
                self._reader = TileReader(self._slide.path, self._slide.spec)
            return self._reader

    def close(self) -> None:
        """Close the slide."""
        if self._reader:
            self._reader.close()


@dataclass(frozen=True)
class _Run:
    """Tiles ``first`` to ``last`` of a slide, for one thread."""

    slide: SlideTiles
    number: int
    first: int
    last: int
    source: _Source

    @property
    def bytes(self) -> int:
        return (self.last - self.first) * self.slide.spec.bytes

    def read(self, stopped: threading.Event) -> list[Pixels]:
        tiles: list[Pixels] = []
        try:
            for n in range(self.first, self.last):
                if stopped.is_set():  # the consumer is gone
                    break
                tiles.append(self.source.reader().read(int(self.slide.x[n]), int(self.slide.y[n])))
        except MemoryError:
            raise
        except DataError as error:
            raise SlideError(str(error), self.number) from None
        except Exception:  # noqa: BLE001 - decoders raise many types for broken tiles
            raise SlideError(
                "its tiles cannot be read: the file is damaged. Copy it again, then register the dataset again",
                self.number,
            ) from None
        return tiles
