"""A network's output over a whole slide, row after row and without seams.

Windows overlap, and count by a Gaussian weight that is almost nothing at their edges, so that none of them ends with a
step (as MONAI's ``sliding_window_inference``). Windows that show no tissue are not looked at.

Memory does not grow with the slide's height. With its width grow the rows by which two rows of windows overlap, where
there is tissue: all else is handed on as soon as the windows have passed it.
"""

from __future__ import annotations

import itertools
import os
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from monai.data.utils import compute_importance_map
from numpy.typing import NDArray
from torch import Tensor, nn

from oncofed.data.slides.canvas import SlideCanvas, as_input
from oncofed.data.slides.levels import Pixels
from oncofed.devices import inference_type
from oncofed.tasks.windows import window_starts

Maps = NDArray[np.float32]
# Called with (rows of windows done, in all).
Advance = Callable[[int, int], None]

_AT_ONCE, _AT_ONCE_GPU = 4, 32
_MOST_THREADS = 16
_LEAST_WEIGHT = np.finfo(np.float32).tiny


class Block(NamedTuple):
    """A finished part of a slide's map.

    Attributes:
        y: its first row.
        x: its first column.
        height: its rows.
        width: its columns.
        values: (value, row, column) float32; None where no window was looked at.
    """

    y: int
    x: int
    height: int
    width: int
    values: Maps | None


@dataclass(frozen=True)
class Stitching:
    """How a slide's windows become one map.

    Attributes:
        side: of a window in working pixels.
        overlap: share by which windows overlap.
        mirror: take the mean over all mirrorings.
        change: from a network's output (window, out, …) to the maps' values (window, value, x, y).
    """

    side: int
    overlap: float
    mirror: bool
    change: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def blocks(
        self,
        network: nn.Module,
        canvas: SlideCanvas,
        device: torch.device,
        first: int = 0,
        wanted: Callable[[int, int, int, int], bool] | None = None,
        advance: Advance | None = None,
    ) -> Iterator[Block]:
        """Yield the map in finished blocks: from the upper rows down, and from left to right in them.

        The same values come whatever row is the first.

        Args:
            network: from (window, channel, x, y) to its output, on ``device``, in evaluation mode.
            canvas: the slide; it reads windows of ``side``.
            device: where the network is.
            first: row to begin with.
            wanted: whether a box (x, y, width, height) is looked at; None: where there is tissue.
            advance: called after each row of windows.
        """
        look = wanted or canvas.shows_tissue
        across, down = (window_starts(max(length, self.side), self.side, self.overlap) for length in canvas.size)
        begun = next(number for number, y in enumerate(down) if y + self.side > first)
        rows = list(itertools.pairwise([*down, canvas.size[1]]))[begun:]
        todo = [{x for x in across if look(x, y, self.side, self.side)} for y, _ in rows]
        columns = _Columns(self.side, across)
        with readers() as pool:
            places = ((x, y) for (y, _), seen in zip(rows, todo, strict=True) for x in sorted(seen))
            ahead = read_ahead(pool, canvas, places, device)
            for number, ((y, end), seen) in enumerate(zip(rows, todo, strict=True), start=begun + 1):
                answers = self._answers(network, canvas, itertools.islice(ahead, len(seen)), device)
                windows = ((x, next(answers) if x in seen else None) for x in across)
                for done in columns.passed(windows, end - y):
                    yield from _on_slide(done, y, end - y, first, canvas.size)
                if advance:
                    advance(number, len(down))

    def _answers(
        self, network: nn.Module, canvas: SlideCanvas, read: Iterable[Pixels], device: torch.device
    ) -> Iterator[Maps]:
        """Yield each window's values, (value, row, column)."""
        for inputs in as_inputs(canvas, read, device):
            yield from self._found(network, inputs).movedim(2, 3).cpu().numpy()

    def _found(self, network: nn.Module, image: Tensor) -> Tensor:
        """Return windows' values, (window, value, x, y) float32."""
        mirrorings = [axes for n in range(3) for axes in itertools.combinations((2, 3), n)] if self.mirror else [()]
        total: Tensor | None = None
        for axes in mirrorings:
            with torch.autocast("cuda", inference_type(image.device), enabled=image.device.type == "cuda"):
                output = network(image.flip(axes) if axes else image)
            values = self.change(output.float()).flip(axes)
            total = values if total is None else total + values
        assert total is not None
        return total / len(mirrorings)


class _Columns:
    """Sums of windows' values over the columns between the beginnings of two windows.

    Args:
        side: of a window.
        across: where windows begin, rising.
    """

    def __init__(self, side: int, across: list[int]) -> None:
        self._side, self._across = side, across
        self._weight = compute_importance_map((side, side), mode="gaussian").numpy()
        self._widths = dict(zip(across, np.diff([*across, across[-1] + side]).tolist(), strict=True))
        # First column -> sums of this row of windows; and sums that the row above left, of all columns: in one piece,
        # since many small ones that outlive others leave gaps in memory that nothing fits into.
        self._sums: dict[int, _Sums] = {}
        self._left: _Sums | None = None

    def passed(self, windows: Iterable[tuple[int, Maps | None]], count: int) -> Iterator[tuple[int, int, Maps | None]]:
        """Yield first column, width and values of what a row of windows is done with; None where nobody looked.

        Args:
            windows: first column, and values; None: it is not looked at.
            count: rows until the next row of windows.
        """
        for x, values in windows:
            if values is not None:
                self._add(x, values * self._weight)
            columns = slice(x, x + self._widths[x])
            if self._left and self._left.weights[:, columns].any():
                self._opened(x, len(self._left.values))
            done = self._sums.pop(x, None)
            if self._left:
                self._left.weights[:, columns] = 0
            if done is None:
                yield x, self._widths[x], None
                continue
            yield x, self._widths[x], done.values[:, :count] / np.maximum(done.weights[:count], _LEAST_WEIGHT)
            left = self._left = self._left or _Sums.zeros(len(done.values), self._side, sum(self._widths.values()))
            rows = slice(self._side - count)
            left.values[:, rows, columns], left.weights[rows, columns] = done.values[:, count:], done.weights[count:]

    def _add(self, x: int, values: Maps) -> None:
        for at in self._across[bisect_left(self._across, x) : bisect_left(self._across, x + self._side)]:
            sums = self._opened(at, len(values))
            part = slice(at - x, at - x + self._widths[at])
            width = values[..., part].shape[-1]
            sums.values[..., :width] += values[..., part]
            sums.weights[:, :width] += self._weight[:, part]

    def _opened(self, x: int, count: int) -> _Sums:
        if x not in self._sums:
            self._sums[x] = sums = _Sums.zeros(count, self._side, self._widths[x])
            columns = slice(x, x + self._widths[x])
            if self._left and self._left.weights[:, columns].any():
                sums.values[:], sums.weights[:] = self._left.values[..., columns], self._left.weights[:, columns]
        return self._sums[x]


class _Sums(NamedTuple):
    values: Maps  # (value, row, column)
    weights: NDArray[np.float32]  # (row, column)

    @classmethod
    def zeros(cls, count: int, rows: int, columns: int) -> _Sums:
        return cls(np.zeros((count, rows, columns), np.float32), np.zeros((rows, columns), np.float32))


def _on_slide(
    columns: tuple[int, int, Maps | None], y: int, count: int, first: int, size: tuple[int, int]
) -> Iterator[Block]:
    """Yield the part of finished columns that lies on the slide, from a row on."""
    x, broad, values = columns
    low, width = max(first - y, 0), min(broad, size[0] - x)
    if low < count and width > 0:
        kept = None if values is None else values[:, low:, :width]
        yield Block(y + low, x, count - low, width, kept)


def readers() -> ThreadPoolExecutor:
    """Return threads that read windows."""
    return ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1))


def as_inputs(canvas: SlideCanvas, read: Iterable[Pixels], device: torch.device) -> Iterator[Tensor]:
    """Yield windows as a network sees them, as many at once as suit the device; (window, channel, x, y)."""
    coming = iter(read)
    while part := list(itertools.islice(coming, _at_once(device))):
        yield torch.stack([as_input(pixels, canvas.scale) for pixels in part]).to(device)


def read_ahead(
    pool: ThreadPoolExecutor, canvas: SlideCanvas, places: Iterable[tuple[int, int]], device: torch.device
) -> Iterator[Pixels]:
    """Yield each window, while the next ones are read: as many as suit the device twice."""
    coming: deque[Future[Pixels]] = deque()
    left = iter(places)
    try:
        while True:
            for x, y in itertools.islice(left, 2 * _at_once(device) + _MOST_THREADS - len(coming)):
                coming.append(pool.submit(canvas.read, x, y))
            if not coming:
                return
            yield coming.popleft().result()
    finally:
        for one in coming:
            one.cancel()


def _at_once(device: torch.device) -> int:
    return _AT_ONCE_GPU if device.type == "cuda" else _AT_ONCE
