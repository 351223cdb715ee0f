"""Segmentations of all kinds, placed frame by frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from highdicom import PaletteColorLUTTransformation
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import generate_uid

from dicoms import AXIAL, CORONAL, OBLIQUE, make_seg, make_series, make_xray, volume
from oncofed.data.manifest import Entry, Manifest
from oncofed.data.register import RegisterOptions, register

SHAPE = (12, 16, 8)
few = settings(
    max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], phases=[Phase.generate]
)


def _mask(*corners: tuple[slice, slice, slice], shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for corner in corners:
        mask[corner] = True
    return mask


LIVER = _mask((slice(6, 11), slice(2, 14), slice(2, 7)))
TUMOUR = _mask((slice(2, 5), slice(3, 9), slice(1, 6)))


def _register(tmp_path: Path) -> Manifest:
    return register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "out"))


def _read(tmp_path: Path) -> tuple[np.ndarray, Entry]:
    manifest = _register(tmp_path)
    assert [case.reason for case in manifest.quarantine] == []
    (entry,) = manifest.entries
    return np.asarray(nib.load(tmp_path / "out" / str(entry.label)).dataobj), entry


def _padded_by(value: int | None) -> Any:
    """Return a change of a label map's background value.

    Or one that states none.
    """

    def change(dataset: Dataset) -> None:
        if value is None:
            del dataset.PixelPaddingValue
            return
        stored = np.frombuffer(dataset.PixelData, np.uint8).copy()
        stored[stored == 0] = value
        dataset.PixelData, dataset.PixelPaddingValue = stored.tobytes(), value
        dataset.SegmentSequence = Items([s for s in dataset.SegmentSequence if s.SegmentNumber != 0])

    return change


def _palette() -> PaletteColorLUTTransformation:
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)
    return PaletteColorLUTTransformation.from_combined_lut(colours, palette_color_lut_uid=generate_uid())


@pytest.mark.wild("dcmqi#518, OHIF#4875, dcm4chee-arc-light#4572", "a Label Map Segmentation taken for an image")
@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE], ids=["axial", "oblique"])
@pytest.mark.parametrize("padding", ["0", "5", "not said", "palette"])
def test_a_label_map_is_drawn_on_its_series(tmp_path: Path, orientation: tuple[float, ...], padding: str) -> None:
    files = make_series(tmp_path / "in", orientation=orientation)
    change = {"0": None, "palette": None, "5": _padded_by(5), "not said": _padded_by(None)}[padding]
    more = {"palette_color_lut_transformation": _palette()} if padding == "palette" else {}
    sparse = LIVER.copy()
    sparse[..., 4] = False  # no region there: the frame is left out
    tumour = TUMOUR.copy()
    tumour[..., 4] = False
    masks = {"liver": sparse, "tumour": tumour}
    make_seg(tmp_path / "in" / "seg.dcm", files, masks, kind="LABELMAP", change=change, **more)
    mask, entry = _read(tmp_path)
    assert entry.modality == "MR"
    np.testing.assert_array_equal(mask, np.where(tumour, 2, np.where(sparse, 1, 0)))
    assert _register(tmp_path).labels == {"0": "background", "1": "liver", "2": "tumour"}


@pytest.mark.wild("dcmqi#518", "a label map of 16 bits, with numbers above 255")
def test_a_label_map_of_sixteen_bits(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in")

    def change(dataset: Dataset) -> None:
        stored = np.frombuffer(dataset.PixelData, np.uint8).astype(np.uint16)
        stored[stored == 2] = 300
        dataset.PixelData = stored.tobytes()
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit = 15
        dataset["PixelData"].VR = "OW"
        dataset.SegmentSequence[2].SegmentNumber = 300

    make_seg(tmp_path / "in" / "seg.dcm", files, {"liver": LIVER, "tumour": TUMOUR}, kind="LABELMAP", change=change)
    mask, _ = _read(tmp_path)
    np.testing.assert_array_equal(mask, np.where(TUMOUR, 2, np.where(LIVER, 1, 0)))


@pytest.mark.wild("standard: PS3.3 C.8.20", "a segmentation of a kind yet to come, or of surfaces, taken for an image")
@pytest.mark.parametrize("sop_class", ["1.2.840.10008.5.1.4.1.1.66.5", "1.2.840.10008.5.1.4.1.1.66.99"])
def test_no_segmentation_becomes_an_image(tmp_path: Path, sop_class: str) -> None:
    files = make_series(tmp_path / "in")
    path = make_seg(tmp_path / "in" / "seg.dcm", files, {"liver": LIVER})
    dataset = pydicom.dcmread(path)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.save_as(path)
    assert [entry.modality for entry in _register(tmp_path).entries] == ["MR"]


@pytest.mark.wild("dcmqi#157, dcmqi#439", "bits of frames that end in the middle of a byte")
@pytest.mark.parametrize("shape", [(23, 38, 3), (24, 38, 3), (13, 7, 5)])
def test_frames_need_not_end_at_byte_boundaries(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    files = make_series(tmp_path / "in", volume(shape))
    masks = {name: np.random.default_rng(n).random(shape) < 0.4 for n, name in enumerate(("a", "b"))}
    make_seg(tmp_path / "in" / "seg.dcm", files, {"a": masks["a"], "b": masks["b"] & ~masks["a"]})
    mask, _ = _read(tmp_path)
    np.testing.assert_array_equal(mask, np.where(masks["a"], 1, np.where(masks["b"], 2, 0)))


@pytest.mark.wild("dcmqi#518", "segments that overlap")
def test_overlapping_segments_are_reported(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in")
    other = _mask((slice(9, 12), slice(2, 14), slice(2, 7)))
    make_seg(tmp_path / "in" / "seg.dcm", files, {"liver": LIVER, "tumour": other})
    mask, entry = _read(tmp_path)
    np.testing.assert_array_equal(mask, np.where(other, 2, np.where(LIVER, 1, 0)))
    assert f"liver and tumour overlap in {(LIVER & other).sum()} voxels: they count as tumour" in entry.notes


@pytest.mark.wild("–", "a region that is below a half everywhere, or has no pixel, and vanishes unsaid")
def test_a_region_that_vanishes_is_named(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in")
    faint = {"liver": LIVER * 0.3, "tumour": TUMOUR * 0.8}
    make_seg(tmp_path / "in" / "seg.dcm", files, faint, kind="FRACTIONAL")
    mask, entry = _read(tmp_path)
    np.testing.assert_array_equal(mask, 2 * TUMOUR)
    assert "below a half wherever its fractional label shows it, not drawn: liver" in entry.notes
    make_seg(tmp_path / "in" / "seg.dcm", files, {"liver": 0 * LIVER, "tumour": TUMOUR})
    mask, entry = _read(tmp_path)
    np.testing.assert_array_equal(mask, 2 * TUMOUR)
    assert "named without a pixel, not drawn: liver" in entry.notes


@pytest.mark.wild("–", "a fractional segmentation of 0 and 1, and one of values between")
def test_fractions_from_one_half_count_with_a_note(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in")
    fractions = LIVER * np.linspace(0.1, 0.9, 12)[:, None, None]  # columns 6 to 10 hold 0.53 to 0.83
    fractions[8] *= 0.5
    make_seg(tmp_path / "in" / "seg.dcm", files, {"liver": fractions}, kind="FRACTIONAL")
    mask, entry = _read(tmp_path)
    np.testing.assert_array_equal(mask > 0, LIVER & (np.arange(12) != 8)[:, None, None])
    assert any("fractional" in note and "a half" in note for note in entry.notes)
    make_seg(tmp_path / "in" / "seg.dcm", files, {"liver": LIVER.astype(float)}, kind="FRACTIONAL")
    mask, entry = _read(tmp_path)
    np.testing.assert_array_equal(mask > 0, LIVER)
    assert not any("fractional" in note for note in entry.notes)


@pytest.mark.wild("–", "a segment without frames, source images in another order")
def test_a_segment_without_frames_and_sources_in_reverse_order(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in")
    make_seg(tmp_path / "in" / "seg.dcm", files[::-1], {"liver": LIVER[..., ::-1], "none": np.zeros(SHAPE, bool)})
    mask, _ = _read(tmp_path)
    np.testing.assert_array_equal(mask > 0, LIVER)


@pytest.mark.wild("dcmqi#518", "frames of few slices, far apart")
@pytest.mark.parametrize("says_spacing", [True, False])
def test_frames_of_few_slices_fill_only_these(tmp_path: Path, says_spacing: bool) -> None:
    files = make_series(tmp_path / "in")
    sparse = np.zeros(SHAPE, bool)
    sparse[3:6, 4:9, [0, 4, 7]] = True

    def change(dataset: Dataset) -> None:
        measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        measures.SliceThickness = 20
        if not says_spacing and "SpacingBetweenSlices" in measures:
            del measures.SpacingBetweenSlices

    make_seg(tmp_path / "in" / "seg.dcm", files, {"liver": sparse}, change=change)
    mask, _ = _read(tmp_path)
    np.testing.assert_array_equal(mask > 0, sparse)


@pytest.mark.wild("OHIF#4030", "a segmentation on a grid of its own in the frame of reference")
@few
@given(
    st.sampled_from([AXIAL, CORONAL, OBLIQUE]),
    st.tuples(*[st.floats(0.5, 1.9)] * 3),
    st.tuples(*[st.floats(-1, 1)] * 3),
)
def test_a_segmentation_on_another_grid_is_sampled_at_the_voxels(
    tmp_path_factory: pytest.TempPathFactory,
    orientation: tuple[float, ...],
    sizes: tuple[float, float, float],
    shift: tuple[float, float, float],
) -> None:
    """The mask is a ball, so centres determine all voxels."""
    tmp_path = tmp_path_factory.mktemp("grid")
    make_series(tmp_path / "in", volume((14, 15, 10)), spacing=(1, 1, 1.5), origin=(0, 0, 0), patient="P")
    image = pydicom.dcmread(tmp_path / "in" / "0000.dcm")
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    axes = np.stack([row, column, np.cross(row, column)]) * np.array(sizes)[:, None]
    shape = (30, 30, 30)
    middle = np.array([7, 7.5, 6.5])
    origin = middle - (np.array(shape) / 2) @ axes + shift
    own = make_series(
        tmp_path / "other",
        np.zeros(shape, np.int16),
        orientation=orientation,
        spacing=sizes,
        origin=origin,
        patient="P",
        change=lambda _, d: setattr(d, "FrameOfReferenceUID", image.FrameOfReferenceUID),
    )
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    ball = np.linalg.norm(index @ axes + origin - middle, axis=-1) < 5
    make_seg(tmp_path / "in" / "seg.dcm", own, {"ball": ball}, change=_without_references)
    mask, _ = _read(tmp_path)
    centres = np.stack(np.meshgrid(*map(np.arange, (14, 15, 10)), indexing="ij"), axis=-1) * [1, 1, 1.5]
    distance = np.linalg.norm(centres - middle, axis=-1)
    off = np.linalg.norm(sizes) / 2 + 0.01  # to the middle of the nearest voxel of the other grid
    assert (mask[distance < 5 - off] == 1).all()
    assert (mask[distance > 5 + off] == 0).all()


def _without_references(dataset: Dataset) -> None:
    del dataset.ReferencedSeriesSequence, dataset.SourceImageSequence
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        if "DerivationImageSequence" in frame:
            del frame.DerivationImageSequence


# --- flat images


# Attributes that highdicom requires of a segmentation's source image.
_ASKED = dict.fromkeys(
    (
        "PatientBirthDate",
        "PatientSex",
        "StudyDate",
        "StudyTime",
        "StudyID",
        "AccessionNumber",
        "ReferringPhysicianName",
        "PositionReferenceIndicator",
    ),
    "",
)


def _xray(folder: Path, values: np.ndarray, name: str = "x.dcm", **more: Any) -> Path:
    return make_xray(folder, values, name, **_ASKED, **more)


def _xray_seg(path: Path, xray: Path, mask: np.ndarray, name: str = "Pneumonia", **more: Any) -> Path:
    """Write a SEG of (row, column) bool over an X-ray."""
    return make_seg(path, [xray], {name: mask.T[..., None]}, **more)


@pytest.mark.wild("ChestXRayAnatomySegmentation#11", "a segmentation of an X-ray")
@pytest.mark.parametrize("turned", [["L", "F"], ["R", "F"], ["L", "H"], ["F", "L"], ["H", "R"]])
@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_a_segmentation_of_an_xray_lies_pixel_for_pixel(tmp_path: Path, turned: list[str], kind: str) -> None:
    mask = np.zeros((30, 40), bool)
    mask[4:20, 5:15] = True
    mask[25, 38] = True
    values = np.where(mask, 3000, 100).astype(np.uint16)  # marked pixels are bright, for any orientation
    xray = _xray(tmp_path / "in", values, PatientOrientation=turned)
    _xray_seg(tmp_path / "in" / "seg.dcm", xray, mask, kind=kind)
    manifest = _register(tmp_path)
    assert [case.reason for case in manifest.quarantine] == []
    (entry,) = manifest.entries
    image, label = (np.asarray(Image.open(tmp_path / "out" / p)) for p in (entry.images[0], str(entry.label)))
    np.testing.assert_array_equal(label > 0, image == image.max())
    assert entry.label_values == {"0": 1200 - 161, "1": 161}


@pytest.mark.wild("ChestXRayAnatomySegmentation#11", "X-rays of one series, each with its segmentation, or one for all")
def test_each_xray_of_a_series_gets_its_frames(tmp_path: Path) -> None:
    series = generate_uid()
    masks = [np.zeros((30, 40), bool) for _ in range(3)]
    xrays = []
    for number, mask in enumerate(masks):
        mask[4 : 8 + number, 5:15] = True
        values = np.where(mask, 3000, 100).astype(np.uint16)
        more = {"SeriesInstanceUID": series, "StudyInstanceUID": "1.2.3"}
        xrays.append(_xray(tmp_path / "in", values, f"x{number}.dcm", **more))
        if number < 2:
            _xray_seg(tmp_path / "in" / f"seg{number}.dcm", xrays[-1], mask)
    entries = _register(tmp_path).entries
    found = sorted((entry.label_values or {}).get("1", 0) for entry in entries)
    assert found == [0, 40, 50]  # the third one has none, and does not take another's


@pytest.mark.wild("ChestXRayAnatomySegmentation#11", "a segmentation of an X-ray of another size")
def test_a_segmentation_of_another_size_is_refused_in_words(tmp_path: Path) -> None:
    large = _xray(tmp_path / "large", np.zeros((60, 80), np.uint16))
    small = _xray(tmp_path / "in", np.arange(1200, dtype=np.uint16).reshape(30, 40))
    original, other = pydicom.dcmread(small), pydicom.dcmread(large)
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"):
        setattr(other, keyword, getattr(original, keyword))
    other.save_as(large)
    _xray_seg(tmp_path / "in" / "seg.dcm", large, np.ones((60, 80), bool))
    (case,) = _register(tmp_path).quarantine
    assert case.reason == "its label has 80 x 60 pixels, expected the image's 40 x 30"


@pytest.mark.wild("–", "a segmentation that is cut off")
def test_a_segmentation_that_is_cut_off_is_refused_in_words(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in")

    def change(dataset: Dataset) -> None:
        dataset.PixelData = dataset.PixelData[: len(dataset.PixelData) // 2]

    make_seg(tmp_path / "in" / "seg.dcm", files, {"liver": LIVER}, change=change)
    (case,) = _register(tmp_path).quarantine
    assert "its label is cut off" in case.reason


@pytest.mark.wild("dcmqi#439", "frames of a segmentation without a place")
def test_frames_without_a_place_are_refused_in_words(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in")

    def change(dataset: Dataset) -> None:
        for frame in dataset.PerFrameFunctionalGroupsSequence:
            del frame.PlanePositionSequence

    make_seg(tmp_path / "in" / "seg.dcm", files, {"liver": LIVER}, change=change)
    (case,) = _register(tmp_path).quarantine
    assert "have no place in space (PlanePositionSequence)" in case.reason


@pytest.mark.wild("–", "a segment whose name is missing")
def test_an_unlabelled_segment_gets_another_name(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in")

    def change(dataset: Dataset) -> None:
        dataset.SegmentSequence[0].SegmentLabel = ""
        dataset.SegmentSequence[1].SegmentLabel = None
        dataset.SegmentSequence[1].SegmentDescription = "the tumour"

    make_seg(tmp_path / "in" / "seg.dcm", files, {"a": LIVER, "b": TUMOUR}, change=change)
    _read(tmp_path)
    assert _register(tmp_path).labels == {"0": "background", "1": "segment 1", "2": "the tumour"}
