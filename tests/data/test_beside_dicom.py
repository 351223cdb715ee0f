"""Pictures next to DICOM: thumbnails are left out."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dicoms import make_series, make_xray
from oncofed.data.layouts.beside_dicom import BESIDE_DICOM
from oncofed.data.manifest import Manifest
from oncofed.data.register import RegisterOptions, register


def _register(tmp_path: Path) -> Manifest:
    return register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "out", workers=1))


def _picture(path: Path, seed: int = 0, side: int = 32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side)).astype(np.uint8)).save(path)


@pytest.mark.wild("–", "the icon of a viewer on a PACS CD, taken for an image")
@pytest.mark.parametrize("icons", [["VIEWER/icon.png"], ["VIEWER/icon.png", "HELP/one.jpg", "HELP/two.jpg"]])
def test_icons_of_a_viewer_are_left_out_by_name(tmp_path: Path, icons: list[str]) -> None:
    make_series(tmp_path / "in" / "DICOM", names=lambda number: f"IM{number:05d}")
    for number, icon in enumerate(icons):
        _picture(tmp_path / "in" / icon, number)
    (tmp_path / "in" / "VIEWER" / "view.exe").write_bytes(b"MZ00")
    manifest = _register(tmp_path)
    (entry,) = manifest.entries
    assert entry.shape == [12, 16, 8]
    assert manifest.description.endswith("DICOM")
    assert manifest.left_out[BESIDE_DICOM] == len(icons)
    rows = {row["path"]: row["reason"] for row in csv.DictReader((tmp_path / "out" / "files.csv").open())}
    assert {rows[icon] for icon in icons} == {BESIDE_DICOM}


@pytest.mark.wild("–", "a thumbnail of each X-ray, taken for an image")
def test_a_thumbnail_of_each_image_is_left_out(tmp_path: Path) -> None:
    for number in range(3):
        values = np.random.default_rng(number).integers(0, 4000, (40, 30)).astype(np.uint16)
        make_xray(tmp_path / "in", values, f"x{number}.dcm", PatientID=f"P{number}")
        _picture(tmp_path / "in" / f"x{number}.jpg", number)
    manifest = _register(tmp_path)
    assert [entry.modality for entry in manifest.entries] == ["DX"] * 3
    assert manifest.left_out == {BESIDE_DICOM: 3}


def test_pictures_that_are_most_of_the_folder_or_have_masks_stay(tmp_path: Path) -> None:
    make_xray(tmp_path / "in", np.arange(600, dtype=np.uint16).reshape(20, 30))
    for number in range(4):
        _picture(tmp_path / "in" / f"p{number}.png", number)
    assert len(_register(tmp_path).entries) == 5
    make_series(tmp_path / "in" / "ct")
    mask = np.zeros((32, 32), np.uint8)
    mask[4:9, 4:9] = 1
    Image.fromarray(mask).save(tmp_path / "in" / "p0_mask.png")
    manifest = _register(tmp_path)
    assert manifest.left_out == {BESIDE_DICOM: 3}
    assert sum(entry.modality is None for entry in manifest.entries) == 1
