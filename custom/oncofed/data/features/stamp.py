"""Features as STAMP writes them (El Nahhas et al., Nature Protocols 2025).

HDF5 with the dataset ``feats`` (tile, feature), and ``coords`` (tile, 2). Since version 2, coordinates are microns, and
the root states ``extractor``, ``unit``, ``tile_size`` or, from 2.1 on, ``tile_size_um`` and ``tile_size_px``. Version 1
and its forerunner state the extractor alone; their coordinates are pixels at the tiles' resolution. Features of a slide
or a patient have no coordinates: they state ``encoder``, and ``feat_type``. Older versions keep those of all slides in
one file, by their names.
"""

from __future__ import annotations

from oncofed.data.features.stored import Group, Rows, Stored, number_of, stored, text_of, whole

_FEATURES = "feats"
_LEVELS = {"patient": "slide"}  # one vector a patient is used as one a slide


def read(group: Group) -> Stored | None:
    """Return the features; None where another tool wrote the file.

    Raises:
        DataError: its arrays do not fit together.
    """
    if _FEATURES not in group:
        return None
    attrs = group.attrs
    places = group.get("coords")
    kind = text_of(attrs, "feat_type")
    microns = number_of(attrs, "tile_size_um")
    if microns is None and text_of(attrs, "unit") == "um":
        microns = number_of(attrs, "tile_size")
    tile = whole(number_of(attrs, "tile_size_px"))
    return stored(
        Rows(group[_FEATURES]),
        places,
        level=_LEVELS.get(kind, kind) if kind else None,
        tool="STAMP",
        unit="tile pixel" if microns is None else "micron",
        side=microns,
        tile=tile,
        mpp=microns / tile if microns and tile else None,
        encoder=text_of(attrs, "extractor", "encoder"),
    )


def slides_together(group: Group) -> int:
    """Return the number of slides whose vectors one file holds; 0 where it is no such file."""
    is_theirs = text_of(group.attrs, "encoder") and text_of(group.attrs, "precision") and _FEATURES not in group
    return len(list(group)) if is_theirs else 0
