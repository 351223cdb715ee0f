"""Features as HEST's benchmark writes them (Jaume et al., NeurIPS 2024).

HDF5 with the datasets ``embeddings`` (tile, feature), ``coords`` (tile, 2) in pixels of the finest level, and
``barcodes``, without any attribute.
"""

from __future__ import annotations

from oncofed.data.features.stored import Group, Rows, Stored, number_of, stored, text_of, whole


def read(group: Group) -> Stored | None:
    """Return the features; None where another tool wrote the file.

    Raises:
        DataError: its arrays do not fit together.
    """
    if "embeddings" not in group:
        return None
    places = group.get("coords")
    of_tiles = {} if places is None else places.attrs
    return stored(
        Rows(group["embeddings"]),
        places,
        tool="HEST",
        tile=whole(number_of(of_tiles, "patch_size")),
        step=number_of(of_tiles, "patch_size_level0"),
        encoder=text_of(group.attrs, "encoder"),
    )
