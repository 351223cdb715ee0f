"""Whether a file's features can be learned from."""

from __future__ import annotations

import math

import numpy as np

from oncofed.data.features.stored import Stored
from oncofed.data.features.survey import SAME_RESOLUTION
from oncofed.errors import DataError

# Microns per pixel times magnification: 10 by convention; scanners' and TRIDENT's 20x are 0.3 to 0.6 microns.
_LOW, _HIGH = 6.0, 12.8
_LEAST_MAGNIFICATION = 5


def require_usable(found: Stored, size: tuple[int, int] | None = None) -> None:
    """Refuse features that are no features of a slide; all of them are read, in parts.

    Args:
        found: the features, completed by what is known of their slide.
        size: width and height of the slide's finest level in pixels; None: what the file says, if anything.

    Raises:
        DataError: a number is not finite, all are the same, tiles lie twice or off the slide, or the stated resolution
            is not the slide's.
    """
    _require_numbers(found)
    if found.level == "tile":
        _require_resolution(found)
        _require_magnification(found)
        _require_places(found, size or found.slide)


def _require_numbers(found: Stored) -> None:
    bad, blank, low, high = 0, 0, math.inf, -math.inf
    for stored in found.rows.parts():
        part = stored.astype(np.float32, copy=False)  # halves are compared ten times slower
        least, most = float(part.min()), float(part.max())  # NaN if one is
        if math.isfinite(least) and math.isfinite(most):
            low, high = min(low, least), max(high, most)
            blank += int((~part.any(axis=1)).sum())
        else:
            bad += int((~np.isfinite(part)).any(axis=1).sum())
    if bad:
        raise DataError(
            f"{bad:,} of its {len(found.rows):,} vectors hold values that are not finite (NaN or infinity). Extract "
            "them again"
        )
    if blank:
        raise DataError(
            f"{blank:,} of its {len(found.rows):,} vectors hold zeros alone: parts of the file are missing, or the "
            "extraction was interrupted. Copy it or extract them again"
        )
    if low == high:
        raise DataError(f"all its features are {low:g}: nothing was extracted. Extract them again")


def _require_resolution(found: Stored) -> None:
    """Refuse a stated resolution that is not that of the slide."""
    if not (found.step and found.finest and found.tile and found.mpp):
        return
    measured = found.step * found.finest / found.tile
    if not math.isclose(measured, found.mpp, rel_tol=SAME_RESOLUTION):
        raise DataError(
            f"its tiles have {measured:.3g} microns a pixel by the slide's resolution, and {found.mpp:.3g} are stated. "
            "Correct the one that is wrong"
        )


def _require_magnification(found: Stored) -> None:
    """Refuse a magnification that the stated resolution contradicts."""
    times = found.magnification or 0
    if found.mpp and times >= _LEAST_MAGNIFICATION and not _LOW <= times * found.mpp <= _HIGH:
        raise DataError(
            f"its tiles are of {times:g}x by the file, about {10 / times:.3g} microns a pixel, and {found.mpp:.3g} are "
            "stated. Correct the one that is wrong"
        )


def _require_places(found: Stored, size: tuple[float, float] | None) -> None:
    if found.places is None:
        return
    places = found.pixels()
    distinct = len(np.unique(found.places, axis=0))
    if distinct < len(found.places):
        twice = len(found.places) - distinct
        raise DataError(f"{twice:,} of its {len(found.places):,} tiles lie where another one does. Extract them again")
    if places is None:
        if found.places.min() < 0:
            raise DataError("its coordinates lie off the slide: one is negative. Extract them again")
        return
    off = (places < 0).any(axis=1)
    if size is not None:
        off |= (places >= np.asarray(size)).any(axis=1)
    if off.any():
        slide = "" if size is None else f" of {size[0]:.0f} x {size[1]:.0f} pixels"
        x, y = places[off][0].tolist()
        raise DataError(
            f"{int(off.sum()):,} of its {len(places):,} tiles lie off the slide{slide}, such as that at {x}, {y}: "
            "the features are of another slide, or its coordinates are in another unit, expected pixels of the finest "
            "level"
        )
