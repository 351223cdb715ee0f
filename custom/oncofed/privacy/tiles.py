"""Validates a site's numbers of tiles.

They cover five patients or more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oncofed.data.slides.site_tiles import PATIENTS, TILES
from oncofed.data.slides.tile_quality import FLAGS
from oncofed.suppression import LEAST_PATIENTS

_MOST_TILES = 1 << 40


def are_tiles(value: Any, cases: Any) -> bool:
    """Return whether a value is one that ``data.slides.site_tiles`` may make.

    Args:
        value: ``patients``, ``tiles``, and those with each flag.
        cases: it is not of more patients.
    """
    if not isinstance(value, Mapping) or not {PATIENTS, TILES} <= value.keys() <= {PATIENTS, TILES, *FLAGS}:
        return not value and isinstance(value, Mapping)
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in (*value.values(), cases)):
        return False
    tiles = [number for name, number in value.items() if name != PATIENTS]
    return (
        LEAST_PATIENTS <= value[PATIENTS] <= cases
        and all(0 <= n <= value[TILES] for n in tiles)
        and (value[TILES] < _MOST_TILES)
    )
