"""Features as TRIDENT and CLAM write them, and as written here.

HDF5 with the datasets ``features`` (tile, feature) and ``coords`` (tile, 2), upper left corners in pixels of the finest
level. TRIDENT (Zhang et al., arXiv 2502.06750) states tiles at ``coords``, and newer versions the encoder at
``features``; of a slide's encoder, ``features`` is one vector, beside the coordinates of the tiles that it sums up.
CLAM (Lu et al., Nature Biomedical Engineering 2021) writes the same datasets without any attribute. Files written here
add the resolution, the digest of the encoder's weights, and that of how it was built and fed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from oncofed.data.features.stored import Group, Rows, Stored, number_of, stored, text_of, whole
from oncofed.errors import DataError

FEATURES, COORDS = "features", "coords"
PATCH_SIZE, SIZE_LEVEL0 = "patch_size", "patch_size_level0"
MAGNIFICATION0, MAGNIFICATION = "level0_magnification", "target_magnification"
WIDTH0, HEIGHT0 = "level0_width", "level0_height"
ENCODER, DIGEST, RECIPE, MPP, LEVEL = "encoder", "encoder_digest", "encoder_recipe", "mpp", "level"

# Magnifications are rounded in files written here.
_ROUNDED = 0.2


def read(group: Group) -> Stored | None:
    """Return the features; None where another tool wrote the file.

    Raises:
        DataError: its arrays, or what it says of its tiles, do not fit together.
    """
    if FEATURES not in group:
        return None
    features = group[FEATURES]
    places = group.get(COORDS)
    of_tiles = {} if places is None else places.attrs
    attrs = features.attrs
    tile = number_of(of_tiles, PATCH_SIZE) or number_of(attrs, PATCH_SIZE)
    step = number_of(of_tiles, SIZE_LEVEL0)
    _require_agreeing(of_tiles, tile, step)
    width, height = number_of(of_tiles, WIDTH0), number_of(of_tiles, HEIGHT0)
    return stored(
        Rows(features),
        places,
        level=text_of(attrs, LEVEL),
        tool="TRIDENT or CLAM" if step is None else "TRIDENT",
        tile=whole(tile),
        step=step,
        mpp=number_of(attrs, MPP),
        encoder=text_of(attrs, ENCODER),
        digest=text_of(attrs, DIGEST),
        recipe=text_of(attrs, RECIPE),
        slide=(width, height) if width and height else None,
        magnification=number_of(of_tiles, MAGNIFICATION),
    )


def _require_agreeing(of_tiles: Mapping[str, Any], tile: float | None, step: float | None) -> None:
    """Refuse a tile whose two sizes and two magnifications contradict each other."""
    finest, own = number_of(of_tiles, MAGNIFICATION0), number_of(of_tiles, MAGNIFICATION)
    if not (tile and step and finest and own) or math.isclose(step, tile * finest / own, rel_tol=_ROUNDED):
        return
    raise DataError(
        f"its tiles of {tile:g} pixels at {own:g}x would have {tile * finest / own:g} pixels on a slide of {finest:g}x "
        f"({MAGNIFICATION}, {MAGNIFICATION0}), and it says {step:g} ({SIZE_LEVEL0}). Extract them again"
    )
