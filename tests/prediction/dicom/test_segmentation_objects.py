"""A SEG is on its series' grid.

Read back by hand, with SimpleITK, and by registering it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from highdicom._standard_utils import check_required_attributes, get_iod_module_map, get_sop_class_iod_map
from PIL import Image
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, SecondaryCaptureImageStorage, generate_uid

from dicoms import AXIAL, CORONAL, OBLIQUE, SAGITTAL, make_multiframe, make_series, make_xray, volume
from oncofed.data.manifest import Entry, read_manifest
from oncofed.data.register import RegisterOptions, register
from oncofed.errors import DataError
from oncofed.prediction.dicom.common import ModelIdentity
from oncofed.prediction.dicom.labelled_series import LabelledSeries
from oncofed.prediction.dicom.segmentation import write_segmentation
from oncofed.tasks.codes import ClassCode

MODEL = ModelIdentity("organs", "0123456789abcdef" * 4)
CLASSES = {1: "liver", 2: "left kidney", 3: "spot"}


def _labels(shape: Sequence[int]) -> np.ndarray:
    """Asymmetric labels, also at borders, with an empty slice."""
    labels = np.zeros(shape, np.uint8)
    labels[np.random.default_rng(1).random(shape) > 0.9] = 1
    labels[: shape[0] // 2, 1:4, shape[2] // 2 :] = 2
    if shape[2] > 4:
        labels[..., 2] = 0
    labels[0, -1, -1] = 3
    return labels


def _register(folder: Path, out: Path) -> tuple[Path, Entry]:
    manifest = register(RegisterOptions(folder, "demo", out))
    assert [case.reason for case in manifest.quarantine] == []
    (entry,) = manifest.entries
    return out / entry.image, entry  # type: ignore[operator]


def _volume(folder: Path, tmp_path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of a folder's volume when registered."""
    path, _ = _register(folder, tmp_path / "first")
    image = nib.load(path)
    return image.shape[:3], image.affine


def _read_back(folder: Path, tmp_path: Path) -> np.ndarray:
    """Labels of a folder's SEG, read as by registration.

    On the grid of its series.
    """
    _, entry = _register(folder, tmp_path / "second")
    found = np.asarray(nib.load(tmp_path / "second" / str(entry.label)).dataobj)
    names = {name: value for value, name in CLASSES.items()}
    read = register_labels(tmp_path / "second")
    table = np.zeros(max([*read, 0]) + 1, np.uint8)
    for value, name in read.items():
        table[value] = names[name]
    return table[found]


def register_labels(out: Path) -> dict[int, str]:
    return {int(value): name for value, name in read_manifest(out).labels.items() if int(value)}


def _frames(path: Path) -> list[tuple[int, np.ndarray, np.ndarray, str]]:
    """Segment, pose (4, 4), mask and source of each frame.

    From the file's bytes; the pose is in LPS, the mask (row, column).
    """
    seg = pydicom.dcmread(path)
    size = seg.Rows * seg.Columns
    bits = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8), bitorder="little")[: size * seg.NumberOfFrames]
    masks = bits.reshape(seg.NumberOfFrames, seg.Rows, seg.Columns)
    shared = seg.SharedFunctionalGroupsSequence[0]
    found = []
    for mask, group in zip(masks, seg.PerFrameFunctionalGroupsSequence, strict=True):
        place = np.eye(4)
        orientation = [float(v) for v in shared.PlaneOrientationSequence[0].ImageOrientationPatient]
        down, across = (float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing)
        place[:3, 0], place[:3, 1] = np.array(orientation[:3]) * across, np.array(orientation[3:]) * down
        place[:3, 3] = [float(v) for v in group.PlanePositionSequence[0].ImagePositionPatient]
        segments = group.get("SegmentIdentificationSequence") or shared.SegmentIdentificationSequence
        source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        found.append((int(segments[0].ReferencedSegmentNumber), place, mask, str(source)))
    return found


def _by_positions(path: Path, affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Labels (x, y, z) of a SEG, by frame position."""
    labels = np.zeros(shape, np.uint8)
    to_voxels = np.linalg.inv(affine) @ np.diag([-1.0, -1, 1, 1])
    for segment, place, mask, _ in _frames(path):
        rows, columns = np.nonzero(mask)
        points = np.stack([columns, rows, np.zeros(len(rows)), np.ones(len(rows))])
        voxels = (to_voxels @ place @ points)[:3]
        assert np.abs(voxels - np.rint(voxels)).max(initial=0) < 0.05
        labels[tuple(np.rint(voxels).astype(int))] = segment
    return labels


def _conforms(path: Path) -> None:
    """Check that all attributes of type 1 and 2 exist.

    By the standard's tables for the object's modules.
    """
    dataset = pydicom.dcmread(path)
    for module in get_iod_module_map()[get_sop_class_iod_map()[dataset.SOPClassUID]]:
        # What is shared need not be in each frame's groups, which the tables cannot tell; the readers below see it.
        if module["usage"] == "M" and not module["key"].endswith("functional-groups"):
            check_required_attributes(dataset, module["key"])


def _write(folder: Path, files: Sequence[Path], tmp_path: Path, **more: Any) -> tuple[np.ndarray, np.ndarray]:
    """Write a SEG for a series; return labels and affine."""
    shape, affine = _volume(folder, tmp_path)
    labels = _labels(shape)
    write_segmentation(LabelledSeries(labels, files, affine, CLASSES, {}, MODEL), folder / "seg.dcm", **more)
    return labels, affine


def _same(folder: Path, labels: np.ndarray, affine: np.ndarray, tmp_path: Path) -> None:
    _conforms(folder / "seg.dcm")
    np.testing.assert_array_equal(_by_positions(folder / "seg.dcm", affine, labels.shape), labels)
    np.testing.assert_array_equal(_read_back(folder, tmp_path), labels)


@pytest.mark.parametrize("orientation", [AXIAL, SAGITTAL, CORONAL, OBLIQUE])
def test_labels_come_back_on_each_direction_of_slices(tmp_path: Path, orientation: Sequence[float]) -> None:
    files = make_series(tmp_path / "in", orientation=orientation, names=lambda number: f"{number * 5 % 8}/IM{number}")
    labels, affine = _write(tmp_path / "in", files[::-1], tmp_path)
    _same(tmp_path / "in", labels, affine, tmp_path)
    sources = {pydicom.dcmread(file).SOPInstanceUID: pydicom.dcmread(file).ImagePositionPatient for file in files}
    for _, place, _, source in _frames(tmp_path / "in" / "seg.dcm"):
        assert np.allclose(place[:3, 3], [float(v) for v in sources[source]], atol=1e-4)


def _as_ct(number: int, dataset: Dataset) -> None:
    dataset.RescaleIntercept, dataset.RescaleSlope = -1024, 2


def test_values_of_ct_and_pixels_of_different_sides_do_not_matter(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in", modality="CT", change=_as_ct, orientation=OBLIQUE, spacing=(0.5, 1.3, 3.0))
    labels, affine = _write(tmp_path / "in", files, tmp_path)
    _same(tmp_path / "in", labels, affine, tmp_path)
    seg = pydicom.dcmread(tmp_path / "in" / "seg.dcm")
    assert {item.ReferencedSOPClassUID for item in seg.SourceImageSequence} == {CTImageStorage}


@pytest.mark.parametrize("enhanced_ct", [False, True])
def test_frames_of_an_enhanced_image_in_any_order(tmp_path: Path, enhanced_ct: bool) -> None:
    files = make_series(tmp_path / "slices", orientation=OBLIQUE)
    (tmp_path / "in").mkdir()
    enhanced = make_multiframe(tmp_path / "in" / "image.dcm", [files[n] for n in (3, 0, 7, 1, 6, 2, 5, 4)])
    if enhanced_ct:
        dataset = pydicom.dcmread(enhanced)
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
        dataset.Modality = "CT"
        dataset.save_as(enhanced)
    labels, affine = _write(tmp_path / "in", [enhanced], tmp_path)
    _same(tmp_path / "in", labels, affine, tmp_path)
    seg, source = pydicom.dcmread(tmp_path / "in" / "seg.dcm"), pydicom.dcmread(enhanced)
    for group in seg.PerFrameFunctionalGroupsSequence:
        image = group.DerivationImageSequence[0].SourceImageSequence[0]
        assert image.ReferencedSOPClassUID == source.SOPClassUID
        frame = source.PerFrameFunctionalGroupsSequence[image.ReferencedFrameNumber - 1]
        own, other = (g.PlanePositionSequence[0].ImagePositionPatient for g in (group, frame))
        assert np.allclose([float(v) for v in own], [float(v) for v in other], atol=1e-4)


def test_labels_of_a_tilted_gantry_go_back_to_its_own_slices(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in", volume((24, 30, 8)), modality="CT", tilt=0.6)
    shape, affine = _volume(tmp_path / "in", tmp_path)
    assert shape[1] > 30  # straightened: wider than the slices
    labels = np.zeros(shape, np.uint8)
    labels[5:15, 12:20, 1:7] = 1
    write_segmentation(LabelledSeries(labels, files, affine, {1: "liver"}, {}, MODEL), tmp_path / "in" / "seg.dcm")
    to_voxels = np.linalg.inv(affine) @ np.diag([-1.0, -1, 1, 1])
    frames = _frames(tmp_path / "in" / "seg.dcm")
    assert len(frames) == 6
    for _, place, mask, _ in frames:
        rows, columns = np.indices(mask.shape)
        points = np.stack([columns.ravel(), rows.ravel(), 0 * rows.ravel(), 1 + 0 * rows.ravel()])
        x, y, z = np.rint((to_voxels @ place @ points)[:3]).astype(int)
        np.testing.assert_array_equal(mask.ravel(), labels[x, y, z])
    np.testing.assert_array_equal(_read_back(tmp_path / "in", tmp_path) > 0, labels > 0)


def test_one_slice(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in", volume()[..., :1], orientation=OBLIQUE)
    labels, affine = _write(tmp_path / "in", files, tmp_path)
    _same(tmp_path / "in", labels, affine, tmp_path)


def test_a_label_map_holds_the_same(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in", orientation=OBLIQUE)
    labels, _ = _write(tmp_path / "in", files, tmp_path, kind="labelmap")
    assert pydicom.dcmread(tmp_path / "in" / "seg.dcm").SegmentationType == "LABELMAP"
    np.testing.assert_array_equal(_read_back(tmp_path / "in", tmp_path), labels)


def test_simpleitk_puts_the_labels_on_the_same_voxels(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    files = make_series(tmp_path / "in", orientation=OBLIQUE, names=lambda number: f"{(number * 3) % 8:02d}.dcm")
    labels, affine = _write(tmp_path / "in", files, tmp_path)
    (tmp_path / "in" / "seg.dcm").rename(tmp_path / "seg.dcm")
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "in")))
    masks = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "seg.dcm")))
    found = np.zeros(image.GetSize(), np.uint8)
    for (segment, place, _, _), mask in zip(_frames(tmp_path / "seg.dcm"), masks, strict=True):
        for row, column in np.argwhere(mask > 0):
            point = place @ [column, row, 0, 1]
            found[image.TransformPhysicalPointToIndex(point[:3].tolist())] = segment
    # The volume's voxels on the image of SimpleITK, by their places.
    for voxel in np.ndindex(labels.shape):
        point = (np.diag([-1.0, -1, 1, 1]) @ affine @ [*voxel, 1])[:3]
        assert found[image.TransformPhysicalPointToIndex(point.tolist())] == labels[voxel]
    assert np.count_nonzero(found) == np.count_nonzero(labels) > 0


# --- what is refused, and what is found among more


def test_a_series_that_lacks_slices_is_refused(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in")
    shape, affine = _volume(tmp_path / "in", tmp_path)
    with pytest.raises(DataError, match="lacks 1 of 8 slices"):
        write_segmentation(
            LabelledSeries(_labels(shape), [*files[:3], *files[4:]], affine, CLASSES, {}, MODEL), tmp_path / "seg.dcm"
        )
    with pytest.raises(DataError, match="do not lie on the grid"):
        write_segmentation(LabelledSeries(_labels(shape), files[:-1], affine, CLASSES, {}, MODEL), tmp_path / "seg.dcm")
    assert not (tmp_path / "seg.dcm").exists()


@pytest.mark.parametrize("moved", ["aside", "along", "turned", "larger"])
def test_labels_of_another_grid_are_refused(tmp_path: Path, moved: str) -> None:
    files = make_series(tmp_path / "in", orientation=OBLIQUE)
    shape, affine = _volume(tmp_path / "in", tmp_path)
    changes: dict[str, Callable[[], np.ndarray]] = {
        "aside": lambda: affine @ np.array([[1, 0, 0, 2.0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        "along": lambda: affine @ np.array([[1, 0, 0, 0.0], [0, 1, 0, 0], [0, 0, 1, 0.5], [0, 0, 0, 1]]),
        "turned": lambda: np.diag([1.0, 1, 1, 1]) @ affine @ np.diag([1.1, 1, 1, 1]),
        "larger": lambda: affine,
    }
    labels = _labels(shape)
    labels = np.pad(labels, [(0, 1), (0, 0), (0, 0)]) if moved == "larger" else labels
    with pytest.raises(DataError, match="do not lie on the grid"):
        write_segmentation(LabelledSeries(labels, files, changes[moved](), CLASSES, {}, MODEL), tmp_path / "seg.dcm")


def test_a_volume_that_is_turned_over_is_put_back(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in", orientation=OBLIQUE)
    shape, affine = _volume(tmp_path / "in", tmp_path)
    labels = _labels(shape)
    over = nib.Nifti1Image(labels, affine).as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    found = np.asarray(over.dataobj)
    write_segmentation(LabelledSeries(found, files, over.affine, CLASSES, {}, MODEL), tmp_path / "in" / "seg.dcm")
    _same(tmp_path / "in", labels, affine, tmp_path)


def test_with_two_volumes_in_a_series_labels_are_on_their_volume(tmp_path: Path) -> None:
    series = generate_uid()

    def echo(time: float) -> Callable[[int, Dataset], None]:
        def change(number: int, dataset: Dataset) -> None:
            dataset.EchoTime, dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = time, "1.2.3", "1.2.4"

        return change

    one = make_series(tmp_path / "one", series=series, change=echo(10))
    two = make_series(tmp_path / "two", series=series, change=echo(20))
    shape, affine = _volume(tmp_path / "one", tmp_path)
    labels = _labels(shape)
    with pytest.raises(DataError, match="2 volumes at one place"):
        write_segmentation(LabelledSeries(labels, [*one, *two], affine, CLASSES, {}, MODEL), tmp_path / "seg.dcm")
    write_segmentation(LabelledSeries(labels, two, affine, CLASSES, {}, MODEL), tmp_path / "seg.dcm")
    own = {str(pydicom.dcmread(file).SOPInstanceUID) for file in two}
    assert {source for *_, source in _frames(tmp_path / "seg.dcm")} <= own
    np.testing.assert_array_equal(_by_positions(tmp_path / "seg.dcm", affine, shape), labels)


def test_a_volume_elsewhere_in_the_series_is_passed_over(tmp_path: Path) -> None:
    series = generate_uid()

    def alike(number: int, dataset: Dataset) -> None:
        dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", "1.2.4"

    one = make_series(tmp_path / "one", series=series, change=alike)
    two = make_series(tmp_path / "two", series=series, change=alike, orientation=SAGITTAL)
    shape, affine = _volume(tmp_path / "two", tmp_path)
    write_segmentation(LabelledSeries(_labels(shape), [*one, *two], affine, CLASSES, {}, MODEL), tmp_path / "seg.dcm")
    np.testing.assert_array_equal(_by_positions(tmp_path / "seg.dcm", affine, shape), _labels(shape))


# --- headers as they come


def _dirty(number: int, dataset: Dataset) -> None:
    for keyword in ("StudyID", "AccessionNumber", "ReferringPhysicianName", "SliceThickness", "FrameOfReferenceUID"):
        delattr(dataset, keyword)
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.PatientName = "Jäger^Zoë"
    with pydicom.config.disable_value_validation():
        dataset.PatientSex, dataset.StudyDate = "female", "2020/01/02"
        dataset.PatientID, dataset.PatientAge = "1" * 70, "in her seventies"
        dataset.add(DataElement(0x00101030, "DS", "heavy", already_converted=True))  # PatientWeight
    dataset.SpacingBetweenSlices = "-9.0"
    # Directions that differ in the last digit, as some scanners write them.
    dataset.ImageOrientationPatient = [1.0, 1e-6 * number, 0, 0, 1, 0]


@pytest.mark.filterwarnings("ignore:Invalid value", "ignore:The value length")
def test_missing_or_wrong_headers_are_tolerated(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in", change=_dirty)
    shape, affine = _volume(tmp_path / "in", tmp_path)
    labels = _labels(shape)
    classes = {1: "Leber\\Ödem " + "x" * 80, 2: "left kidney", 3: "spot"}
    notes = write_segmentation(LabelledSeries(labels, files, affine, classes, {}, MODEL), tmp_path / "in" / "seg.dcm")
    assert len(notes) == 1
    assert "99ONCOFED" in notes[0]
    _conforms(tmp_path / "in" / "seg.dcm")
    np.testing.assert_array_equal(_by_positions(tmp_path / "in" / "seg.dcm", affine, shape), labels)
    seg = pydicom.dcmread(tmp_path / "in" / "seg.dcm")
    assert str(seg.PatientName) == "Jäger^Zoë"
    assert (seg.PatientSex, seg.StudyDate, seg.StudyID) == ("", "", "")
    assert len(seg.SegmentSequence[0].SegmentLabel) <= 64
    assert float(seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices) == 2.5
    again = tmp_path / "again.dcm"
    write_segmentation(LabelledSeries(labels, files, affine, classes, {}, MODEL), again)
    assert pydicom.dcmread(again).FrameOfReferenceUID == seg.FrameOfReferenceUID


def test_slices_in_separate_series_are_referenced_by_their_series(tmp_path: Path) -> None:
    uids = [generate_uid() for _ in range(8)]

    def apart(number: int, dataset: Dataset) -> None:
        dataset.SeriesInstanceUID = uids[number]

    files = make_series(tmp_path / "in", change=apart)
    labels, affine = _write(tmp_path / "in", files, tmp_path)
    seg = pydicom.dcmread(tmp_path / "in" / "seg.dcm")
    assert [item.SeriesInstanceUID for item in seg.ReferencedSeriesSequence] == uids
    np.testing.assert_array_equal(_by_positions(tmp_path / "in" / "seg.dcm", affine, labels.shape), labels)


def test_files_that_cannot_be_referenced_are_refused(tmp_path: Path) -> None:
    def change(number: int, dataset: Dataset) -> None:
        del dataset.StudyInstanceUID

    files = make_series(tmp_path / "in", change=change)
    shape, affine = _volume(tmp_path / "in", tmp_path)
    with pytest.raises(DataError, match=r"has no StudyInstanceUID, by which"):
        write_segmentation(LabelledSeries(_labels(shape), files, affine, CLASSES, {}, MODEL), tmp_path / "seg.dcm")
    (tmp_path / "text.dcm").write_text("no image")
    with pytest.raises(DataError, match=r"text\.dcm"):
        write_segmentation(
            LabelledSeries(_labels(shape), [tmp_path / "text.dcm"], affine, CLASSES, {}, MODEL), tmp_path / "seg.dcm"
        )


# --- flat images


TURNS = [["L", "F"], ["R", "F"], ["L", "H"], ["F", "L"], ["F", "R"], ["H", "L"], None]


@pytest.mark.parametrize("turned", TURNS)
def test_labels_of_an_x_ray_lie_on_the_pixels_as_they_are_stored(tmp_path: Path, turned: list[str] | None) -> None:
    pixels = np.random.default_rng(0).integers(0, 4000, (30, 20)).astype(np.uint16)
    more = {"PatientOrientation": turned or [], "FrameOfReferenceUID": generate_uid()}
    file = make_xray(tmp_path / "in", pixels, **more)
    path, _ = _register(tmp_path / "in", tmp_path / "first")
    shown = np.asarray(Image.open(path)).T  # (x, y)
    # What is bright is the label: on the stored pixels it must be bright, too.
    labels = (shown > 3000).astype(np.uint8)
    write_segmentation(LabelledSeries(labels, [file], np.eye(4), {1: "liver"}, {}, MODEL), tmp_path / "in" / "seg.dcm")
    seg = pydicom.dcmread(tmp_path / "in" / "seg.dcm")
    np.testing.assert_array_equal(seg.pixel_array > 0, pixels > 3000)
    assert seg.SourceImageSequence[0].ReferencedSOPClassUID == pydicom.dcmread(file).SOPClassUID
    assert "FrameOfReferenceUID" not in seg
    assert list(seg.PatientOrientation or []) == (turned or [])
    _conforms(tmp_path / "in" / "seg.dcm")
    _, entry = _register(tmp_path / "in", tmp_path / "second")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "second" / str(entry.label))).T > 0, labels > 0)


@pytest.mark.parametrize("kind", ["colour", "no place"])
def test_flat_images_of_other_kinds(tmp_path: Path, kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (12, 16)).astype(np.uint16)
    file = make_xray(tmp_path / "in", pixels)
    dataset = pydicom.dcmread(file)
    if kind == "colour":
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        dataset.PixelData = np.repeat(pixels.astype(np.uint8)[..., None], 3, axis=-1).tobytes()
        dataset.Modality = "OT"
    else:
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        dataset.Modality = "MR"
        del dataset.PatientOrientation
    dataset.save_as(file)
    labels = np.zeros((16, 12), np.uint8)
    labels[2:9, 3:7] = 2
    write_segmentation(LabelledSeries(labels, [file], np.eye(4), CLASSES, {}, MODEL), tmp_path / "seg.dcm")
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    _conforms(tmp_path / "seg.dcm")
    np.testing.assert_array_equal(seg.pixel_array[1].T, labels > 0)
    assert not seg.pixel_array[[0, 2]].any()
    assert seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence[0].ReferencedSOPClassUID == dataset.SOPClassUID


# --- what it says


def test_each_object_names_maker_source_and_purpose(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in")
    shape, affine = _volume(tmp_path / "in", tmp_path)
    codes = {3: ClassCode.model_validate({"scheme": "SCT", "value": "5366008", "modifier": "SCT:255549009"})}
    notes = write_segmentation(
        LabelledSeries(_labels(shape), files, affine, CLASSES, codes, MODEL), tmp_path / "seg.dcm"
    )
    assert notes == []
    seg, source = pydicom.dcmread(tmp_path / "seg.dcm"), pydicom.dcmread(files[0])
    assert seg.ContentLabel == "RESEARCH"
    assert seg.SeriesDescription.startswith("RESEARCH")
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID", "AccessionNumber", "StudyDate"):
        assert seg[keyword].value == source[keyword].value
    assert seg.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert seg.DeviceSerialNumber == MODEL.digest
    (algorithm,) = seg.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmFamilyCodeSequence[0].CodeValue == "123110"
    assert f"model_sha256={MODEL.digest}" in algorithm.AlgorithmParameters
    assert MODEL.version in algorithm.AlgorithmVersion
    assert MODEL.digest[:12] in algorithm.AlgorithmVersion
    kinds = [segment.SegmentedPropertyTypeCodeSequence[0] for segment in seg.SegmentSequence]
    assert [kind.CodeValue for kind in kinds] == ["10200004", "64033007", "5366008"]
    assert kinds[1].SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert kinds[2].SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Anterior"
    named = {str(item.ReferencedSOPInstanceUID) for item in seg.SourceImageSequence}
    assert named == {str(pydicom.dcmread(file).SOPInstanceUID) for file in files}


def test_an_absent_class_is_described_without_a_frame(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in")
    shape, affine = _volume(tmp_path / "in", tmp_path)
    labels = np.zeros(shape, np.uint8)
    labels[3, 4, 5] = 3
    write_segmentation(LabelledSeries(labels, files, affine, CLASSES, {}, MODEL), tmp_path / "seg.dcm")
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert [str(segment.SegmentLabel) for segment in seg.SegmentSequence] == list(CLASSES.values())
    assert [segment for segment, *_ in _frames(tmp_path / "seg.dcm")] == [3]


def test_without_findings_each_class_has_one_empty_frame(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in", orientation=OBLIQUE)
    shape, affine = _volume(tmp_path / "in", tmp_path)
    write_segmentation(
        LabelledSeries(np.zeros(shape, np.uint8), files, affine, CLASSES, {}, MODEL), tmp_path / "seg.dcm"
    )
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert [(segment, mask.any()) for segment, _, mask, _ in _frames(tmp_path / "seg.dcm")] == [
        (1, False),
        (2, False),
        (3, False),
    ]
    assert len(seg.SourceImageSequence) == 8
    _conforms(tmp_path / "seg.dcm")


def test_the_same_labels_give_the_same_object_and_others_another(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in")
    shape, affine = _volume(tmp_path / "in", tmp_path)
    labels = _labels(shape)

    def made(labels: np.ndarray, order: Sequence[Path], model: ModelIdentity = MODEL) -> Dataset:
        write_segmentation(LabelledSeries(labels, order, affine, CLASSES, {}, model), tmp_path / "seg.dcm")
        found = pydicom.dcmread(tmp_path / "seg.dcm")
        for keyword in ("InstanceCreationDate", "InstanceCreationTime", "ContentDate", "ContentTime"):
            delattr(found, keyword)
        for item in found.ContributingEquipmentSequence:
            item.pop("ContributionDateTime", None)
        return found

    first = made(labels, files)
    assert made(labels, files[::-1]) == first
    other = made(np.where(labels == 1, 0, labels), files)
    assert other.SOPInstanceUID != first.SOPInstanceUID
    assert other.SeriesInstanceUID == first.SeriesInstanceUID
    third = made(labels, files, ModelIdentity("organs", "f" * 64))
    assert third.SeriesInstanceUID != first.SeriesInstanceUID


def test_an_existing_file_stays_if_its_replacement_fails(tmp_path: Path) -> None:
    files = make_series(tmp_path / "in")
    shape, affine = _volume(tmp_path / "in", tmp_path)
    write_segmentation(LabelledSeries(_labels(shape), files, affine, CLASSES, {}, MODEL), tmp_path / "seg.dcm")
    before = (tmp_path / "seg.dcm").read_bytes()
    shutil.rmtree(tmp_path / "in")
    with pytest.raises((DataError, OSError)):
        write_segmentation(LabelledSeries(_labels(shape), files, affine, CLASSES, {}, MODEL), tmp_path / "seg.dcm")
    assert (tmp_path / "seg.dcm").read_bytes() == before
