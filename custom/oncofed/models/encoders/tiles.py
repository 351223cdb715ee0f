"""Whether tiles are those that an encoder was made for."""

from __future__ import annotations

import math
from collections.abc import Iterable

from oncofed.data.features.survey import SAME_RESOLUTION
from oncofed.models.encoders.entry import catalogue, catalogue_name


def unusual_tiles(encoder: str, tiles: Iterable[tuple[int | None, float | None]]) -> list[str]:
    """Return what a person should know of tiles that the encoder was not made for; nothing where they are as usual.

    Args:
        encoder: its name; of one that is not in the catalogue nothing is known.
        tiles: pixels a side and microns per pixel; None: not known.
    """
    entry = catalogue().get(catalogue_name(encoder) or encoder)
    if entry is None:
        return []
    notes = []
    for side, mpp in dict.fromkeys(tiles):
        found, expected, options, settings = [], [], [], []
        if side and entry.tile and side != entry.tile:
            found.append(f"{side} pixels a side")
            expected.append(f"{entry.tile} pixels")
            options.append(f"--tile {entry.tile}")
            settings.append(f"data.patch [{entry.tile}, {entry.tile}]")
        if mpp and entry.mpp and not math.isclose(mpp, entry.mpp, rel_tol=SAME_RESOLUTION):
            found.append(f"{mpp:.3g} microns a pixel")
            expected.append(f"{entry.mpp:g} microns a pixel")
            options.append(f"--mpp {entry.mpp:g}")
            settings.append(f"data.spacing [{entry.mpp / 1000:g}, {entry.mpp / 1000:g}]")
        if found:
            notes.append(
                f"tiles of {' and '.join(found)}, expected {' and '.join(expected)}, for which {entry.name} was made: "
                f"its features may tell less. Register the slides with {' '.join(options)}, and ask for "
                f"{' and '.join(settings)} in the job"
            )
    return notes
