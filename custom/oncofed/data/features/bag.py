"""What a file of features says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class FeatureBag:
    """One slide's features.

    Attributes:
        features: (tile, feature) float16 or float32; one row where an encoder describes the whole slide.
        places: upper left corner of each tile, (tile, 2) int32, x then y, in pixels of the slide's finest level; None:
            the file does not say, or a row describes the whole slide.
        step: side of a tile in pixels of the finest level; None: unknown.
        tile: side of a tile in pixels, as the encoder saw it; None: unknown.
        mpp: microns per pixel of a tile; None: unknown.
        encoder: the encoder's name as the file has it; None: the file does not say.
        digest: of the encoder's weights; None: the file does not say.
        recipe: of how the encoder was built and fed, see ``EncoderEntry.recipe``; None: the file does not say.
        level: what a row describes, "tile" or "slide".
    """

    features: NDArray[np.floating]
    places: NDArray[np.int32] | None = None
    step: float | None = None
    tile: int | None = None
    mpp: float | None = None
    encoder: str | None = None
    digest: str | None = None
    recipe: str | None = None
    level: str = "tile"
