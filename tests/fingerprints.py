"""Made datasets: spacings and sizes like those of public collections, for comparing plans."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Fingerprint:
    """A dataset's grids, drawn from stated ranges.

    Attributes:
        name: what it is like.
        spacing: range of each axis in mm, as (low, mode, high) of a triangular distribution; the first two axes of
            volumes are drawn together, as a scanner's pixels are square.
        shape: range of each axis in voxels; of the axis across slices in mm over the case's spacing if ``extent``.
        cases: number of patients.
        channels: of an image.
        classes: with background.
        extent: the last axis' range is in mm.
    """

    name: str
    spacing: tuple[tuple[float, float, float], ...]
    shape: tuple[tuple[float, float, float], ...]
    cases: int
    channels: int
    classes: int
    extent: bool = False

    def grids(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return spacings in mm and sizes in voxels, (case, axis): right, anterior, superior; or right, down."""
        rng = np.random.default_rng(20260101)
        spacing = np.stack([_drawn(rng, bounds, self.cases) for bounds in self.spacing], 1)
        shape = np.stack([_drawn(rng, bounds, self.cases) for bounds in self.shape], 1)
        if len(self.spacing) == 3:
            spacing[:, 1] = spacing[:, 0]
            if self.shape[0] == self.shape[1]:
                shape[:, 1] = shape[:, 0]
            if self.extent:
                shape[:, 2] /= spacing[:, 2]
        return spacing, np.rint(shape).astype(np.int64)


def _drawn(rng: np.random.Generator, bounds: tuple[float, float, float], cases: int) -> NDArray[np.float64]:
    low, mode, high = bounds
    return rng.triangular(low, mode, high, cases) if high > low else np.full(cases, float(mode))


def _same(value: float) -> tuple[float, float, float]:
    return (value, value, value)


_CT = (_same(512), _same(512))
FINGERPRINTS = (
    Fingerprint("crops of a brain", (_same(1),) * 3, ((31, 35, 43), (40, 50, 59), (24, 36, 47)), 200, 1, 3),
    Fingerprint("brain tumours", (_same(1),) * 3, ((125, 138, 150), (150, 172, 185), (125, 138, 155)), 400, 4, 4),
    Fingerprint("liver", ((0.55, 0.76, 1.0),) * 2 + ((0.7, 1.0, 1.6),), (*_CT, (350, 470, 800)), 131, 1, 3, True),
    Fingerprint(
        "prostate", ((0.6, 0.62, 0.75),) * 2 + ((3.0, 3.6, 4.0),), (_same(320), _same(320), (15, 20, 24)), 32, 2, 3
    ),
    Fingerprint("left atrium", (_same(1.25),) * 2 + (_same(1.37),), (_same(320), _same(320), (90, 115, 130)), 40, 1, 2),
    Fingerprint("lung", ((0.6, 0.78, 0.98),) * 2 + ((0.7, 1.25, 2.5),), (*_CT, (260, 330, 420)), 63, 1, 2, True),
    Fingerprint("pancreas", ((0.6, 0.8, 0.98),) * 2 + ((0.7, 2.5, 5.0),), (*_CT, (180, 235, 400)), 281, 1, 3, True),
    Fingerprint("spleen", ((0.61, 0.79, 0.98),) * 2 + ((1.5, 5.0, 8.0),), (*_CT, (180, 400, 500)), 41, 1, 2, True),
    Fingerprint(
        "cine of a heart",
        ((1.4, 1.56, 1.7),) * 2 + ((5, 10, 10),),
        ((180, 200, 230), (210, 240, 270), (8, 9, 14)),
        200,
        1,
        4,
    ),
    Fingerprint(
        "vessels of a liver", ((0.57, 0.8, 0.98),) * 2 + ((0.8, 5.0, 8.0),), (*_CT, (150, 220, 420)), 303, 1, 3, True
    ),
    Fingerprint(
        "whole body",
        ((0.9, 1.5, 2.0),) * 2 + ((1.4, 1.5, 3.0),),
        ((220, 260, 330),) * 2 + ((400, 900, 1500),),
        500,
        1,
        20,
        True,
    ),
    Fingerprint("flat images", (_same(1),) * 2, ((440, 500, 620), (560, 700, 760)), 80, 3, 2),
)
