"""A real slide of skin (haematoxylin and eosin, Aperio, 20x): tissue, tiles, flags, colours and stains.

``CMU-1-Small-Region.svs`` of OpenSlide's test data (CC0), which the sources of libvips hold too: in the folder that
``ONCOFED_DATA`` names, under ``slides/``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from oncofed.data.slides import TileReader, TileSpec, open_slide
from oncofed.data.slides.levels import Pixels
from oncofed.data.slides.measuring import measure
from oncofed.data.slides.tile_quality import find_artefacts
from oncofed.data.slides.tissue import find_tissue
from oncofed.data.stain.estimate import macenko
from oncofed.data.stain.normalise import by_vectors

_SPEC = TileSpec(224, 0.5)
# Haematoxylin and eosin of Ruifrok and Johnston, Analytical and Quantitative Cytology and Histology 2001.
_USUAL = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
# x, y, width, height in microns.
_EPITHELIUM, _CONNECTIVE, _GLASS = (545, 840, 36, 110), (420, 900, 80, 120), (50, 700, 200, 200)


@pytest.fixture(scope="module")
def slide(real_data: Path) -> Path:
    """The slide; skips tests without it."""
    path = real_data / "slides" / "CMU-1-Small-Region.svs"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return path


@pytest.fixture(scope="module")
def overview(slide: Path) -> tuple[Pixels, float]:
    """The slide's overview, and its microns per pixel."""
    with TileReader(slide, _SPEC) as reader:
        pixels, scale = reader.overview()
        return pixels, scale * reader.levels[0].mpp


def _box(values: np.ndarray, mpp: float, box: tuple[int, int, int, int]) -> np.ndarray:
    x, y, width, height = (round(side / mpp) for side in box)
    return values[y : y + height, x : x + width]


def test_tiles_lie_on_tissue_and_dense_epithelium_is_no_artefact(slide: Path) -> None:
    facts, grid = measure(slide, _SPEC, None, {})
    quality = facts["tile_quality"]
    assert 55 <= quality["tiles"] <= 70
    assert len(grid["x"]) == quality["tiles"]
    assert quality["pen"] == quality["blur"] == quality["bubble"] == 0
    assert quality["fold"] <= 6  # thick keratin
    assert facts["spacing"] == pytest.approx([0.000499] * 2)


def test_tissue_is_told_from_glass(overview: tuple[Pixels, float]) -> None:
    pixels, mpp = overview
    found = find_tissue(pixels, mpp)
    assert not found.inks
    for box, least, most in ((_EPITHELIUM, 0.99, 1.0), (_CONNECTIVE, 0.8, 1.0), (_GLASS, 0.0, 0.01)):
        assert least <= _box(found.mask, mpp, box).mean() <= most


def test_a_fold_of_epithelium_is_found_and_epithelium_is_none(overview: tuple[Pixels, float]) -> None:
    pixels, mpp = overview
    assert not _box(find_artefacts(pixels, find_tissue(pixels, mpp), mpp)["fold"], mpp, _EPITHELIUM).any()
    folded = pixels.copy()
    layer = _box(folded, mpp, _EPITHELIUM)
    layer[:] = layer * (layer[::-1] / 245.0)  # light passes through both layers
    found = find_artefacts(folded, find_tissue(folded, mpp), mpp)["fold"]
    assert _box(found, mpp, _EPITHELIUM).mean() > 0.5


def test_pixels_are_those_that_openslide_gives(slide: Path) -> None:
    openslide = pytest.importorskip("openslide")
    ours = open_slide(slide)
    with openslide.OpenSlide(slide) as theirs:
        for x, y in ((960, 1440), (1013, 1507), (700, 2000)):
            expected = np.asarray(theirs.read_region((x, y), 0, (240, 240)).convert("RGB")).astype(int)
            found = ours.read(0, x, y, 240, 240).astype(int)
            assert np.abs(found - expected).max() <= 3
    ours.close()


def test_its_stains_are_haematoxylin_and_eosin_and_go_to_a_template_and_back(overview: tuple[Pixels, float]) -> None:
    pixels, mpp = overview
    tissue = pixels[find_tissue(pixels, mpp).mask]
    own = macenko(tissue)
    assert own is not None
    vectors = own[:6].reshape(2, 3)
    angles = np.degrees(np.arccos((vectors * _USUAL).sum(1) / np.linalg.norm(_USUAL, axis=1)))
    assert angles.max() < 25, angles
    template = torch.from_numpy(own).float()
    other = torch.tensor([*_USUAL.ravel() / np.repeat(np.linalg.norm(_USUAL, axis=1), 3), 1.4, 0.8]).float()
    region = torch.from_numpy(_box(pixels, mpp, _EPITHELIUM).copy()).permute(2, 0, 1)[None].float()
    changed = by_vectors(region, template, other)
    back = by_vectors(changed, other, template)
    assert (changed - region).abs().mean() > 5
    assert (back - region).abs().mean() < 5
