"""Look at a slide's tiles at about one micron a pixel: their sharpness, and the colours of their tissue."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from oncofed.data.slides import TileReader
from oncofed.data.slides.levels import Pixels, TileSpec
from oncofed.data.slides.tile_quality import BLUR_MPP, BLUR_SIDE, flag_of, is_blurred
from oncofed.data.stain.sketch import SLIDE_COLOURS, sketch

# Tiles from which a slide's stain is told.
_OF_STAIN = 256
# A coarser slide shows no detail that could be sharp.
_COARSEST = 1.5
_THREADS = 4


@dataclass(frozen=True)
class Looks:
    """What tiles look like.

    Attributes:
        flags: the bit of "blur" where a tile is, (tile,) uint8.
        colours: sketch of the slide's tissue; None: too little.
    """

    flags: NDArray[np.uint8]
    colours: str | None


def look_at_tiles(path: Path, spec: TileSpec, tiles: TileReader, corners: NDArray[np.float64]) -> Looks:
    """Return what a slide's tiles look like.

    Args:
        path: of the slide.
        spec: how it is cut; without ``quality`` only some tiles are read, for their colours.
        tiles: reads it.
        corners: of its tiles with tissue, (tile, 2), x and y in pixels of the finest level.
    """
    finest = tiles.levels[0].mpp
    mpp = max(BLUR_MPP, finest)
    side = max(8, min(BLUR_SIDE, round(spec.size * spec.mpp / mpp)))
    places = np.rint(corners + (tiles.step - side * mpp / finest) / 2).astype(int).clip(min=0)
    of_stain = set(np.linspace(0, len(corners) - 1, min(_OF_STAIN, len(corners))).astype(int).tolist())
    wanted = range(len(corners)) if spec.quality != "none" and finest <= _COARSEST else sorted(of_stain)
    blurred, seen = np.zeros(len(corners), np.float32), {}

    def look(number: int) -> tuple[int, bool, Pixels | None]:
        pixels = coarse.read(int(places[number, 0]), int(places[number, 1]))
        sharp = spec.quality == "none" or finest > _COARSEST or not is_blurred(pixels)
        return number, not sharp, pixels if number in of_stain else None

    with (
        TileReader(path, TileSpec(side, mpp)) as coarse,
        ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool,
    ):
        for number, is_blur, pixels in pool.map(look, wanted):
            blurred[number] = is_blur
            if pixels is not None:
                seen[number] = pixels.reshape(-1, 3)
    clear = [pixels for number, pixels in seen.items() if not blurred[number]] or list(seen.values())
    return Looks(flag_of("blur", blurred), sketch(np.concatenate(clear), SLIDE_COLOURS) or None)
