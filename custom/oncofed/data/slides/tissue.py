"""Find tissue: more saturated than glass, and not ink.

A threshold of the whole slide's saturation (Otsu 1979) may fall between pen marks and pale tissue, or between two
stains, and lose the paler one; here it comes from the glass. Inks have hues that stains with haematoxylin, eosin or DAB
do not have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage

from oncofed.data.slides.levels import Pixels

Mask = NDArray[np.bool_]

_FILL = 20  # the scanner's black in areas that it skipped
_SMOOTHED = 5
_LEAST_SATURATION, _MOST_SATURATION = 0.025, 0.06
# Limits for bright pixels: glass, and anything as pale.
_BRIGHT, _TINT, _NEAR_GLASS = 180, 0.08, 4
_LEAST_GLASS, _GLASS_SAMPLES = 0.002, 200_000
_LEAST_INK = 2e-4
_MARK = 12.0  # microns; ink is at least so wide, and a dark nucleus is not
_INK_EDGE = 8  # width in pixels over which a mark fades


@dataclass(frozen=True)
class Ink:
    """A colour of pens and dyes.

    Hue in degrees from ``low`` to ``high``, and its least saturation and brightness.
    """

    name: str
    low: float
    high: float
    saturation: float
    brightness: float

    def holds(self, hue: NDArray[np.float32]) -> Mask:
        """Return which hues are this ink's."""
        angle = hue + 360 * (hue < self.high - 360)
        mask: Mask = (angle >= self.low) & (angle <= self.high)
        return mask


_INKS = (
    Ink("blue", 190, 250, 0.6, 60),
    Ink("green", 70, 190, 0.4, 40),
    Ink("red", 348, 372, 0.75, 100),
    Ink("yellow", 42, 70, 0.6, 120),
    Ink("violet", 250, 345, 0.9, 60),
)
_DARK, _COLOURLESS = 100, 25  # upper limits of brightness and colour of black ink


@dataclass(frozen=True)
class Tissue:
    """Where an overview shows tissue.

    Attributes:
        mask: (height, width).
        inks: colours of marks like those of pens or dyes, which are not in ``mask``.
        ink: (height, width), where these are.
    """

    mask: Mask
    inks: tuple[str, ...]
    ink: Mask

    @property
    def ink_share(self) -> float:
        """Share of the overview that ink covers."""
        return float(self.ink.mean())

    def notes(self) -> list[str]:
        """Return notes for people."""
        if not self.inks:
            return []
        colours = " and ".join(self.inks)
        return [f"{self.ink_share:.1%} of it looks like {colours} ink (pen or dye), which is not taken for tissue"]


def tissue_mask(overview: Pixels) -> Mask:
    """Return the tissue of an overview (height, width, 3)."""
    return find_tissue(overview).mask


def find_tissue(overview: Pixels, mpp: float | None = None) -> Tissue:
    """Find tissue and ink in an overview.

    Args:
        overview: (height, width, 3).
        mpp: microns per pixel of it; None: too coarse for nuclei.
    """
    planes = _Planes.of(overview)
    usable = planes.high > _FILL
    inks = _find_inks(planes, usable, max(1, int(_MARK / mpp / 2)) if mpp else 1)
    clear = usable & ~np.logical_or.reduce(list(inks.values())) if inks else usable
    smooth = np.asarray(Image.fromarray(overview).filter(ImageFilter.BoxBlur(_SMOOTHED // 2)))
    glass, noise = _glass(smooth, clear)
    # Each channel as a share of the glass, in steps of uint16, by a table.
    shares = [np.minimum(np.arange(256) / level, 1) * 65_535 for level in glass]
    parts = [share.astype(np.uint16)[smooth[..., n]] for n, share in enumerate(shares)]
    high, low = np.maximum(np.maximum(*parts[:2]), parts[2]), np.minimum(np.minimum(*parts[:2]), parts[2])
    saturated = (high - low) > high * np.float32(np.clip(noise, _LEAST_SATURATION, _MOST_SATURATION))
    return Tissue(clear & saturated, tuple(inks), usable & ~clear)


def is_ink(pixels: Pixels) -> Mask:
    """Return which of (pixel, 3) have the colour of an ink.

    Pixel by pixel, without regard to what lies around it.
    """
    planes = _Planes.of(pixels[None])
    found = (planes.high < _DARK) & (planes.chroma < _COLOURLESS)
    coloured = np.flatnonzero(planes.saturated(min(ink.saturation for ink in _INKS)))
    hue = planes.hue(coloured)
    for ink in _INKS:
        core = np.zeros(found.shape, bool)
        core.ravel()[coloured[ink.holds(hue)]] = True
        found |= core & planes.saturated(ink.saturation) & (planes.high > ink.brightness)
    mask: Mask = found[0]
    return mask


@dataclass(frozen=True)
class _Planes:
    """An overview's channels, uint8, with their maximum and range."""

    red: NDArray[np.uint8]
    green: NDArray[np.uint8]
    blue: NDArray[np.uint8]
    high: NDArray[np.uint8]
    chroma: NDArray[np.uint8]

    @classmethod
    def of(cls, overview: Pixels) -> _Planes:
        red, green, blue = (np.ascontiguousarray(overview[..., n]) for n in range(3))
        high = np.maximum(np.maximum(red, green), blue)
        return cls(red, green, blue, high, high - np.minimum(np.minimum(red, green), blue))

    def saturated(self, least: float) -> Mask:
        """Return pixels with a saturation above ``least``."""
        mask: Mask = self.chroma > self.high * np.float32(least)
        return mask

    def hue(self, where: NDArray[np.intp]) -> NDArray[np.float32]:
        """Return the hue in degrees of pixels at flat places.

        Red is 0, green 120, blue 240.
        """
        red, green, blue, high, chroma = (
            plane.ravel()[where].astype(np.float32)
            for plane in (self.red, self.green, self.blue, self.high, self.chroma)
        )
        size = np.maximum(chroma, 1)
        hue = np.where(
            high == red,
            (green - blue) / size,
            np.where(high == green, 2 + (blue - red) / size, 4 + (red - green) / size),
        )
        turned: NDArray[np.float32] = (hue * 60) % 360
        return turned


def extremes(pixels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the lowest and the highest of each pixel's three values.

    NumPy's own reduction over so short an axis takes ten times as long.
    """
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    return np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)


def _saturation(values: NDArray[np.float32]) -> NDArray[np.float32]:
    low, high = extremes(values)
    saturation: NDArray[np.float32] = (high - low) / np.maximum(high, 1e-6)
    return saturation


def _glass(smooth: Pixels, clear: Mask) -> tuple[NDArray[np.float32], float]:
    """Return the glass's colour, and its highest saturation."""
    neutral = np.full(3, 255, np.float32)
    step = max(1, math.isqrt(clear.size // _GLASS_SAMPLES))  # a sample of pixels suffices
    pixels = smooth[::step, ::step][clear[::step, ::step]].astype(np.float32)
    count = len(pixels)
    pixels = pixels[(extremes(pixels)[0] > _BRIGHT) & (_saturation(pixels) < _TINT)]
    if len(pixels) <= _LEAST_GLASS * count:
        return neutral, _LEAST_SATURATION
    grey = pixels.mean(axis=-1)
    level = np.percentile(grey, 99)
    around = pixels[np.abs(grey - level) < _NEAR_GLASS]
    colour: NDArray[np.float32] = np.median(around, axis=0)
    red, green, blue = colour
    if green < min(red, blue) - 2:  # glass is not pink or violet: the slide shows only pale tissue
        return neutral, _LEAST_SATURATION
    found = _saturation(np.minimum(around / colour, 1))
    middle = np.median(found)
    return colour, float(middle + 5 * 1.4826 * np.median(np.abs(found - middle)))


def _find_inks(planes: _Planes, usable: Mask, reach: int) -> dict[str, Mask]:
    """Return colour of ink -> its pixels, with fading edges.

    Args:
        planes: of the overview.
        usable: which pixels count.
        reach: half the least width of a mark in pixels.
    """
    found = {}
    least = min(ink.saturation for ink in _INKS)
    coloured = np.flatnonzero(usable & planes.saturated(least))
    if len(coloured) >= _LEAST_INK * usable.size:
        hue = planes.hue(coloured)
        for ink in _INKS:
            core = np.zeros(usable.shape, bool)
            core.ravel()[coloured[ink.holds(hue)]] = True
            core &= planes.saturated(ink.saturation) & (planes.high > ink.brightness)
            if (mark := _mark(core, reach)) is not None:
                found[ink.name] = _with_edges(mark, _faded(planes, ink))
    black = usable & (planes.high < _DARK) & (planes.chroma < _COLOURLESS)
    if (mark := _mark(black, reach)) is not None:
        found["black"] = _with_edges(mark, usable & (planes.chroma < _COLOURLESS) & (planes.high < _BRIGHT))
    return found


def _faded(planes: _Planes, ink: Ink) -> Mask:
    """Return the pixels with an ink's hue, also pale ones."""
    faded = np.zeros(planes.high.shape, bool)
    pale = np.flatnonzero((planes.high > _FILL) & planes.saturated(ink.saturation / 3))
    faded.ravel()[pale[ink.holds(planes.hue(pale))]] = True
    return faded


def _mark(core: Mask, reach: int) -> Mask | None:
    """Return marks without what is narrower; None: hardly any."""
    if np.count_nonzero(core) < _LEAST_INK * core.size:
        return None
    mark: Mask = ndimage.binary_opening(core, np.ones((3, 3), bool), iterations=reach)
    return mark if np.count_nonzero(mark) >= _LEAST_INK * core.size else None


def _with_edges(mark: Mask, faded: Mask) -> Mask:
    """Return marks with their smoothed edges."""
    wide: Mask = ndimage.binary_dilation(mark, iterations=_INK_EDGE, mask=faded | mark)
    grown: Mask = ndimage.binary_dilation(wide, iterations=_SMOOTHED // 2 + 1)
    return grown
