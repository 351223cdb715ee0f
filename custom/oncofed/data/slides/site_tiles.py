"""How good the tiles of a site's slides are, as it may leave the site."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from oncofed.data.slides.tile_quality import FLAGS
from oncofed.suppression import LEAST_PATIENTS

PATIENTS, TILES = "patients", "tiles"


def site_tiles(slides: Iterable[tuple[str, Mapping[str, int] | None]]) -> tuple[dict[str, int], list[str]]:
    """Return numbers of tiles over a site's patients, and these patients.

    Nothing is told where fewer than five patients' slides were looked at, or one to four patients' were not. A flag is
    left out that the slides of one to four patients have.

    Args:
        slides: each with its patient's key, and its ``Entry.tile_quality``.

    Returns:
        ``patients``, ``tiles`` with tissue, and those with each of ``FLAGS``; keys of the patients. Both empty where
        nothing may be told.
    """
    by_patient: dict[str, Counter[str]] = {}
    everybody = set()
    for patient, quality in slides:
        everybody.add(patient)
        if quality:
            by_patient.setdefault(patient, Counter()).update(quality)
    if len(by_patient) < LEAST_PATIENTS or 0 < len(everybody) - len(by_patient) < LEAST_PATIENTS:
        return {}, []
    told = {PATIENTS: len(by_patient), TILES: sum(own[TILES] for own in by_patient.values())}
    for flag in FLAGS:
        behind = sum(own[flag] > 0 for own in by_patient.values())
        if not 0 < behind < LEAST_PATIENTS:
            told[flag] = sum(own[flag] for own in by_patient.values())
    return told, sorted(by_patient)
