"""What a site may tell of its slides' tiles."""

from __future__ import annotations

from oncofed.data.slides.site_tiles import site_tiles
from oncofed.data.slides.tile_quality import FLAGS
from oncofed.privacy.tiles import are_tiles

_CLEAN = {"tiles": 10, **dict.fromkeys(FLAGS, 0)}


def _slides(patients: int, **more: int) -> list[tuple[str, dict[str, int] | None]]:
    return [(f"p{number}", {**_CLEAN, **more}) for number in range(patients)]


def test_tiles_are_added_over_the_slides_of_all_patients() -> None:
    slides = [*_slides(6, blur=2), ("p0", {**_CLEAN, "blur": 10})]
    told, patients = site_tiles(slides)
    assert told == {"patients": 6, "tiles": 70, "pen": 0, "fold": 0, "blur": 22, "bubble": 0}
    assert patients == sorted({patient for patient, _ in slides})
    assert are_tiles(told, 6)


def test_a_flag_on_the_slides_of_few_patients_is_left_out() -> None:
    for having in range(7):
        slides = [*_slides(6)[having:], *_slides(having, pen=1)]
        told, _ = site_tiles(slides)
        assert ("pen" in told) == (having == 0 or having >= 5), having
        assert are_tiles(told, 6)


def test_nothing_is_told_of_few_patients() -> None:
    assert site_tiles(_slides(4)) == ({}, [])
    assert site_tiles([]) == ({}, [])
    assert site_tiles([*_slides(9), ("without", None)]) == ({}, []), "the difference to all patients would be of one"
    assert site_tiles([*_slides(9), *((f"q{n}", None) for n in range(5))])[0]["patients"] == 9
