"""A network's output over a whole slide, row after row and without seams.

Windows overlap, and count by a Gaussian weight that is almost nothing at their edges, so that none of them ends with a
step (as MONAI's ``sliding_window_inference``). Only as many rows as one window has are held: memory does not grow with
the slide's height. Windows that show no tissue are not looked at.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

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
    def rows(
        self,
        network: nn.Module,
        canvas: SlideCanvas,
        device: torch.device,
        first: int = 0,
        wanted: Callable[[int, int, int, int], bool] | None = None,
        advance: Advance | None = None,
    ) -> Iterator[tuple[int, Maps]]:
        """Yield the finished rows of the map, from the upper ones down.

        The same values come whatever row is the first.

        Args:
            network: from (window, channel, x, y) to its output, on ``device``, in evaluation mode.
            canvas: the slide; it reads windows of ``side``.
            device: where the network is.
            first: row to begin with.
            wanted: whether a box (x, y, width, height) is looked at; None: where there is tissue.
            advance: called after each row of windows.

        Yields:
            (number of the first row, values (value, row, column) float32); 0 where no window was looked at.
        """
        look = wanted or canvas.shows_tissue
        width, height = canvas.size
        across, down = (window_starts(max(length, self.side), self.side, self.overlap) for length in canvas.size)
        begun = next(number for number, y in enumerate(down) if y + self.side > first)
        todo = [[(x, y) for x in across if look(x, y, self.side, self.side)] for y in down[begun:]]
        weight = compute_importance_map((self.side, self.side), mode="gaussian").numpy()
        columns = across[-1] + self.side
        total: Maps | None = None
        sums = np.zeros((self.side, columns), np.float32)
        with readers() as pool:
            ahead = read_ahead(pool, canvas, todo)
            for number, (places, read) in enumerate(zip(todo, ahead, strict=True), start=begun):
                for (x, _), values in zip(places, self._answers(network, canvas, read, device), strict=True):
                    if total is None:
                        total = np.zeros((len(values), self.side, columns), np.float32)
                    total[:, :, x : x + self.side] += values * weight
                    sums[:, x : x + self.side] += weight
                end = down[number + 1] if number + 1 < len(down) else height
                y, count = down[number], min(end, height) - down[number]
                if advance:
                    advance(number + 1, len(down))
                if total is None:
                    total = np.zeros((self._values(network, canvas, device), self.side, columns), np.float32)
                low = max(first - y, 0)
                if low < count:
                    covered = np.maximum(sums[low:count, :width], np.finfo(np.float32).tiny)
                    yield y + low, total[:, low:count, :width] / covered
                for held in (total, sums[None]):
                    held[:, : self.side - count] = held[:, count:].copy()
                    held[:, self.side - count :] = 0

    def _answers(
        self, network: nn.Module, canvas: SlideCanvas, read: Sequence[Future[Pixels]], device: torch.device
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

    def _values(self, network: nn.Module, canvas: SlideCanvas, device: torch.device) -> int:
        """Return how many values the map has."""
        image = torch.zeros(1, len(canvas.scale[0]), self.side, self.side, device=device)
        return self._found(network, image).shape[1]


def readers() -> ThreadPoolExecutor:
    """Return threads that read windows."""
    return ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1))


def as_inputs(canvas: SlideCanvas, read: Sequence[Future[Pixels]], device: torch.device) -> Iterator[Tensor]:
    """Yield windows as a network sees them, as many at once as suit the device; (window, channel, x, y)."""
    at_once = _AT_ONCE_GPU if device.type == "cuda" else _AT_ONCE
    for start in range(0, len(read), at_once):
        yield torch.stack([as_input(one.result(), canvas.scale) for one in read[start : start + at_once]]).to(device)


def read_ahead(
    pool: ThreadPoolExecutor, canvas: SlideCanvas, todo: Sequence[Sequence[tuple[int, int]]]
) -> Iterator[list[Future[Pixels]]]:
    """Yield each row's windows, while the next row's are read."""
    coming: deque[list[Future[Pixels]]] = deque()
    try:
        for row in todo:
            coming.append([pool.submit(canvas.read, x, y) for x, y in row])
            if len(coming) > 1:
                yield coming.popleft()
        while coming:
            yield coming.popleft()
    finally:
        for row_of_futures in coming:
            for one in row_of_futures:
                one.cancel()
