"""Where the finished strips of a slide are kept, so that a broken prediction goes on."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from oncofed.atomic import write_whole

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class StripStore:
    """Finished strips of one slide and one model.

    Attributes:
        folder: of its own; None: nothing is kept.
        advance: called with (rows of windows done, in all).
    """

    folder: Path | None = None
    advance: Callable[[int, int], None] | None = None

    def kept(self, places: Sequence[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], Arrays]]:
        """Yield first and last rows of strips with their arrays, up to the first strip that is not kept.

        Args:
            places: rows of all strips, from the top.
        """
        for rows in places:
            arrays = self.load(rows[0])
            if arrays is None:
                return
            yield rows, arrays

    def load(self, first: int) -> Arrays | None:
        """Return the arrays of the strip that begins at a row; None: not kept."""
        if self.folder is None:
            return None
        try:
            with np.load(self._path(first)) as found:
                return dict(found)
        except (OSError, ValueError, EOFError, BadZipFile):  # absent, or damaged: it is made anew
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

    def clear(self) -> None:
        """Remove what is kept."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, first: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{first:09d}.npz"


NOTHING_KEPT = StripStore()
