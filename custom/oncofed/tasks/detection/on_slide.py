"""Boxes of a whole slide, row of windows after row.

Each window answers for its part alone. What two windows found of one object is joined once, at the end; only the
likeliest boxes are held until then, so that memory does not grow with the slide's pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from oncofed.data.boxes import apart
from oncofed.data.slides.canvas import SlideCanvas
from oncofed.data.slides.levels import Pixels
from oncofed.tasks.detection.finding import Finder, Window, along_axis, window_at
from oncofed.tasks.detection.spec import DetectionSpec
from oncofed.tasks.inferred import SlideBoxes
from oncofed.tasks.whole_slide.stitching import as_inputs, read_ahead, readers
from oncofed.tasks.whole_slide.store import NOTHING_KEPT, Arrays, StripStore

_NAMES = ("corners", "scores", "classes")
# Held are as many boxes as an answer has at most, times this: windows overlap, so that an object may be found twice
# along each axis.
_HELD = 4


@dataclass(frozen=True)
class SlideFinder:
    """Finds the boxes of a slide.

    Attributes:
        finder: of the boxes of windows.
        spec: of the task.
        labels: label value of each of the network's classes, (class,) int64.
    """

    finder: Finder
    spec: DetectionSpec
    labels: NDArray[np.int64]

    @torch.no_grad()
    def __call__(
        self, network: nn.Module, canvas: SlideCanvas, device: torch.device, store: StripStore = NOTHING_KEPT
    ) -> SlideBoxes:
        """Return the boxes found on a slide, the likeliest first, where there is tissue.

        Args:
            network: on ``device``, in evaluation mode.
            canvas: the slide.
            device: where the network is.
            store: of rows of windows that are finished, in which this call goes on.
        """
        rows = list(self._rows(network, canvas, device, store))
        corners, scores, classes = (np.concatenate([row[name] for row in rows]) for name in _NAMES)
        kept = apart(corners, scores, classes, self.spec.merged_overlap)[: self.spec.most_boxes]
        side = canvas.pixel_mm2**0.5 / canvas.pixel
        return SlideBoxes(
            corners[kept] * canvas.pixel,
            scores[kept],
            self.labels[classes[kept]],
            np.diag([side, side, 1.0, 1.0]),
            canvas.finest,
            canvas.tissue_mm2,
        )

    def _rows(self, network: nn.Module, canvas: SlideCanvas, device: torch.device, store: StripStore) -> list[Arrays]:
        """Return what was found in each row of windows."""
        across, down = (along_axis(max(length, canvas.side), canvas.side, self.spec.overlap) for length in canvas.size)
        done = {place[0]: known for place in down if (known := store.load(place[0], _kept)) is not None}
        rows: dict[int, list[Window]] = {
            place[0]: [
                window_at(one, place) for one in across if canvas.shows_tissue(one[0], place[0], *[canvas.side] * 2)
            ]
            for place in down
            if place[0] not in done
        }
        corners = ((window.corner[0], window.corner[1]) for windows in rows.values() for window in windows)
        done = self._likeliest(done)
        with readers() as pool:
            ahead = read_ahead(pool, canvas, corners, device)
            for first, windows in rows.items():
                row = self._of_row(network, canvas, windows, islice(ahead, len(windows)), device)
                store.save(first, row)
                done = self._likeliest({**done, first: row})
                if store.advance:
                    store.advance(len(done), len(down))
        return [done[place[0]] for place in down]

    def _likeliest(self, rows: dict[int, Arrays]) -> dict[int, Arrays]:
        """Return rows without the boxes that are too unlikely to be in the answer."""
        scores = np.concatenate([row["scores"] for row in rows.values()] or [np.zeros(0)])
        spare = len(scores) - _HELD * self.spec.most_boxes
        if spare <= 0:
            return rows
        least = np.partition(scores, spare)[spare]
        return {
            first: {name: values[row["scores"] >= least] for name, values in row.items()} for first, row in rows.items()
        }

    def _of_row(
        self,
        network: nn.Module,
        canvas: SlideCanvas,
        windows: Sequence[Window],
        read: Iterable[Pixels],
        device: torch.device,
    ) -> Arrays:
        """Return corners (box, 4) in working pixels, scores and classes of a row of windows."""
        parts = [(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))]
        waiting = list(windows)
        for inputs in as_inputs(canvas, read, device):
            now, waiting = waiting[: len(inputs)], waiting[len(inputs) :]
            for boxes, logits in self.finder.of_windows(network, now, inputs):
                found, scores, classes = self.finder.chosen([boxes], [logits], canvas.size)
                parts.append((found.double().numpy(), scores.double().numpy(), classes.numpy()))
        row = {name: np.concatenate(arrays) for name, arrays in zip(_NAMES, zip(*parts, strict=True), strict=True)}
        there = on_tissue(row["corners"], canvas)
        return {name: values[there] for name, values in row.items()}


def _kept(arrays: Arrays) -> Arrays:
    """Return the boxes of a row of windows as they were kept.

    Raises:
        ValueError: their shapes are none of boxes.
        KeyError: some are missing.
    """
    row = {name: arrays[name] for name in _NAMES}
    boxes = len(row["scores"])
    if [row[name].shape for name in _NAMES] != [(boxes, 4), (boxes,), (boxes,)]:
        raise ValueError("kept boxes have other shapes than expected")
    return row


def on_tissue(corners: NDArray[np.float64], canvas: SlideCanvas) -> NDArray[np.bool_]:
    """Return which boxes (box, 4), in working pixels, have their centres on tissue."""
    middles = ((corners[:, :2] + corners[:, 2:]) / 2 / canvas.overview[1]).astype(int)
    rows, columns = (middles[:, axis].clip(0, canvas.tissue.shape[1 - axis] - 1) for axis in (1, 0))
    found: NDArray[np.bool_] = canvas.tissue[rows, columns]
    return found
