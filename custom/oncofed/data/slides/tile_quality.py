"""Flag tiles with pen, fold, blur or bubble, by classical measures.

Pen, folds and bubbles are looked for in the slide's overview, blur in tiles at about one micron a pixel. A fold is as
thick as two layers of the slide's tissue of the same colour (after Palokangas et al., Biomedical Optics 2007, and
Kothari et al., Journal of Pathology Informatics 2013); a bubble has a grey rim that encloses it; blur lacks the finest
of the tissue's detail (after Pech-Pacheco et al., ICPR 2000).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from oncofed.data.slides.levels import Pixels
from oncofed.data.slides.tissue import Mask, Tissue, extremes

FLAGS = ("pen", "fold", "blur", "bubble")
# Share of a slide's tiles from which it is called poor.
_POOR = 0.3
# Share of a tile that shows it.
_LEAST_SHARE = {"pen": 0.02, "fold": 0.1, "bubble": 0.1}

# Folds: microns over which nuclei are averaged away, thickness in layers of the usual tissue, least size in microns.
_FOLD_SMOOTHED, _LAYERS, _FOLD_SIDE = 24.0, 1.7, 40.0
# Kinds of colour that are told apart, and the least share of the tissue of which one has a thickness of its own.
_COLOURS, _LEAST_ALIKE = 25, 0.005
_LEAST_DENSITY = 0.25  # natural, of all colours, from which a pixel is darker than pale tissue ever is in one layer

# Bubbles: the rim is grey (chroma over brightness) and darker than glass, and encloses this many times its own area.
_GREY, _RIM_LIGHT, _RIM_DARK, _GAP = 0.12, 0.85, 40, 12.0
_ENCLOSED, _BUBBLE_SIDE = 1.6, 60.0

# Blur: looked at in a square of the tile, of this many pixels of one micron.
BLUR_MPP, BLUR_SIDE = 1.0, 128
_LEAST_TISSUE, _LEAST_SHARPNESS, _LEAST_STRUCTURE = 0.1, 0.2, 1.5


def find_artefacts(overview: Pixels, tissue: Tissue, mpp: float) -> Mapping[str, Mask]:
    """Find pen, folds and bubbles in an overview.

    Args:
        overview: (height, width, 3).
        tissue: as found in it.
        mpp: microns per pixel of the overview.

    Returns:
        Flag -> mask (height, width).
    """
    density = -np.log((overview.astype(np.float32) + 1) / 245)
    bubble = _bubbles(overview, mpp)
    return {"pen": tissue.ink & ~bubble, "fold": _folds(density, tissue.mask & ~bubble, mpp), "bubble": bubble}


def flag_of(name: str, share: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return the flag's bit of tiles that show an artefact, (tile,).

    Args:
        name: of the flag.
        share: of each tile that shows it; of blur 0 or 1.
    """
    found: NDArray[np.uint8] = np.where(share >= _LEAST_SHARE.get(name, 1), 1 << FLAGS.index(name), 0).astype(np.uint8)
    return found


def is_blurred(pixels: Pixels) -> bool:
    """Return whether tissue is out of focus.

    Where there is hardly any tissue, or no detail in it at all, nothing is said.

    Args:
        pixels: (height, width, 3) at about one micron a pixel.
    """
    grey = pixels.mean(axis=-1, dtype=np.float32)
    low, high = extremes(pixels)
    chroma = high.astype(np.int16) - low
    tissue = ndimage.binary_erosion((chroma > 20) & (grey > 20), iterations=2)
    if tissue.mean() < _LEAST_TISSUE:
        return False
    # Three scales: below the first is the camera's noise.
    fine, middle, coarse = (ndimage.gaussian_filter(grey, sigma) for sigma in (1.0, 2.0, 8.0))
    detail, structure = (fine - middle)[tissue], (middle - coarse)[tissue]
    if structure.std() < _LEAST_STRUCTURE:
        return False
    return bool(detail.std() < _LEAST_SHARPNESS * structure.std())


def _folds(density: NDArray[np.float32], tissue: Mask, mpp: float) -> Mask:
    """Return where tissue is as thick as two layers of the slide's tissue of the same colour.

    Of the same colour, since epithelium and keratin are denser than connective tissue in one layer already.
    """
    if not tissue.any():
        return np.zeros(tissue.shape, bool)
    side = max(1, round(_FOLD_SMOOTHED / mpp))
    red, green, blue = (ndimage.uniform_filter(density[..., n], side) for n in range(3))
    total = red + green + blue
    # Which stain it is shows in how much of the red it takes: haematoxylin most, eosin next to nothing.
    share = red / np.maximum(total, 1e-6)
    dense, colour = total[tissue], (share[tissue] * _COLOURS).astype(int).clip(0, _COLOURS - 1)
    usual = np.full(_COLOURS, np.median(dense))
    for number in np.flatnonzero(np.bincount(colour) >= _LEAST_ALIKE * len(colour)):
        usual[number] = np.median(dense[colour == number])
    one_layer = np.interp(share, (np.arange(_COLOURS) + 0.5) / _COLOURS, np.maximum(usual, _LEAST_DENSITY))
    thick = tissue & (total > _LAYERS * one_layer) & (total > 3 * _LEAST_DENSITY)
    return _larger(thick, _FOLD_SIDE / mpp)


def _bubbles(overview: Pixels, mpp: float) -> Mask:
    """Return grey rims that enclose something, with what they enclose."""
    low, high = extremes(overview)
    glass = max(float(np.percentile(high, 95)), 1.0)
    grey = (high - low) < _GREY * high
    rim = grey & (high < _RIM_LIGHT * glass) & (high > _RIM_DARK)
    gap = max(1, round(_GAP / mpp / 2))
    closed = ndimage.binary_closing(np.pad(rim, gap + 1), iterations=gap)[gap + 1 : -gap - 1, gap + 1 : -gap - 1]
    pieces = ndimage.label(closed, np.ones((3, 3), bool))[0]
    found = np.zeros(rim.shape, bool)
    for number, box in enumerate(ndimage.find_objects(pieces), start=1):
        if box is None or min(part.stop - part.start for part in box) < _BUBBLE_SIDE / mpp:
            continue
        own = pieces[box] == number
        filled = ndimage.binary_fill_holes(own)
        if filled.sum() > _ENCLOSED * own.sum():
            found[box] |= filled
    return found


def _larger(mask: Mask, side: float) -> Mask:
    """Return the pieces of a mask that are at least so long."""
    pieces, count = ndimage.label(mask)
    if not count:
        return mask
    long = [max(part.stop - part.start for part in box) >= side for box in ndimage.find_objects(pieces)]
    kept: Mask = np.concatenate([[False], long])[pieces]
    return kept


def count_flags(flags: NDArray[np.uint8]) -> dict[str, int]:
    """Return flag -> tiles that have it.

    Args:
        flags: (tile,), a bit for each of ``FLAGS``.
    """
    return {name: int((flags >> place & 1).sum()) for place, name in enumerate(FLAGS)}


def flag_shares(quality: Mapping[str, int]) -> dict[str, float]:
    """Return flag -> share of a slide's tiles that have it.

    Args:
        quality: of a registered slide: ``tiles``, and those of each flag.
    """
    return {name: quality.get(name, 0) / max(quality.get("tiles", 0), 1) for name in FLAGS}


def quality_remarks(of_slides: Sequence[Mapping[str, int]]) -> list[str]:
    """Return in words how good the tiles of a site's slides are; nothing where none were looked at."""
    if not of_slides:
        return []
    total = sum(quality["tiles"] for quality in of_slides)
    shares = [f"{name} {sum(quality[name] for quality in of_slides) / max(total, 1):.1%}" for name in FLAGS]
    poor = sum(max(flag_shares(quality).values()) > _POOR for quality in of_slides)
    slides = f"; on {poor} of {len(of_slides)} slides one of these is on more than {_POOR:.0%}" if poor else ""
    return [f"tiles of slides: {total:,} with tissue, of which {', '.join(shares)}{slides}"]
