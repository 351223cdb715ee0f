"""Features as TRIDENT and CLAM write them, and as written here.

HDF5 with the datasets ``features`` (tile, feature) and ``coords`` (tile, 2), upper left corners in pixels of the finest
level. TRIDENT (Zhang et al., arXiv 2502.06750) states tiles at ``coords``, and newer versions the encoder at
``features``; of a slide's encoder, ``features`` is one vector, beside the coordinates of the tiles that it sums up.
CLAM (Lu et al., Nature Biomedical Engineering 2021) writes the same datasets without any attribute. Files written here
add the resolution, the digest of the encoder's weights, and that of how it was built and fed.
"""

from __future__ import annotations

from oncofed.data.features.stored import Group, Rows, Stored, number_of, stored, text_of, whole

FEATURES, COORDS = "features", "coords"
PATCH_SIZE, SIZE_LEVEL0 = "patch_size", "patch_size_level0"
MAGNIFICATION0, MAGNIFICATION = "level0_magnification", "target_magnification"
ENCODER, DIGEST, RECIPE, MPP, LEVEL = "encoder", "encoder_digest", "encoder_recipe", "mpp", "level"


def read(group: Group) -> Stored | None:
    """Return the features; None where another tool wrote the file.

    Raises:
        DataError: its arrays do not fit together.
    """
    if FEATURES not in group:
        return None
    features = group[FEATURES]
    places = group.get(COORDS)
    of_tiles = {} if places is None else places.attrs
    attrs = features.attrs
    tile = number_of(of_tiles, PATCH_SIZE) or number_of(attrs, PATCH_SIZE)
    step = number_of(of_tiles, SIZE_LEVEL0)
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
    )
