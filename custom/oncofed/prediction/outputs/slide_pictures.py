"""Small pictures of what was found on a slide: classes, and where there is much."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from oncofed.data.slides import Pixels
from oncofed.prediction.outputs import geojson
from oncofed.prediction.outputs.heatmap import blended_colours, overlay_heatmap
from oncofed.prediction.outputs.slides import length_bar
from oncofed.report.planes import colour

_SIDE, _BAR = 8.0, 0.9  # inches: the slide's longer side, what the scale of colours takes
_OPACITY = 0.5


def write_classes_picture(
    pixels: Pixels, labels: NDArray[np.integer], classes: Mapping[int, str], mpp: float, path: Path
) -> None:
    """Write a PNG of a slide with its classes in colour.

    Args:
        pixels: of the slide, small, (row, column, 3).
        labels: label values, (row, column).
        classes: label value -> name.
        mpp: microns per pixel of the picture.
        path: of the file.
    """
    shown = pixels.astype(np.float32)
    for value in classes:
        inside = labels == value
        shown[inside] += _OPACITY * (np.array(geojson.rgb(value), np.float32) - shown[inside])
    figure, axes = _figure(shown.round().astype(np.uint8), mpp, 0.0)
    handles = [Patch(color=colour(value), label=name) for value, name in classes.items()]
    axes.legend(handles=handles, loc="upper right", fontsize=8, framealpha=0.8)
    figure.savefig(path, dpi=150)


def write_heat_picture(
    pixels: Pixels, heat: NDArray[np.float32], most: float, title: str, mpp: float, path: Path
) -> None:
    """Write a PNG of a slide with a heat map and its scale.

    Args:
        pixels: of the slide, small, (row, column, 3).
        heat: from 0 to ``most``, (row, column).
        most: end of the scale.
        title: of the scale, with its unit.
        mpp: microns per pixel of the picture.
        path: of the file.
    """
    figure, _ = _figure(overlay_heatmap(pixels, (heat / max(most, 1e-9)).clip(0, 1)), mpp, _BAR)
    whole = figure.get_figwidth()
    scale = figure.add_axes(((whole - 0.75 * _BAR) / whole, 0.1, 0.2 / whole, 0.8))
    figure.colorbar(ScalarMappable(Normalize(0, most), blended_colours()), cax=scale, label=title)
    figure.savefig(path, dpi=150)


def _figure(pixels: Pixels, mpp: float, beside: float) -> tuple[Figure, Axes]:
    height, width = pixels.shape[:2]
    across, down = (_SIDE * side / max(height, width) for side in (width, height))
    figure = Figure(figsize=(across + beside, down))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, across / (across + beside), 1))
    axes.imshow(pixels, interpolation="antialiased", aspect="auto")
    axes.set_axis_off()
    length_bar(axes, mpp, width, height)
    return figure, axes
