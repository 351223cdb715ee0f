"""Estimate a slide's stain from the colours of its tissue.

Of all its tiles together: a tile alone may show one stain only, or hardly any tissue.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from oncofed.data.stain.colours import to_lab
from oncofed.data.stain.sketch import LEAST_DENSITY, Colours, density_of

Numbers = NDArray[np.float64]

# With fewer, an estimate says more about the sample than about the stain.
LEAST_COLOURS = 200
_TAIL = 1.0  # percent of the angles, and of the amounts, that count as outliers (Macenko et al., ISBI 2009)
_LEAST_ANGLE, _LEAST_SHARE = 8.0, 0.05
# Ruifrok and Johnston, 2001: haematoxylin and eosin, for tissue that shows one of both alone.
_USUAL = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]])
_SPARSITY, _ROUNDS, _VAHADANE_COLOURS = 0.1, 60, 4096


def macenko(pixels: Colours) -> Numbers | None:
    """Estimate stains by the extreme directions of optical density.

    Macenko et al., ISBI 2009.

    Args:
        pixels: (pixel, 3) of tissue.

    Returns:
        In the order of ``columns.MACENKO``; None: too little tissue.
    """
    density = _thick(pixels)
    if len(density) < LEAST_COLOURS:
        return None
    plane = np.linalg.eigh(np.cov(density.T))[1][:, [2, 1]]
    # Signs of eigenvectors are arbitrary; angles are counted from the tissue's mean.
    plane = plane * np.where(density.mean(axis=0) @ plane < 0, -1, 1)
    angles = np.arctan2(density @ plane[:, 1], density @ plane[:, 0])
    ends = np.percentile(angles, (_TAIL, 100 - _TAIL))
    vectors = np.stack([np.cos(ends), np.sin(ends)], axis=1) @ plane.T
    return _with_amounts(vectors, density)


def vahadane(pixels: Colours) -> Numbers | None:
    """Estimate stains by sparse non-negative factors.

    Vahadane et al., IEEE Transactions on Medical Imaging 2016: each pixel is few stains, and stains only absorb.

    Args:
        pixels: (pixel, 3) of tissue.

    Returns:
        In the order of ``columns.MACENKO``; None: too little tissue.
    """
    start = macenko(pixels)
    if start is None:
        return None
    density = _thick(pixels)
    sample = density[:: max(1, len(density) // _VAHADANE_COLOURS)].clip(min=0)
    vectors = _unit(start[:6].reshape(2, 3).clip(min=1e-3))
    for _ in range(_ROUNDS):
        amounts = _sparse(sample, vectors)
        # The vectors that fit best, where stains only absorb (Lee and Seung, Nature 1999).
        for _ in range(5):
            change = (amounts.T @ sample) / (amounts.T @ amounts @ vectors + 1e-9)
            vectors = vectors * change
        vectors = _unit(vectors)
    return _with_amounts(vectors, density)


def lab_moments(pixels: Colours) -> Numbers | None:
    """Return mean and deviation of the tissue's CIELAB.

    Reinhard et al., IEEE Computer Graphics and Applications 2001.

    Returns:
        In the order of ``columns.LAB``; None: too little tissue.
    """
    if len(pixels) < LEAST_COLOURS:
        return None
    lab = to_lab(torch.from_numpy(pixels.astype(np.float64)))
    return torch.cat([lab.mean(0), lab.std(0, correction=0)]).numpy()


def _thick(pixels: Colours) -> Numbers:
    """Return the densities of pixels with enough stain to tell its direction.

    By the mean of the channels, where Macenko et al. ask for each of them: a pure eosin takes hardly any red.
    """
    density = density_of(pixels)
    thick: Numbers = density[density.mean(axis=1) > LEAST_DENSITY]
    return thick


def _unit(vectors: Numbers) -> Numbers:
    units: Numbers = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=1e-9)
    return units


def _sparse(density: Numbers, vectors: Numbers) -> Numbers:
    """Return amounts (pixel, 2) of two stains, none below zero, with a penalty on each.

    Exact for two: both, or the one of them that fits better alone.
    """
    gram, seen = vectors @ vectors.T, density @ vectors.T - _SPARSITY / 2
    both = seen @ np.linalg.inv(gram + 1e-9 * np.eye(2))
    alone = seen.clip(min=0)
    first = alone[:, 0] >= alone[:, 1]
    one = np.stack([alone[:, 0] * first, alone[:, 1] * ~first], axis=1)
    found: Numbers = np.where((both >= 0).all(axis=1, keepdims=True), both, one)
    return found


def _with_amounts(vectors: Numbers, density: Numbers) -> Numbers:
    """Return two stains, haematoxylin first, with their amounts."""
    vectors = _unit(vectors * np.where(vectors.sum(axis=1, keepdims=True) < 0, -1, 1))
    # Haematoxylin takes more of the red.
    vectors = vectors[np.argsort(-vectors[:, 0])]
    apart = np.degrees(np.arccos(np.clip(vectors[0] @ vectors[1], -1, 1)))
    if apart < _LEAST_ANGLE:
        vectors = _unit(_USUAL)
    most = np.percentile(density @ np.linalg.pinv(vectors), 100 - _TAIL, axis=0)
    # Hardly any of one stain: its amount is noise, by which nothing is to be divided.
    return np.concatenate([vectors.ravel(), most.clip(min=_LEAST_SHARE * max(most.max(), 1.0))])
