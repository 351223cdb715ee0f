"""Heat maps as colours over pictures."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import ListedColormap, to_hex
from numpy.typing import NDArray

from oncofed.data.slides import Pixels

# Within inferno: its black end would darken the picture, its pale one hides what is under it.
_FIRST, _LAST = 0.1, 0.8
COLOURS = ListedColormap(mpl.colormaps["inferno"](np.linspace(_FIRST, _LAST, 256)), "heat")

_OPACITY = 0.55  # at heat 1, so that nuclei are seen through it; zero heat is transparent
_GLASS = 255
_MOST_AT_ONCE = 1 << 22  # pixels


def overlay_heatmap(pixels: Pixels, heat: NDArray[np.float32], gamma: float = 1.0) -> Pixels:
    """Blend a heat map over a picture.

    Opacity goes with the square root of the heat.

    Args:
        pixels: (row, column, 3) uint8.
        heat: from 0 to 1, (row, column).
        gamma: colours go with the heat to this power.
    """
    table = (COLOURS(np.arange(256))[:, :3] * 255).round().astype(np.float32)
    result = np.empty_like(pixels)
    rows = max(1, _MOST_AT_ONCE // max(pixels.shape[1], 1))
    for first in range(0, len(pixels), rows):
        part, part_heat = pixels[first : first + rows].astype(np.float32), heat[first : first + rows]
        colours = table[(255 * part_heat**gamma).round().astype(np.uint8)]
        result[first : first + rows] = (part + (colours - part) * (_OPACITY * np.sqrt(part_heat[..., None]))).round()
    return result


def blended_colours(gamma: float = 1.0) -> ListedColormap:
    """Return the colours that ``overlay_heatmap`` gives to white glass, for a scale beside it.

    Args:
        gamma: the scale goes with the heat to this power.
    """
    heat = np.linspace(0, 1, 256, dtype=np.float32)[None] ** np.float32(1 / gamma)
    glass = np.full((*heat.shape, 3), _GLASS, np.uint8)
    return ListedColormap(overlay_heatmap(glass, heat, gamma)[0] / 255, "heat over glass")


def to_rgb(values: NDArray[Any]) -> Pixels:
    """Convert a flat image to (row, column, 3) uint8.

    Colours stay as they are. Values other than bytes are scaled to their 0.5th to 99.5th percentile.
    """
    turned = values.swapaxes(0, 1)
    if turned.shape[-1] != 3:
        turned = turned.mean(axis=-1, keepdims=True) if turned.shape[-1] > 1 else turned
    if turned.dtype != np.uint8:
        finite = turned[np.isfinite(turned)]
        low, high = np.percentile(finite, (0.5, 99.5)) if finite.size else (0.0, 1.0)
        spread = (np.nan_to_num(turned.astype(np.float32), nan=low) - low) / max(high - low, 1e-12)
        turned = (spread.clip(0, 1) * 255).round().astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(turned, (*turned.shape[:2], 3)))


def css_gradient() -> str:
    """Return the colour map as a CSS gradient."""
    stops = ", ".join(to_hex(COLOURS(share)) for share in np.linspace(0, 1, 6))
    return f"linear-gradient(to right, {stops})"
