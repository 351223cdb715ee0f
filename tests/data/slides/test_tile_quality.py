"""Pen, folds, blur and bubbles on made tissue, and how often clean tissue is flagged."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from oncofed.data.slides.levels import TileSpec
from oncofed.data.slides.measuring import measure
from oncofed.data.slides.tile_quality import FLAGS, find_artefacts, is_blurred
from oncofed.data.slides.tissue import find_tissue
from slide_files import tiled
from stained_made import OTHER, USUAL, Stain, amounts, painted

_SIDE = 1024
_Y, _X = np.mgrid[:_SIDE, :_SIDE]
# A piece of tissue on glass, in which all artefacts lie.
_PIECE = ((_X - 512) / 440) ** 2 + ((_Y - 512) / 400) ** 2 < 1
_BLUR = np.hypot(_X - 330, _Y - 600) < 230
_RING = np.abs(np.hypot(_X - 640, _Y - 700) - 110) < 9
_BUBBLE = np.hypot(_X - 640, _Y - 700) < 110
_PEN = np.abs(_Y - 250 - 30 * np.sin(_X / 80)) < 18
_FOLD = np.abs(_X - 500 - 40 * np.sin(_Y / 120)) < 22
_FOLD &= (_Y > 300) & (_Y < 560)


def _tissue(stain: Stain, seed: int = 1) -> np.ndarray:
    found = np.tile(amounts(seed, 512, glass=False), (2, 2, 1))
    found[~_PIECE] = 0
    return found


def _slide(stain: Stain, what: str) -> np.ndarray:
    """Return a slide at one micron a pixel with an artefact."""
    made = _tissue(stain)
    if what == "fold":
        made[_FOLD] = (made + np.roll(made, 37, axis=1))[_FOLD] * 1.05
    pixels = painted(made, stain)
    if what == "blur":
        soft = np.stack([ndimage.gaussian_filter(pixels[..., n].astype(float), 4) for n in range(3)], axis=-1)
        soft = np.clip(soft + np.random.default_rng(1).normal(0, 1.5, soft.shape), 0, 255).astype(np.uint8)
        pixels[_BLUR] = soft[_BLUR]
    if what == "bubble":
        pixels[_RING] = np.random.default_rng(2).integers(90, 130, (int(_RING.sum()), 1))
    if what == "pen":
        pixels[_PEN] = np.array((25, 60, 190)) + np.random.default_rng(3).integers(-8, 9, (int(_PEN.sum()), 3))
    return pixels


_WHERE = {"pen": _PEN, "fold": _FOLD, "blur": _BLUR, "bubble": _BUBBLE}


def _registered(folder: Path, pixels: np.ndarray, quality: str = "count") -> tuple[dict[str, int], dict]:
    path = tiled(folder / "slide.tif", pixels, mpp=1.0)
    facts, grid = measure(path, TileSpec(128, 1.0, 0.5, quality), None, {})  # type: ignore[arg-type]
    return facts["tile_quality"] or {}, grid


@pytest.mark.parametrize("stain", [USUAL, OTHER], ids=["usual", "other"])
@pytest.mark.parametrize("what", FLAGS)
def test_each_artefact_is_flagged_where_it_is_and_nowhere_else(what: str, stain: Stain, tmp_path: Path) -> None:
    quality, grid = _registered(tmp_path, _slide(stain, what))
    has = grid["flags"] >> FLAGS.index(what) & 1
    there = np.array([_WHERE[what][y : y + 128, x : x + 128].mean() for x, y in zip(grid["x"], grid["y"], strict=True)])
    # A tile is blurred as a whole; a fold and a line cross it.
    assert has[there > {"blur": 0.98, "bubble": 0.5}.get(what, 0.15)].mean() > 0.7
    assert not has[there == 0].any()
    assert quality[what] == has.sum() > 0
    others = [name for name in FLAGS if name != what]
    # A fold of a blue stain may have the colour of blue ink.
    assert sum(quality[name] for name in others) <= 2, quality


@pytest.mark.parametrize("stain", [USUAL, OTHER, USUAL._replace(amounts=(0.5, 0.5))], ids=["usual", "other", "pale"])
def test_clean_tissue_has_no_flags(stain: Stain, tmp_path: Path) -> None:
    quality, _ = _registered(tmp_path, _slide(stain, "nothing"))
    assert quality.pop("tiles") >= 20
    assert set(quality.values()) == {0}


def test_flagged_tiles_are_left_out_where_one_says_so(tmp_path: Path) -> None:
    pixels = _slide(USUAL, "bubble")
    kept, all_tiles = _registered(tmp_path / "count", pixels)
    dropped, clear = _registered(tmp_path / "drop", pixels, "drop")
    assert kept == dropped
    assert len(clear["x"]) == len(all_tiles["x"]) - kept["bubble"]
    assert not clear["flags"].any()
    unlooked, whole = _registered(tmp_path / "none", pixels, "none")
    assert not unlooked
    assert len(whole["x"]) == len(all_tiles["x"])


def test_dense_nuclei_are_no_fold() -> None:
    made = _tissue(USUAL)
    made[400:600, 300:700] = amounts(9, 512, glass=False, nuclei=2400)[100:300, 50:450]
    pixels = painted(made, USUAL)
    assert not find_artefacts(pixels, find_tissue(pixels), 1.0)["fold"].any()


def test_real_fields_are_rarely_flagged() -> None:
    """Of haematoxylin and eosin at several laboratories; a field in a hundred or so is soft indeed."""
    folder = Path(os.environ.get("ONCOFED_DATA", "")) / "nuclei"
    if not folder.is_dir():
        pytest.skip("ONCOFED_DATA names no folder with nuclei/")
    rows = [line.split(",") for line in (folder / "cases.csv").read_text().splitlines()]
    blurred, soft = [], []
    for name, stain, *_ in rows:
        if stain == "he":
            pixels = np.asarray(Image.open(folder / "images" / name).convert("RGB").reduce(2))
            blurred.append(is_blurred(pixels))
            out = np.stack([ndimage.gaussian_filter(pixels[..., n].astype(float), 4) for n in range(3)], axis=-1)
            soft.append(is_blurred(out.astype(np.uint8)))
    assert len(blurred) > 50
    assert np.mean(blurred) < 0.03
    assert np.mean(soft) > 0.9
