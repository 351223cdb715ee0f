"""Where an overview shows tissue: what is more saturated than the glass around it, and is no ink.

A threshold of the whole slide's saturation (Otsu 1979) falls between pen marks and pale tissue, or between two stains,
so that it loses the paler one; here it comes from the glass. Inks have hues that stains with haematoxylin, eosin or DAB
do not have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oncofed.data.slides.levels import Pixels

Mask = NDArray[np.bool_]

_FILL = 20  # the scanner's black where it did not look
_SMOOTHED = 5
_LEAST_SATURATION, _MOST_SATURATION = 0.025, 0.06
# Of bright pixels: glass, and what is as pale.
_BRIGHT, _TINT, _NEAR_GLASS = 180, 0.08, 4
_LEAST_GLASS = 0.002
_LEAST_INK = 2e-4
_INK_EDGE = 8  # pixels over which a mark fades


@dataclass(frozen=True)
class Ink:
    """A colour of pens and dyes: hue in degrees from ``low`` to ``high``, and at least so saturated and bright."""

    name: str
    low: float
    high: float
    saturation: float
    brightness: float


_INKS = (
    Ink("blue", 190, 250, 0.6, 60),
    Ink("green", 70, 190, 0.4, 40),
    Ink("red", 348, 372, 0.75, 100),
    Ink("yellow", 42, 70, 0.6, 120),
    Ink("violet", 250, 345, 0.9, 60),
)
_DARK, _COLOURLESS = 100, 25  # of black ink: brighter or more coloured than this is none


@dataclass(frozen=True)
class Tissue:
    """Where an overview shows tissue.

    Attributes:
        mask: (height, width).
        inks: colours of marks that look like a pen's or a dye's, and are not in ``mask``.
        ink_share: of the overview that these cover.
    """

    mask: Mask
    inks: tuple[str, ...]
    ink_share: float

    def notes(self) -> list[str]:
        """Return what a person should look at."""
        if not self.inks:
            return []
        colours = " and ".join(self.inks)
        return [f"{self.ink_share:.1%} of it looks like {colours} ink (pen or dye), which is not taken for tissue"]


def tissue_mask(overview: Pixels) -> Mask:
    """Return where an overview (height, width, 3) shows tissue."""
    return find_tissue(overview).mask


def find_tissue(overview: Pixels) -> Tissue:
    """Return where an overview (height, width, 3) shows tissue, and what looks like ink."""
    values = overview.astype(np.float32)
    usable = values.max(axis=-1) > _FILL
    inks = _find_inks(values, usable)
    ink = np.logical_or.reduce(list(inks.values())) if inks else np.zeros(usable.shape, bool)
    smooth = ndimage.uniform_filter(values, (_SMOOTHED, _SMOOTHED, 1), mode="nearest")
    clear = usable & ~ink
    glass, noise = _glass(smooth, clear)
    saturation = _saturation(np.minimum(smooth / glass, 1))
    mask = clear & (saturation > np.clip(noise, _LEAST_SATURATION, _MOST_SATURATION))
    return Tissue(mask, tuple(inks), float(ink.mean()))


def _saturation(values: NDArray[np.float32]) -> NDArray[np.float32]:
    high, low = values.max(axis=-1), values.min(axis=-1)
    saturation: NDArray[np.float32] = (high - low) / np.maximum(high, 1e-6)
    return saturation


def _glass(smooth: NDArray[np.float32], clear: Mask) -> tuple[NDArray[np.float32], float]:
    """Return the colour of the glass, and the saturation that its noise does not reach."""
    neutral = np.full(3, 255, np.float32)
    bright = clear & (smooth.min(axis=-1) > _BRIGHT)
    pixels = smooth[bright]
    pixels = pixels[_saturation(pixels) < _TINT]
    if len(pixels) < _LEAST_GLASS * clear.size:
        return neutral, _LEAST_SATURATION
    grey = pixels.mean(axis=-1)
    level = np.percentile(grey, 99)
    around = pixels[np.abs(grey - level) < _NEAR_GLASS]
    colour: NDArray[np.float32] = np.median(around, axis=0)
    red, green, blue = colour
    if green < min(red, blue) - 2:  # pink or violet is no tint of glass: the slide shows none, but pale tissue
        return neutral, _LEAST_SATURATION
    found = _saturation(np.minimum(around / colour, 1))
    middle = np.median(found)
    return colour, float(middle + 5 * 1.4826 * np.median(np.abs(found - middle)))


def _find_inks(values: NDArray[np.float32], usable: Mask) -> dict[str, Mask]:
    """Return colour of ink -> where it is, with the edges at which it fades."""
    high, low = values.max(axis=-1), values.min(axis=-1)
    chroma = high - low
    hue, saturation = _hue(values, high, chroma), chroma / np.maximum(high, 1)
    found = {}
    for ink in _INKS:
        angle = hue + 360 * (hue < ink.high - 360)
        coloured = usable & (angle >= ink.low) & (angle <= ink.high)
        core = coloured & (saturation > ink.saturation) & (high > ink.brightness)
        found[ink.name] = (core, coloured & (saturation > ink.saturation / 3))
    black = usable & (high < _DARK) & (chroma < _COLOURLESS)
    found["black"] = (black, usable & (chroma < _COLOURLESS) & (high < _BRIGHT))
    return {name: mask for name, pair in found.items() if (mask := _mark(*pair)).any()}


def _mark(core: Mask, faded: Mask) -> Mask:
    """Return marks without single pixels, and with their faded edges."""
    if core.mean() < _LEAST_INK:
        return np.zeros_like(core)
    mark: Mask = ndimage.binary_opening(core, np.ones((3, 3), bool))
    if mark.mean() < _LEAST_INK:
        return np.zeros_like(core)
    wide: Mask = ndimage.binary_dilation(mark, iterations=_INK_EDGE, mask=faded | mark)
    grown: Mask = ndimage.binary_dilation(wide, iterations=_SMOOTHED // 2 + 1)  # what smoothing mixes with it
    return grown


def _hue(values: NDArray[np.float32], high: NDArray[np.float32], chroma: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the hue in degrees, from 0 to 360: red is 0, green 120, blue 240."""
    red, green, blue = values[..., 0], values[..., 1], values[..., 2]
    size = np.maximum(chroma, 1)
    hue = np.where(
        high == red, (green - blue) / size, np.where(high == green, 2 + (blue - red) / size, 4 + (red - green) / size)
    )
    turned: NDArray[np.float32] = (hue * 60) % 360
    return turned
