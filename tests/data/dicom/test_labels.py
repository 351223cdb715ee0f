"""SEG and RT-STRUCT labels match their image both ways."""

from __future__ import annotations

from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pytest

from dicoms import AXIAL, OBLIQUE, make_multiframe, make_rtstruct, make_seg, make_series, volume
from oncofed.data.manifest import Manifest
from oncofed.data.register import RegisterOptions, parse_labels, register

SHAPE = (12, 16, 8)


def _masks() -> dict[str, np.ndarray]:
    tumour = np.zeros(SHAPE, bool)
    tumour[2:5, 3:9, 1:6] = True
    liver = np.zeros(SHAPE, bool)
    liver[6:11, 2:14, 2:7] = True
    return {"tumour": tumour, "liver": liver}


def _read(source: Path, tmp_path: Path, **settings: object) -> tuple[Manifest, np.ndarray, np.ndarray]:
    manifest = register(RegisterOptions(source, "demo", tmp_path / "out", **settings))  # type: ignore[arg-type]
    assert [bad.reason for bad in manifest.quarantine] == []
    (entry,) = manifest.entries
    assert isinstance(entry.label, str)
    image, label = (nib.load(tmp_path / "out" / path) for path in (entry.images[0], entry.label))
    np.testing.assert_allclose(image.affine, label.affine)
    return manifest, np.asarray(image.dataobj), np.asarray(label.dataobj)


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
def test_a_segmentation_lies_on_its_series(tmp_path: Path, orientation: tuple[float, ...]) -> None:
    files = make_series(tmp_path / "in", orientation=orientation)
    make_seg(tmp_path / "in" / "seg.dcm", files, _masks())
    manifest, image, label = _read(tmp_path / "in", tmp_path)
    assert manifest.labels == {"0": "background", "1": "liver", "2": "tumour"}
    np.testing.assert_array_equal(image, volume())
    np.testing.assert_array_equal(label == 1, _masks()["liver"])
    np.testing.assert_array_equal(label == 2, _masks()["tumour"])


def test_label_values_follow_the_users_names(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in")
    make_seg(tmp_path / "in" / "seg.dcm", files, _masks())
    manifest, _, label = _read(tmp_path / "in", tmp_path, labels={0: "background", 1: "tumour"})
    assert manifest.labels == {"0": "background", "1": "tumour"}
    np.testing.assert_array_equal(label, _masks()["tumour"])


def test_dicom_to_nifti_to_segmentation_and_back(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in", orientation=OBLIQUE)
    make_seg(tmp_path / "in" / "seg.dcm", files, {"tumour": _masks()["tumour"]})
    _, _, label = _read(tmp_path / "in", tmp_path)
    make_series(tmp_path / "again", orientation=OBLIQUE)
    again = sorted((tmp_path / "again").glob("*.dcm"))
    written = make_seg(tmp_path / "again" / "seg.dcm", again, {"tumour": label > 0})
    back = highdicom.seg.segread(written).get_volume(combine_segments=True, allow_missing_positions=True)
    assert back.array.sum() == _masks()["tumour"].sum()
    register(RegisterOptions(tmp_path / "again", "demo", tmp_path / "out2"))
    (entry,) = register(RegisterOptions(tmp_path / "again", "demo", tmp_path / "out2")).entries
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "out2" / str(entry.label)).dataobj), label)


def test_a_structure_set_is_filled_with_its_holes(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in", np.zeros((40, 40, 4), np.int16) + volume((40, 40, 4)), spacing=(1, 1, 2))
    origin = np.array([-30.0, -40, 10])

    def square(low: float, high: float, depth: int) -> np.ndarray:
        corners = np.array([[low, low], [high, low], [high, high], [low, high]])
        return np.concatenate([corners, np.full((4, 1), 2.0 * depth)], axis=1) + origin

    contours = [square(4.5, 30.5, 1), square(9.5, 19.5, 1), square(4.5, 30.5, 2)]
    make_rtstruct(tmp_path / "in" / "rt.dcm", files, {"liver": contours})
    manifest, _, label = _read(tmp_path / "in", tmp_path)
    expected = np.zeros((40, 40, 4), np.uint8)
    expected[5:31, 5:31, 1:3] = 1
    expected[10:20, 10:20, 1] = 0
    assert manifest.labels == {"0": "background", "1": "liver"}
    np.testing.assert_array_equal(label, expected)


def test_a_label_without_wanted_regions_sets_the_case_aside(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in")
    make_seg(tmp_path / "in" / "seg.dcm", files, {"liver": _masks()["liver"]})
    manifest = register(
        RegisterOptions(tmp_path / "in", "demo", tmp_path / "out", labels={0: "background", 1: "kidney"})
    )
    assert manifest.entries == []
    assert "its label names liver, expected some of kidney" in manifest.quarantine[0].reason


def test_an_enhanced_multiframe_image_is_a_volume(tmp_path: Path) -> None:
    files = make_series(tmp_path / "plain", orientation=OBLIQUE)
    (plain,) = register(RegisterOptions(tmp_path / "plain", "demo", tmp_path / "out1")).entries
    (tmp_path / "in").mkdir()
    # A parametric map with the slices' own numbers has the geometry of an enhanced MR image.
    make_multiframe(tmp_path / "in" / "enhanced.dcm", files)
    (entry,) = register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "out2")).entries
    one, two = (nib.load(tmp_path / out / e.images[0]) for out, e in (("out1", plain), ("out2", entry)))
    canonical = [nib.as_closest_canonical(image) for image in (one, two)]
    np.testing.assert_allclose(canonical[0].affine, canonical[1].affine, atol=1e-3)
    np.testing.assert_array_equal(np.asarray(canonical[0].dataobj), np.asarray(canonical[1].dataobj))


@pytest.mark.wild("standard: PS3.3 C.8.20.2", "advice that leads nowhere: colours for regions that have names")
def test_a_colour_as_the_value_of_a_region_is_refused_in_words(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in" / "a")
    mask = np.zeros((12, 16, 8), bool)
    mask[2:5, 3:9, 1:6] = True
    make_seg(tmp_path / "in" / "seg.dcm", files, {"t": mask})
    labels = parse_labels("#ff0000=t")
    [bad] = register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "out", labels=labels, workers=1)).quarantine
    assert (
        "--labels gives the region t the value #ff0000, expected a number from 1 to 65,535, such as 1=t" in bad.reason
    )
