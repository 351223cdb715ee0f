"""What an answer for a whole slide holds in memory, by the slide's width and height."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from oncofed.data import slides as slides_module
from oncofed.data.slides import Level
from oncofed.data.slides.canvas import SlideCanvas
from oncofed.data.spec import DataSpec
from oncofed.tasks.detection.finding import Finder
from oncofed.tasks.detection.loss import Columns
from oncofed.tasks.detection.on_slide import SlideFinder
from oncofed.tasks.whole_slide.labelling import labelled
from oncofed.tasks.whole_slide.numbering import numbered
from oncofed.tasks.whole_slide.settings import SlideDetectionSpec
from oncofed.tasks.whole_slide.stitching import Stitching

CPU = torch.device("cpu")
SIDE = 64
DATA = DataSpec(
    dataset="slides", modality="microscopy", channels=("r", "g", "b"), patch=(SIDE, SIDE), spacing=(0.001, 0.001)
)


class _Endless:
    """A slide of one colour that takes no memory."""

    vendor = None

    def __init__(self, width: int, height: int) -> None:
        self.levels = [Level(width, height, 1.0), Level(width // 16, height // 16, 16.0)]

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Return tissue."""
        return np.full((height, width, 3), (200, 90, 160), np.uint8)

    def close(self) -> None:
        """Do nothing."""


def _regions(canvas: SlideCanvas) -> None:
    def five(image: Tensor) -> Tensor:
        return torch.full((len(image), 5, SIDE, SIDE), 0.2)

    labelled(Stitching(SIDE, 0.25, False, five), nn.Identity(), canvas, CPU)


def _objects(canvas: SlideCanvas) -> None:
    def none(image: Tensor) -> Tensor:
        return torch.full((len(image), 3, SIDE, SIDE), 0.3)

    numbered(Stitching(SIDE, 0.25, False, none), lambda inside, _: inside.astype(np.int32), nn.Identity(), canvas, CPU)


def _peak(answer: Callable[[SlideCanvas], None], width: int, height: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return the most bytes that an answer held at once, of arrays and Python's objects."""
    monkeypatch.setattr(slides_module, "open_slide", lambda path: _Endless(width, height))
    with SlideCanvas(Path("endless"), DATA, SIDE) as canvas:
        canvas.__dict__["tissue"] = np.ones(canvas.overview[0].shape[:2], bool)
        canvas.__dict__["scale"] = (torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
        tracemalloc.start()
        try:
            answer(canvas)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(("answer", "most"), [(_regions, 3000), (_objects, 7000)])
def test_memory_grows_little_with_width_and_not_with_height(
    answer: Callable[[SlideCanvas], None], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oncofed.tasks.slide_strips.STRIP_ROWS", 128)
    _peak(answer, 128, 128, monkeypatch)  # what is made once
    sizes = ((512, 128), (2048, 128), (128, 512), (128, 1536))
    narrow, wide, low, high = (_peak(answer, *size, monkeypatch) for size in sizes)
    assert (wide - narrow) / (2048 - 512) < most, "bytes a column"
    assert (high - low) / (1536 - 512) < 1000, "bytes a row"


def test_of_many_boxes_those_that_cannot_be_in_the_answer_are_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SlideDetectionSpec(classes={1: "mitosis"}, most_boxes=50)
    found = SlideFinder(Finder(DATA, spec, Columns(1, 2)), spec, np.array([1], np.int64))
    rng = np.random.default_rng(0)
    rows = {
        first: {
            "corners": rng.random((300, 4)),
            "scores": rng.random(300),
            "classes": np.zeros(300, np.int64),
        }
        for first in range(0, 480, 48)
    }
    scores = np.sort(np.concatenate([row["scores"] for row in rows.values()]))
    kept = found._likeliest(rows)
    left = np.sort(np.concatenate([row["scores"] for row in kept.values()]))
    assert np.array_equal(left, scores[-200:])
    assert all(len(row["corners"]) == len(row["scores"]) == len(row["classes"]) for row in kept.values())
    assert found._likeliest(kept) == kept
