"""Peak memory of one answer for a whole slide that is made as it is read, in a process of its own.

``python slide_peak.py KIND WIDTH HEIGHT`` prints it as JSON.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest.mock import patch

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from oncofed.data import slides as slides_module
from oncofed.data.inputs import object_distances
from oncofed.data.slides import Level, Pixels
from oncofed.data.slides.canvas import SlideCanvas
from oncofed.data.spec import DataSpec
from oncofed.prediction.outputs.slide_outlines import pieces
from oncofed.tasks.detection.finding import Finder, Window
from oncofed.tasks.detection.loss import Columns
from oncofed.tasks.detection.on_slide import SlideFinder
from oncofed.tasks.objects import separate
from oncofed.tasks.whole_slide.labelling import labelled
from oncofed.tasks.whole_slide.numbering import numbered
from oncofed.tasks.whole_slide.settings import SlideDetectionSpec
from oncofed.tasks.whole_slide.stitching import Stitching

# Of a window in pixels.
SIDE = 512
_PATTERN, _NUCLEI = 1024, 650
_TISSUES, _BOXES = 5, 300
_DATA = DataSpec(
    dataset="made", modality="microscopy", channels=("r", "g", "b"), patch=(SIDE, SIDE), spacing=(0.0005, 0.0005)
)
_CPU = torch.device("cpu")


class _Made:
    """A slide whose pixels are the truth: where a nucleus is, how deep inside it, and its tissue."""

    vendor = None

    def __init__(self, width: int, height: int) -> None:
        self.levels = [Level(width, height, 0.5), Level(width // 32, max(1, height // 32), 16.0)]
        numbers = np.zeros((_PATTERN, _PATTERN), np.int64)
        rng = np.random.default_rng(0)
        y, x = np.mgrid[-9:10, -9:10]
        disc = np.hypot(x, y) < 7
        for number in range(1, _NUCLEI + 1):
            row, column = rng.integers(9, _PATTERN - 9, 2)
            around = numbers[row - 9 : row + 10, column - 9 : column + 10]
            if not around.any():
                around[disc] = number
        tissue = np.kron(rng.integers(0, _TISSUES, (16, 16)), np.ones((64, 64)))
        pattern = np.stack([numbers > 0, object_distances(numbers), tissue / _TISSUES], axis=-1) * 250
        self._pattern = np.tile(pattern.astype(np.uint8), (2, 2, 1))

    def read(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return the pattern, over and over."""
        if level:
            return np.full((height, width, 3), (200, 90, 160), np.uint8)
        top, left = y % _PATTERN, x % _PATTERN
        return self._pattern[top : top + height, left : left + width]

    def close(self) -> None:
        """Do nothing."""


class _Canvas(SlideCanvas):
    """Such a slide, all tissue."""

    scale = (torch.zeros(3, 1, 1), torch.full((3, 1, 1), 250.0))


class _Finder(Finder):
    """Finds boxes anywhere."""

    def of_windows(
        self, network: nn.Module, windows: Sequence[Window], inputs: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield as many boxes of each window."""
        for window in windows:
            corners = torch.rand(_BOXES, 2) * (SIDE - 20) + torch.tensor(window.corner)
            yield torch.cat([corners, corners + 16], dim=1), torch.randn(_BOXES, 1)


def _regions(canvas: SlideCanvas) -> int:
    def tissues(image: Tensor) -> Tensor:
        classes = torch.arange(_TISSUES, device=image.device)[None, :, None, None]
        return (-50 * (image[:, 2:] * _TISSUES - classes) ** 2).softmax(1)

    found = labelled(Stitching(SIDE, 0.25, False, tissues), nn.Identity(), canvas, _CPU)
    return sum(1 for _ in pieces(found))


def _objects(canvas: SlideCanvas) -> int:
    def maps(image: Tensor) -> Tensor:
        return torch.cat([1 - image[:, :1], image[:, :2]], dim=1)

    def apart(inside: np.ndarray, depth: np.ndarray) -> np.ndarray:
        return separate(inside, depth, 0.4, 10)

    found = numbered(Stitching(SIDE, 0.25, False, maps), apart, nn.Identity(), canvas, _CPU)
    return sum(1 for _ in pieces(found, whole=True))


def _boxes(canvas: SlideCanvas) -> int:
    spec = SlideDetectionSpec(classes={1: "mitosis"})
    finder = _Finder(_DATA, spec, Columns(1, 2))
    return len(SlideFinder(finder, spec, np.array([1], np.int64))(nn.Identity(), canvas, _CPU).scores)


KINDS: dict[str, Callable[[SlideCanvas], int]] = {"regions": _regions, "objects": _objects, "boxes": _boxes}


def _peak(kind: str, width: int, height: int) -> dict[str, int]:
    """Return the peak bytes of one answer, and how many pieces it has."""
    for size, measured in (((1024, 600), False), ((width, height), True)):
        made = _Made(*size)
        with patch.object(slides_module, "open_slide", lambda path, made=made: made):
            before = _begin()
            with _Canvas(Path("made"), _DATA, SIDE) as canvas:
                canvas.__dict__["tissue"] = np.ones(canvas.overview[0].shape[:2], bool)
                count = KINDS[kind](canvas)
        if measured:
            return {"peak": _high_water() - before, "count": count}
    raise AssertionError


def _begin() -> int:
    """Forget the peak of imports and of the first answer, and return what the process holds, in bytes.

    What was freed goes back to the system first: else an answer that fits in it would seem to take nothing.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets VmHWM (proc(5))
    return psutil.Process().memory_info().rss


def _high_water() -> int:
    """Return the peak since ``_begin``, in bytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


if __name__ == "__main__":
    print(json.dumps(_peak(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
