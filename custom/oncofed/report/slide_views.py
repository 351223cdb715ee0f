"""What is drawn of a slide: its overview, with the tiles that a job learns from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oncofed.data.case import Case
from oncofed.data.features import open_features
from oncofed.data.slides import TileReader, TileSpec
from oncofed.data.tiles import read_tiles
from oncofed.errors import DataError

_CANVAS = 640  # pixels of the longer side, where there is no slide to show
_BLANK = 245


@dataclass(frozen=True)
class SlideView:
    """A slide's overview.

    Attributes:
        pixels: (row, column, 3) uint8.
        size: width and height in mm, or in pixels if not calibrated.
        tiles: left, top, width and height of each tile in pixels, with its label.
        note: what the tiles are.
        calibrated: whether ``size`` is in mm.
    """

    pixels: NDArray[np.uint8]
    size: tuple[float, float]
    tiles: tuple[tuple[float, float, float, float, int], ...]
    note: str
    calibrated: bool = True


def view_of(case: Case) -> SlideView:
    """Return the view of a slide with tiles or features.

    Raises:
        DataError: the slide, its tiles or its features cannot be read, or do not say where tiles lie.
    """
    return _of_features(case) if case.features else _of_tiles(case)


def _of_tiles(case: Case) -> SlideView:
    assert case.tiles is not None
    grid = read_tiles(case.image, case.tiles)
    with np.load(case.tiles) as stored:
        labels = stored["label"] if "label" in stored else np.zeros(len(grid), np.int16)
    with TileReader(case.image, grid.spec) as reader:
        overview, scale = reader.overview()
        mm = reader.levels[0].mpp * scale / 1000
        step = reader.step
    places = np.stack([grid.x, grid.y], axis=1)
    note = "tiles that show tissue; filled: with a label"
    return SlideView(overview, _size(overview, mm), _squares(places, step, scale, labels), note)


def _of_features(case: Case) -> SlideView:
    assert case.entry is not None
    facts, spacing = case.entry.features, case.entry.spacing
    assert facts is not None
    assert case.features is not None
    with open_features(case.features, facts.encoder) as found:
        known = found.completed(facts.tile, facts.mpp, spacing[0] * 1000 if spacing else None)
        places = known.pixels() if known.level == "tile" else None
    note = f"tiles with features of {facts.encoder}"
    if case.image != case.features:
        spec = TileSpec(facts.tile or TileSpec.size, facts.mpp or TileSpec.mpp)
        with TileReader(case.image, spec) as reader:
            overview, scale = reader.overview()
            mm = reader.levels[0].mpp * scale / 1000
            step = reader.step
        squares = () if places is None else _squares(places, step, scale)
        return SlideView(overview, _size(overview, mm), squares, note if squares else f"features of {facts.encoder}")
    if places is None or not known.step:
        raise DataError("has features alone, without a slide to show or coordinates to draw")
    width, height = (places.max(axis=0) + known.step).tolist()
    scale = max(width, height) / _CANVAS
    blank = np.full((max(1, round(height / scale)), max(1, round(width / scale)), 3), _BLANK, np.uint8)
    squares = _squares(places, known.step, scale)
    return SlideView(blank, (width, height), squares, f"{note}; its slide is not there", calibrated=False)


def _size(overview: NDArray[np.uint8], mm: float) -> tuple[float, float]:
    return overview.shape[1] * mm, overview.shape[0] * mm


def _squares(
    places: NDArray[np.int32], step: float, scale: float, labels: NDArray[np.int16] | None = None
) -> tuple[tuple[float, float, float, float, int], ...]:
    """Return each tile's square in the overview's pixels."""
    side = step / scale
    values = np.zeros(len(places), np.int16) if labels is None else labels
    corners = (places / scale).tolist()
    return tuple((x, y, side, side, int(v)) for (x, y), v in zip(corners, values, strict=True))
