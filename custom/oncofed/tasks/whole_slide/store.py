"""Where the finished strips of a slide are kept, so that a broken prediction goes on."""

from __future__ import annotations

import contextlib
import io
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from oncofed.atomic import write_whole

Arrays = Mapping[str, NDArray[Any]]
Kept = TypeVar("Kept")
# What reading raises where a file is absent, damaged, or of a build that kept something else.
_UNUSABLE = (OSError, EOFError, BadZipFile, zlib.error, KeyError, TypeError, ValueError)


@dataclass(frozen=True)
class StripStore:
    """Finished strips of one slide and one model.

    Attributes:
        folder: of its own; None: nothing is kept.
        advance: called with (rows of windows done, in all).
    """

    folder: Path | None = None
    advance: Callable[[int, int], None] | None = None

    def kept(
        self, places: Sequence[tuple[int, int]], read: Callable[[Arrays, tuple[int, int]], Kept]
    ) -> Iterator[Kept]:
        """Yield what is kept of strips, up to the first that is not.

        Those below it are removed: they may go on from other strips than those that are made now.

        Args:
            places: first and last rows of all strips, from the top.
            read: from a strip's arrays and its rows; see ``load``.
        """
        for rows in places:
            found = self.load(rows[0], lambda arrays, rows=rows: read(arrays, rows))  # type: ignore[misc]
            if found is None:
                self._remove_from(rows[0])
                return
            yield found

    def load(self, first: int, read: Callable[[Arrays], Kept]) -> Kept | None:
        """Return what is kept of the strip that begins at a row; None: nothing that could be used.

        Args:
            first: the row.
            read: from the arrays; it raises ValueError, or KeyError, where they are not what it expects.
        """
        if self.folder is None:
            return None
        try:
            with np.load(io.BytesIO(self._path(first).read_bytes())) as arrays:
                return read(dict(arrays))
        except _UNUSABLE:  # it is made anew
            return None

    def save(self, first: int, arrays: Arrays) -> None:
        """Keep a strip's arrays; a full disk costs the strips and not the prediction."""
        if self.folder is None:
            return
        buffer = io.BytesIO()
        np.savez(buffer, **dict(arrays))  # type: ignore[arg-type]
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(self._path(first), buffer.getvalue())

    def _remove_from(self, first: int) -> None:
        """Remove the strips that begin at a row or below it."""
        with contextlib.suppress(OSError):
            for path in self.folder.glob("*.npz") if self.folder else ():
                if path.name >= self._path(first).name:
                    path.unlink(missing_ok=True)

    def _path(self, first: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{first:09d}.npz"


NOTHING_KEPT = StripStore()
