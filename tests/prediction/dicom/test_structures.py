"""Contours reproduce each slice's mask.

Filled by hand, by either rule, and by registering them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from highdicom._standard_utils import check_required_attributes, get_iod_module_map, get_sop_class_iod_map
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from dicoms import CORONAL, OBLIQUE, make_multiframe, make_series, make_xray, volume
from oncofed.data.manifest import read_manifest
from oncofed.data.register import RegisterOptions, register
from oncofed.errors import DataError
from oncofed.prediction.dicom.common import ModelIdentity
from oncofed.prediction.dicom.contours import mask_contours
from oncofed.prediction.dicom.labelled_series import LabelledSeries
from oncofed.prediction.dicom.structures import write_structures

MODEL = ModelIdentity("organs", "0123456789abcdef" * 4)
CLASSES = {1: "liver", 2: "left kidney", 3: "nowhere"}


def _filled(closed: Sequence[np.ndarray], shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Pixels inside closed contours, by both fill rules.

    Pixels (row, column), contours (column, row); even-odd and winding numbers.
    """
    rows, columns = np.indices(shape)
    odd, wound = np.zeros(shape, bool), np.zeros(shape, bool)
    for points in closed:
        crossings, winding = np.zeros(shape, int), np.zeros(shape, int)
        for (x, y), (_, end) in zip(points, np.roll(points, -1, axis=0), strict=True):
            if y != end:
                crossed = (rows >= min(y, end)) & (rows < max(y, end)) & (columns < x)
                crossings += crossed
                winding += np.where(crossed, np.sign(end - y), 0).astype(int)
        odd ^= crossings % 2 == 1
        wound |= winding != 0
    return odd, wound


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.floats(0.1, 0.95))
def test_outlines_of_any_mask_enclose_its_pixels_and_no_other(seed: int, rows: int, columns: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((rows, columns)) < share
    for filled in _filled(mask_contours(mask), mask.shape):
        np.testing.assert_array_equal(filled, mask)


def _steps(closed: Sequence[np.ndarray], shape: Sequence[int]) -> np.ndarray:
    """Number of passes along each pixel edge.

    By (right, down, left, up; row; column of its start).
    """
    counts = np.zeros((4, shape[0] + 1, shape[1] + 1), int)
    for points in closed:
        corners = (np.asarray(points) + 0.5).astype(int)
        for (x, y), (to_x, to_y) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            assert (x == to_x) != (y == to_y), "neither level nor upright, or of no length"
            if y == to_y:
                counts[0 if to_x > x else 2, y, x : to_x : 1 if to_x > x else -1] += 1
            else:
                counts[1 if to_y > y else 3, y : to_y : 1 if to_y > y else -1, x] += 1
    return counts


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 60), st.floats(0.3, 0.98))
def test_channels_to_holes_lie_within_the_mask(seed: int, rows: int, columns: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((rows, columns)) < share
    closed = mask_contours(mask)
    pieces, count = ndimage.label(mask)
    assert len(closed) == count
    right, down, left, up = _steps(closed, mask.shape)
    padded = np.pad(mask, 1)
    above, below = padded[:-1, 1:], padded[1:, 1:]
    before, behind = padded[1:, :-1], padded[1:, 1:]
    # Along the mask's own edges once, with the mask to the right; else there and back, with the mask on both sides.
    for there, back, first, second in (
        (right, np.roll(left, -1, axis=1), below, above),
        (down, np.roll(up, -1, axis=0), before, behind),
    ):
        inside = first & second
        np.testing.assert_array_equal(there - back, first.astype(int) - second)
        assert (there[inside] <= 1).all()
        assert not (there & back)[~inside].any()
    # Each piece has the outline that encloses as many pixels.
    areas = [float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2 for x, y in (points.T for points in closed)]
    assert sorted(areas) == sorted(np.bincount(pieces.ravel(), minlength=1)[1:].tolist())


def test_outlines_run_along_the_edges_of_pixels_and_have_no_more_corners_than_needed() -> None:
    mask = np.zeros((5, 6), bool)
    mask[1:4, 2:5] = True
    (square,) = mask_contours(mask)
    assert sorted(map(tuple, square.tolist())) == [(1.5, 0.5), (1.5, 3.5), (4.5, 0.5), (4.5, 3.5)]
    mask[2, 3] = False
    (ring,) = mask_contours(mask)
    # Four corners outside, four inside, and the channel's end outside there and back: inside it goes on along the hole.
    assert len(ring) == 4 + 4 + 2
    assert mask_contours(np.zeros((3, 3), bool)) == []


def _labels(shape: Sequence[int]) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    labels[1:9, 2:12, 1:7] = 1
    labels[3:6, 4:8, 2:5] = 0  # a hole
    labels[4, 5, 3] = 1  # an island in it
    labels[10, 13, 4] = labels[11, 14, 4] = 1  # pixels that touch at a corner
    labels[0, 0, 0] = labels[-1, -1, -1] = 2
    labels[6, 6, 2:4] = 2
    return labels


def _write(folder: Path, files: Sequence[Path], tmp_path: Path) -> tuple[np.ndarray, np.ndarray]:
    (entry,) = register(RegisterOptions(folder, "demo", tmp_path / "first")).entries
    image = nib.load(tmp_path / "first" / str(entry.image))
    labels = _labels(image.shape[:3])
    notes = write_structures(LabelledSeries(labels, files, image.affine, CLASSES, {}, MODEL), folder / "structures.dcm")
    assert notes == [
        "no SNOMED CT code is known for nowhere: coded by name in 99ONCOFED. Name one in the job (task: codes)"
    ]
    return labels, image.affine


def _read_back(folder: Path, tmp_path: Path) -> np.ndarray:
    manifest = register(RegisterOptions(folder, "demo", tmp_path / "second"))
    (entry,) = manifest.entries
    found = np.asarray(nib.load(tmp_path / "second" / str(entry.label)).dataobj)
    names = {name: value for value, name in CLASSES.items()}
    labels = np.zeros(found.shape, np.uint8)
    for value, name in read_manifest(tmp_path / "second").labels.items():
        if int(value):
            labels[found == int(value)] = names[name]
    return labels


def _by_hand(path: Path, affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Labels from the contours' points alone, filled slice by slice."""
    labels = np.zeros(shape, np.uint8)
    to_voxels = np.linalg.inv(affine) @ np.diag([-1.0, -1, 1, 1])
    for region in pydicom.dcmread(path).ROIContourSequence:
        for contour in region.get("ContourSequence", ()):
            points = np.array([float(v) for v in contour.ContourData]).reshape(-1, 3)
            voxels = points @ to_voxels[:3, :3].T + to_voxels[:3, 3]
            assert np.ptp(voxels[:, 2]) < 1e-3
            number = round(voxels[0, 2])
            inside, _ = _filled([np.round(voxels[:, 1::-1], 2)], shape[:2])  # columns of the filled mask are y
            labels[..., number][inside] = region.ReferencedROINumber
    return labels


@pytest.mark.parametrize("orientation", [CORONAL, OBLIQUE])
def test_contours_come_back_as_the_labels(tmp_path: Path, orientation: Sequence[float]) -> None:
    files = make_series(tmp_path / "in", orientation=orientation, names=lambda number: f"{(number * 3) % 8}.dcm")
    labels, affine = _write(tmp_path / "in", files[::-1], tmp_path)
    np.testing.assert_array_equal(_by_hand(tmp_path / "in" / "structures.dcm", affine, labels.shape), labels)
    np.testing.assert_array_equal(_read_back(tmp_path / "in", tmp_path), labels)


def test_contours_name_the_image_that_they_lie_on(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in", orientation=OBLIQUE)
    _write(tmp_path / "in", files, tmp_path)
    structures = pydicom.dcmread(tmp_path / "in" / "structures.dcm")
    places = {str(pydicom.dcmread(f).SOPInstanceUID): pydicom.dcmread(f).ImagePositionPatient for f in files}
    normal = np.cross(OBLIQUE[:3], OBLIQUE[3:])
    for contour in structures.ROIContourSequence[0].ContourSequence:
        own = np.array([float(v) for v in places[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]])
        points = np.array([float(v) for v in contour.ContourData]).reshape(-1, 3)
        assert np.abs((points - own) @ normal).max() < 1e-3
    assert "ContourSequence" not in structures.ROIContourSequence[2]


def test_frames_of_an_enhanced_image(tmp_path: Path) -> None:
    files = make_series(tmp_path / "slices", orientation=OBLIQUE)
    (tmp_path / "in").mkdir()
    enhanced = make_multiframe(tmp_path / "in" / "image.dcm", files[::-1])
    labels, _ = _write(tmp_path / "in", [enhanced], tmp_path)
    np.testing.assert_array_equal(_read_back(tmp_path / "in", tmp_path), labels)
    structures = pydicom.dcmread(tmp_path / "in" / "structures.dcm")
    frames = {c.ContourImageSequence[0].ReferencedFrameNumber for c in structures.ROIContourSequence[0].ContourSequence}
    assert frames == {2, 3, 4, 5, 6, 7}


def test_contours_of_a_tilted_gantry_lie_on_its_own_slices(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in", volume((24, 30, 8)), modality="CT", tilt=0.6)
    (entry,) = register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "first")).entries
    image = nib.load(tmp_path / "first" / str(entry.image))
    labels = np.zeros(image.shape[:3], np.uint8)
    labels[5:15, 12:20, 1:7] = 1
    write_structures(
        LabelledSeries(labels, files, image.affine, {1: "liver"}, {}, MODEL), tmp_path / "in" / "structures.dcm"
    )
    np.testing.assert_array_equal(_read_back(tmp_path / "in", tmp_path), labels)


def test_it_conforms_and_says_what_it_is_for(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in", modality="CT")
    _write(tmp_path / "in", files, tmp_path)
    structures = pydicom.dcmread(tmp_path / "in" / "structures.dcm")
    for module in get_iod_module_map()[get_sop_class_iod_map()[structures.SOPClassUID]]:
        if module["usage"] == "M":
            check_required_attributes(structures, module["key"])
    assert structures.StructureSetLabel == "RESEARCH"
    assert structures.SeriesDescription.startswith("RESEARCH")
    assert structures.DeviceSerialNumber == MODEL.digest
    assert structures.ApprovalStatus == "UNAPPROVED"
    regions = structures.StructureSetROISequence
    assert [str(region.ROIName) for region in regions] == list(CLASSES.values())
    assert structures.RTROIObservationsSequence[1].RTROIIdentificationCodeSequence[0].CodeValue == "64033007"


def test_long_contours_are_written_whole(tmp_path: Path) -> None:
    """A comb's contour exceeds the element length of explicit VR."""
    files = make_series(tmp_path / "in", volume((256, 40, 4)))
    (entry,) = register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "first")).entries
    affine = nib.load(tmp_path / "first" / str(entry.image)).affine
    labels = np.zeros((256, 40, 4), np.uint8)
    labels[:, 0, 1] = 1
    labels[::2, :38:2, 1] = 1
    labels[::2, :38, 1] = 1
    labels[1::4, 1:38, 1] = 1
    labels[2::4, 1:38:2, 1] = 0
    write_structures(LabelledSeries(labels, files, affine, {1: "liver"}, {}, MODEL), tmp_path / "in" / "structures.dcm")
    contours = pydicom.dcmread(tmp_path / "in" / "structures.dcm").ROIContourSequence[0].ContourSequence
    assert max(len("\\".join(map(str, contour.ContourData))) for contour in contours) > 1 << 16
    np.testing.assert_array_equal(_read_back(tmp_path / "in", tmp_path), labels)


def test_a_flat_image_has_no_place_for_contours(tmp_path: Path) -> None:
    file = make_xray(tmp_path, np.zeros((12, 16), np.uint16))
    with pytest.raises(DataError, match="flat image has no place in space"):
        write_structures(
            LabelledSeries(np.ones((16, 12), np.uint8), [file], np.eye(4), {1: "x"}, {}, MODEL), tmp_path / "s.dcm"
        )
