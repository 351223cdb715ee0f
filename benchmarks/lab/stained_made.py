"""Made tissue of haematoxylin and eosin, with artefacts that slides have."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

Pixels = np.ndarray


class Stain(NamedTuple):
    """Directions of optical density (2, 3), haematoxylin first, amounts of both, and the glass's brightness."""

    directions: tuple[tuple[float, float, float], tuple[float, float, float]]
    amounts: tuple[float, float] = (1.0, 1.0)
    glass: int = 242

    @property
    def vectors(self) -> np.ndarray:
        """Directions as unit vectors."""
        found = np.array(self.directions, float)
        units: np.ndarray = found / np.linalg.norm(found, axis=1, keepdims=True)
        return units


USUAL = Stain(((0.56, 0.72, 0.41), (0.21, 0.80, 0.56)))
# A laboratory with a bluer haematoxylin, a redder eosin and thicker sections.
OTHER = Stain(((0.75, 0.62, 0.22), (0.07, 0.92, 0.38)), (1.35, 0.75))


def amounts(seed: int, size: int = 256, glass: bool = True, nuclei: int | None = None) -> np.ndarray:
    """Return amounts of haematoxylin and eosin of a field, (size, size, 2): nuclei in fibres, at 1 micron a pixel."""
    rng = np.random.default_rng(seed)
    fibres = ndimage.gaussian_filter(rng.normal(size=(size, size)), (1.2, 5)) * 6
    patches = ndimage.gaussian_filter(rng.normal(size=(size, size)), 14) * 14
    eosin = np.clip(0.75 + 0.16 * fibres + 0.22 * patches, 0.08, None)
    haematoxylin = np.full((size, size), 0.06)
    y, x = np.mgrid[:size, :size]
    for _ in range(size * size // 450 if nuclei is None else nuclei):
        cy, cx = rng.uniform(0, size, 2)
        a, b, turn = rng.uniform(3, 5.5), rng.uniform(2.2, 4), rng.uniform(0, np.pi)
        lo_y, hi_y, lo_x, hi_x = (int(np.clip(v, 0, size)) for v in (cy - 8, cy + 9, cx - 8, cx + 9))
        dy, dx = y[lo_y:hi_y, lo_x:hi_x] - cy, x[lo_y:hi_y, lo_x:hi_x] - cx
        u, v = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
        inside = 1 / (1 + np.exp(((u / a) ** 2 + (v / b) ** 2 - 1) * 4))
        part = haematoxylin[lo_y:hi_y, lo_x:hi_x]
        chromatin = rng.uniform(0.9, 1.5) * (1 + 0.25 * rng.normal(size=part.shape))
        np.maximum(part, inside * chromatin, out=part)
        eosin[lo_y:hi_y, lo_x:hi_x] *= 1 - 0.7 * inside
    found = np.stack([haematoxylin, eosin], axis=-1)
    if glass:
        hole = ndimage.gaussian_filter(rng.normal(size=(size, size)), 20)
        found[hole > np.quantile(hole, 0.85)] = 0
    soft: np.ndarray = ndimage.gaussian_filter(found, (0.6, 0.6, 0))
    return soft


def field(seed: int, stain: Stain = USUAL, size: int = 256, glass: bool = True) -> Pixels:
    """Return a field of tissue, (size, size, 3) uint8."""
    return painted(amounts(seed, size, glass), stain, seed)


def painted(found: np.ndarray, stain: Stain = USUAL, seed: int = 0) -> Pixels:
    """Return amounts (row, column, 2) as a scanner sees them, with its noise."""
    density = found * np.array(stain.amounts) @ stain.vectors
    noise = np.random.default_rng(seed).normal(0, 1.5, density.shape)
    pixels: np.ndarray = np.clip(np.rint(stain.glass * np.exp(-density) + noise), 0, 255).astype(np.uint8)
    return pixels
