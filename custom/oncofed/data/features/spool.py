"""A slide's features while they are made: on disk, and of use after a kill."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from oncofed.atomic import write_whole

# What a killed process has to do again, at most. Waiting for the disk more often would keep a GPU from its work.
_SECONDS_BETWEEN_MARKS = 10.0
_FLOAT32 = np.dtype("<f4")
SPOOL_FOLDER = ".unfinished"
_SUFFIXES = (".values", ".mark")


class Spool:
    """Vectors of one slide, appended to a file.

    Beside it a mark says how many of them have reached the disk: what comes behind it after a kill or a power cut is
    cut off, and made again. Memory does not grow with the slide.

    Args:
        folder: for both files.
        name: of the slide.
        made_of: everything that determines the vectors; what was made of anything else is dropped.
        rows: vectors in all.
        size: numbers of a vector.

    Attributes:
        done: vectors so far.
    """

    def __init__(self, folder: Path, name: str, made_of: str, rows: int, size: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._values, self._mark = _files(folder, name)
        self._stated = {"made_of": made_of, "size": size}
        self._shape = (rows, size)
        self.done = self._marked()
        self._file = os.open(self._values, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._file, self._bytes)
        os.lseek(self._file, 0, os.SEEK_END)
        self._next = time.monotonic() + _SECONDS_BETWEEN_MARKS

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def complete(self) -> bool:
        """Whether all vectors are there."""
        return self.done == self._shape[0]

    def append(self, vectors: NDArray[np.floating]) -> None:
        """Add vectors (row, size), as float32.

        Raises:
            OSError: the disk is full.
        """
        data = memoryview(np.ascontiguousarray(vectors, _FLOAT32).tobytes())
        while data:
            data = data[os.write(self._file, data) :]
        self.done += len(vectors)
        if time.monotonic() >= self._next:
            self.mark()

    def mark(self) -> None:
        """State that what was appended is on the disk, which it then is."""
        os.fsync(self._file)
        write_whole(self._mark, json.dumps({**self._stated, "rows": self.done}), mode=0o600)
        self._next = time.monotonic() + _SECONDS_BETWEEN_MARKS

    def vectors(self) -> NDArray[np.float32]:
        """Return all vectors (row, size) float32, which stay in their file."""
        return np.memmap(self._values, _FLOAT32, "r", shape=(self.done, self._shape[1]))

    def close(self) -> None:
        """Mark what is there, and close the file."""
        if self._file >= 0:
            try:
                self.mark()
            finally:
                os.close(self._file)
                self._file = -1

    @property
    def _bytes(self) -> int:
        return self.done * self._shape[1] * _FLOAT32.itemsize

    def _marked(self) -> int:
        """Return how many vectors an earlier process left."""
        try:
            stated = json.loads(self._mark.read_text(encoding="utf-8"))
            rows, there = int(stated.pop("rows")), self._values.stat().st_size
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return 0
        fits = stated == self._stated and 0 <= rows <= self._shape[0]
        return rows if fits and there >= rows * self._shape[1] * _FLOAT32.itemsize else 0


def spooled(folder: Path) -> set[str]:
    """Return the names of the slides that were begun."""
    return {path.stem for path in folder.glob("*") if path.suffix in _SUFFIXES}


def remove_spool(folder: Path, name: str) -> None:
    """Remove what is left of a slide's spool."""
    for file in _files(folder, name):
        file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _files(folder: Path, name: str) -> tuple[Path, Path]:
    values, mark = _SUFFIXES
    return folder / f"{name}{values}", folder / f"{name}{mark}"
