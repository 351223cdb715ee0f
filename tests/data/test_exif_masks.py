"""Masks of photos with an Exif orientation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oncofed.data.cases import read_cases
from oncofed.data.exif import AS_STORED, AS_TURNED
from oncofed.data.manifest import Manifest
from oncofed.data.register import RegisterOptions, register
from oncofed.data.spec import SplitSpec

# From an upright picture to the stored pixels (Exif 2.3, Orientation), by rows and columns.
_STORED = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[:, ::-1],
}


def _photo(number: int, sides: tuple[int, int], plain: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(number)
    mask = np.zeros(sides, np.uint8)
    mask[8:22, 6:26] = 1
    field = rng.integers(70, 130, (*sides, 3)).astype(np.uint8)
    if not plain:
        field[mask > 0] += np.array([100, 20, 0], np.uint8)
    return field, mask


def _add(folder: Path, name: str, orientation: int, photo: tuple[np.ndarray, np.ndarray], as_stored: bool) -> None:
    for kind in ("images", "masks"):
        (folder / "in" / kind).mkdir(parents=True, exist_ok=True)
    field, mask = photo
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(_STORED[orientation](field)))
    stored.save(folder / "in" / "images" / f"{name}.jpg", exif=exif, quality=95)
    drawn = _STORED[orientation](mask) if as_stored else mask
    Image.fromarray(np.ascontiguousarray(drawn) * 255).save(folder / "in" / "masks" / f"{name}.png")


def _registered(folder: Path) -> Manifest:
    return register(RegisterOptions(folder / "in", "demo", folder / "out", workers=1))


@pytest.mark.wild("detectron2#788, D-FINE#308", "a mask drawn on stored pixels, of the turned picture's size")
@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("sides", [(44, 60), (60, 60)])
def test_the_image_shows_which_orientation_a_mask_has(sides: tuple[int, int], orientation: int, tmp_path: Path) -> None:
    for number in range(3):
        _add(tmp_path, f"turned{number}", orientation, _photo(number, sides), as_stored=False)
    manifest = _registered(tmp_path)
    assert not manifest.quarantine
    is_open = orientation < 5 or sides[0] == sides[1]
    assert all((AS_TURNED in entry.notes) == is_open for entry in manifest.entries)
    for case in read_cases(tmp_path / "out", SplitSpec(), 1):
        assert np.array_equal(case.read()[1].values[..., 0].T > 0, _photo(0, sides)[1] > 0)
    _add(tmp_path, "stored", orientation, _photo(3, sides), as_stored=True)
    (bad,) = _registered(tmp_path).quarantine
    assert bad.name == "stored"
    assert "as it is stored, not as its Exif orientation turns it" in bad.reason
    assert ("its border the picture's edges only so" in bad.reason) == is_open


@pytest.mark.wild("detectron2#788, D-FINE#308", "a mask that nothing tells, beside others drawn on stored pixels")
def test_ambiguous_masks_are_refused_if_others_fit_stored_pixels(tmp_path: Path) -> None:
    _add(tmp_path, "plain", 3, _photo(0, (44, 60), plain=True), as_stored=True)
    _add(tmp_path, "clear", 6, _photo(1, (44, 60)), as_stored=False)
    (entry,) = [entry for entry in _registered(tmp_path).entries if entry.name == "plain"]
    assert AS_TURNED in entry.notes  # no edge decides: taken as viewers show it, with a note
    _add(tmp_path, "sibling", 8, _photo(2, (44, 60)), as_stored=True)
    manifest = _registered(tmp_path)
    assert [entry.name for entry in manifest.entries] == ["clear"]
    reasons = {bad.name: bad.reason for bad in manifest.quarantine}
    assert reasons["sibling"] == AS_STORED
    assert "others of this dataset were drawn so" in reasons["plain"]
