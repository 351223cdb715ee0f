"""Tissue is found, and ink and glass are not.

Pale next to dark tissue, also on tinted glass and next to any pen.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oncofed.data.register import RegisterOptions, register
from oncofed.data.slides import TileSpec
from oncofed.data.slides.tissue import find_tissue
from slide_files import noisy, tiled

PENS = {
    "blue": (20, 60, 200),
    "green": (20, 140, 60),
    "red": (215, 25, 40),
    "black": (28, 28, 32),
    "yellow": (235, 215, 40),
}
MORE_PENS = {"blue": (40, 70, 180), "green": (60, 190, 110), "red": (250, 10, 10), "black": (55, 52, 58)}
TISSUES = {
    "pale": (232, 222, 230),
    "paler": (238, 230, 237),
    "eosin": (225, 130, 180),
    "haematoxylin": (110, 75, 150),
    "dark": (75, 40, 100),
    "DAB": (150, 100, 60),
    "dark DAB": (95, 55, 25),
    "counterstain": (150, 165, 205),
    "blood": (190, 60, 80),
}


def scene(tissue: Sequence[int], pen: Sequence[int] | None, glass: Sequence[int] = (245, 245, 245)) -> np.ndarray:
    """Return 512 x 640 pixels with tissue and a stroke.

    Tissue is at (128..384, 128..384), a pen's stroke above it.
    """
    pixels = np.full((512, 640, 3), glass)
    pixels[128:384, 128:384] = tissue
    if pen is not None:
        pixels[32:80, 50:600] = pen
    return noisy(pixels, 3)


def shares(pixels: np.ndarray) -> tuple[float, float, float]:
    """Return which shares of tissue, pen and glass are found."""
    mask = find_tissue(pixels).mask
    return mask[136:376, 136:376].mean(), mask[32:80, 50:600].mean(), mask[400:, :].mean()


@pytest.mark.wild("CLAM#214, LazySlide#216, TRIDENT#17, hs2p#14", "pen marks taken for tissue, pale tissue for glass")
@pytest.mark.parametrize("tissue", TISSUES)
@pytest.mark.parametrize("pen", PENS)
def test_tissue_is_found_and_a_pen_is_not(tissue: str, pen: str) -> None:
    pixels = scene(TISSUES[tissue], PENS[pen])
    found = find_tissue(pixels)
    inside, marked, around = shares(pixels)
    assert (inside > 0.97, marked < 0.01, around < 0.01) == (True, True, True), (inside, marked, around)
    assert found.inks == (pen,)
    assert f"looks like {pen} ink" in found.notes()[0]


@pytest.mark.wild("CLAM#214, LazySlide#216, TRIDENT#17, hs2p#14", "pen marks taken for tissue, pale tissue for glass")
@pytest.mark.parametrize("pen", MORE_PENS)
def test_other_shades_of_ink_are_ink(pen: str) -> None:
    inside, marked, around = shares(scene(TISSUES["pale"], MORE_PENS[pen]))
    assert inside > 0.97
    assert max(marked, around) < 0.01


@pytest.mark.parametrize("tissue", TISSUES)
def test_no_tissue_is_taken_for_ink(tissue: str) -> None:
    found = find_tissue(scene(TISSUES[tissue], None))
    assert found.inks == ()
    assert not found.notes()


@pytest.mark.wild("CLAM#214, LazySlide#216", "pale tissue beside dark tissue, on glass with a tint")
@settings(deadline=None, max_examples=15)
@given(
    st.sampled_from([(245, 245, 245), (250, 248, 240), (236, 240, 236), (228, 232, 238), (215, 215, 215)]),
    st.sampled_from(sorted(TISSUES)),
)
def test_pale_tissue_is_found_next_to_other_tissue_on_any_glass(glass: tuple[int, int, int], other: str) -> None:
    pixels = np.full((512, 640, 3), glass)
    light = np.array(glass) / 245
    pixels[64:448, 64:256] = np.array((230, 212, 226)) * light
    pixels[64:448, 320:576] = np.array(TISSUES[other]) * light
    mask = find_tissue(noisy(pixels, 3)).mask
    assert mask[72:440, 72:248].mean() > 0.97
    assert mask[:48].mean() < 0.01


def test_glass_alone_shows_no_tissue() -> None:
    for glass in ((245, 245, 245), (250, 248, 240), (226, 230, 236), (200, 200, 200), (243, 243, 243)):
        assert find_tissue(noisy(np.full((256, 256, 3), glass), 6)).mask.mean() < 0.01


def test_a_slide_full_of_tissue_is_tissue() -> None:
    for colour in TISSUES.values():
        assert find_tissue(noisy(np.full((256, 256, 3), colour), 6)).mask.mean() > 0.97


def test_dark_nuclei_are_no_ink_where_the_overview_shows_them() -> None:
    y, x = np.mgrid[:512, :640]
    pixels = scene(TISSUES["eosin"], None)
    within = (abs(x - 320) < 200) & (abs(y - 256) < 150)
    nuclei = within & (np.hypot(x % 40 - 20, y % 40 - 20) < 7)
    pixels[nuclei] = noisy(np.full((1, 1, 3), (40, 38, 58)), 3)[0, 0]
    assert find_tissue(pixels).inks
    found = find_tissue(pixels, 0.5)
    assert found.inks == ()
    assert found.mask[nuclei].mean() > 0.97


def test_the_scanners_fill_is_not_tissue() -> None:
    pixels = scene(TISSUES["eosin"], None)
    pixels[:, 500:] = 0
    found = find_tissue(pixels)
    assert not found.mask[:, 505:].any()
    assert found.inks == ()


@pytest.mark.wild("CLAM#214, LazySlide#216, TRIDENT#17, hs2p#14", "pen marks taken for tissue, pale tissue for glass")
def test_tiles_lie_on_pale_tissue_and_not_on_a_pen(tmp_path: Path) -> None:
    tiled(tmp_path / "in" / "pale.tif", scene(TISSUES["pale"], PENS["blue"]))
    tiled(tmp_path / "in" / "pen.tif", scene((245, 245, 245), PENS["blue"]))
    manifest = register(RegisterOptions(tmp_path / "in", "s", tmp_path / "out", "slides", tiles=TileSpec(64)))
    grid = np.load(tmp_path / "out" / "tiles" / "pale.npz")
    assert {(int(y) // 64, int(x) // 64) for x, y in zip(grid["x"], grid["y"], strict=True)} == {
        (row, column) for row in range(2, 6) for column in range(2, 6)
    }
    assert any("blue ink" in note for note in manifest.entries[0].notes)
    assert "shows no tissue" in manifest.quarantine[0].reason
    assert "blue ink" in manifest.quarantine[0].reason
