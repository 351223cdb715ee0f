"""Labels are matched by reference, else by space.

Those without an image say why.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import generate_uid

from dicoms import item, make_multiframe, make_rtstruct, make_seg, make_series, make_xray, volume
from oncofed.data.dicom import matching
from oncofed.data.dicom.headers import read_header
from oncofed.data.dicom.stacks import LabelFile, Slice, Stack
from oncofed.data.manifest import Entry, Manifest
from oncofed.data.register import RegisterOptions, register

SHAPE = (12, 16, 8)
ORIGIN = np.array([-30.0, -40, 10])
SPACING = (0.8, 0.7, 2.5)
few = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

Change = Callable[[Dataset], None]


def _mask() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[2:5, 3:9, 1:6] = True
    return mask


def _contours() -> list[np.ndarray]:
    """The outline of ``_mask``."""
    corners = np.array([(1.5, 2.5), (4.5, 2.5), (4.5, 8.5), (1.5, 8.5)])
    return [np.array([(x, y, depth) for x, y in corners]) * SPACING + ORIGIN for depth in range(1, 6)]


def _label(kind: str, path: Path, files: list[Path], change: Change | None = None) -> None:
    if kind == "seg":
        make_seg(path, files, {"liver": _mask()}, change=change)
    else:
        make_rtstruct(path, files, {"liver": _contours()}, change=change)


def _series(folder: Path, change: Change | None = None, **more: object) -> list[Path]:
    return make_series(
        folder, spacing=SPACING, origin=ORIGIN, change=lambda _, d: change(d) if change else None, **more
    )  # type: ignore[arg-type]


def _register(tmp_path: Path, **more: object) -> Manifest:
    manifest = register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "out", **more))  # type: ignore[arg-type]
    rows = list(csv.DictReader((tmp_path / "out" / "files.csv").open()))
    assert len(rows) == len({row["path"] for row in rows}) == sum(manifest.files.values())
    assert all(bool(row["reason"]) == (row["use"] == "left out") for row in rows)
    return manifest


def _labelled(manifest: Manifest, tmp_path: Path) -> list[Entry]:
    """Return labelled entries, after checking each label's place."""
    found = [entry for entry in manifest.entries if isinstance(entry.label, str)]
    for entry in found:
        drawn = np.asarray(nib.load(tmp_path / "out" / str(entry.label)).dataobj)
        np.testing.assert_array_equal(drawn > 0, _mask())
    return found


# --- ways to name an image


def _by_series(dataset: Dataset) -> None:
    """As it is written."""


def _no_reference(dataset: Dataset) -> None:
    for keyword in ("ReferencedSeriesSequence", "SourceImageSequence"):
        if keyword in dataset:
            delattr(dataset, keyword)
    for frame in dataset.get("PerFrameFunctionalGroupsSequence", ()):
        if "DerivationImageSequence" in frame:
            del frame.DerivationImageSequence
    for frame in dataset.get("ReferencedFrameOfReferenceSequence", ()):
        del frame.RTReferencedStudySequence


def _no_reference_at_all(dataset: Dataset) -> None:
    """Structure sets without any sequence of frames of reference.

    The sequence is of type 3.
    """
    _no_reference(dataset)
    if "ReferencedFrameOfReferenceSequence" in dataset:
        del dataset.ReferencedFrameOfReferenceSequence


def _by_images(dataset: Dataset) -> None:
    """Only frames or contours say which images they lie on."""
    images = [str(i.ReferencedSOPInstanceUID) for i in dataset.get("SourceImageSequence", ())] or _IMAGES
    if "ReferencedSeriesSequence" in dataset:
        del dataset.ReferencedSeriesSequence, dataset.SourceImageSequence
        return
    _no_reference(dataset)
    for contour, image in zip(dataset.ROIContourSequence[0].ContourSequence, images[1:], strict=False):
        contour.ContourImageSequence = Items([item(ReferencedSOPInstanceUID=image)])


def _in_a_study_of_its_own(dataset: Dataset) -> None:
    if "ReferencedSeriesSequence" not in dataset:
        dataset.StudyInstanceUID = generate_uid()
        return
    other = item(StudyInstanceUID=dataset.StudyInstanceUID, ReferencedSeriesSequence=dataset.ReferencedSeriesSequence)
    dataset.StudiesContainingOtherReferencedInstancesSequence = Items([other])
    dataset.StudyInstanceUID = generate_uid()
    del dataset.ReferencedSeriesSequence, dataset.SourceImageSequence


_IMAGES: list[str] = []
WAYS = [_by_series, _no_reference, _no_reference_at_all, _by_images, _in_a_study_of_its_own]


def _uids(files: list[Path]) -> list[str]:
    return [str(pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID) for file in files]


@pytest.mark.wild(
    "rt-utils#33, OHIF#4030, OHIF#2361, OHIF#2017, dcmqi#439, dcmqi#157",
    "labels that name no series",
)
@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.strip("_"))
def test_a_label_finds_its_image_by_what_it_names(tmp_path: Path, kind: str, way: Change) -> None:
    files = _series(tmp_path / "in")
    _IMAGES[:] = _uids(files)
    _series(tmp_path / "in" / "other", patient="MRN-0002")
    _label(kind, tmp_path / "in" / "label.dcm", files, way)
    manifest = _register(tmp_path)
    (entry,) = _labelled(manifest, tmp_path)
    assert "label.dcm" not in {case.source for case in manifest.quarantine}
    by_space = way in (_no_reference, _no_reference_at_all)
    assert (matching.BY_SPACE in entry.notes) == by_space


@pytest.mark.wild("rt-utils#82, OHIF#3537", "a label of a series that is not in the folder")
@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_a_label_of_a_missing_series_is_reported(tmp_path: Path, kind: str) -> None:
    absent = _series(tmp_path / "absent")
    frame = pydicom.dcmread(absent[0]).FrameOfReferenceUID
    _series(tmp_path / "in", lambda d: setattr(d, "FrameOfReferenceUID", frame))
    _label(kind, tmp_path / "in" / "label.dcm", absent)
    manifest = _register(tmp_path)
    assert _labelled(manifest, tmp_path) == []
    assert manifest.left_out == {matching.NO_SERIES: 1}


@pytest.mark.wild("OHIF#3537", "the series of another phase in the same frame of reference")
@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_a_label_of_one_series_is_not_matched_with_another(tmp_path: Path, kind: str) -> None:
    arterial = _series(tmp_path / "in" / "a")
    frame = pydicom.dcmread(arterial[0]).FrameOfReferenceUID
    _series(tmp_path / "in" / "v", lambda d: setattr(d, "FrameOfReferenceUID", frame))
    _label(kind, tmp_path / "in" / "label.dcm", arterial)
    (entry,) = _labelled(_register(tmp_path), tmp_path)
    assert str(entry.source).startswith("a/")


def _two_phases(folder: Path) -> tuple[list[Path], list[Path]]:
    """Write one series of two volumes, which AcquisitionNumber tells apart."""
    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    phases = []
    for number in (1, 2):

        def change(dataset: Dataset, number: int = number) -> None:
            dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = study, frame
            dataset.AcquisitionNumber = number

        values = volume(seed=number)
        phases.append(_series(folder / str(number), change, series=series, values=values))
    return phases[0], phases[1]


def _name_all(files: list[Path], also: bool) -> Change:
    """Return a change that lists a whole series.

    ``also``: each contour and frame names its image too.
    """
    uids = _uids(files)

    def change(dataset: Dataset) -> None:
        listed = Items([item(ReferencedSOPClassUID="1.2", ReferencedSOPInstanceUID=uid) for uid in uids])
        if "ReferencedSeriesSequence" in dataset:
            dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence = listed
            if not also:
                for frame in dataset.PerFrameFunctionalGroupsSequence:
                    del frame.DerivationImageSequence
            return
        frame = dataset.ReferencedFrameOfReferenceSequence[0]
        frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0].ContourImageSequence = listed
        for contour, uid in zip(dataset.ROIContourSequence[0].ContourSequence, uids[1:], strict=False):
            if also:
                contour.ContourImageSequence = Items([item(ReferencedSOPInstanceUID=uid)])

    return change


@pytest.mark.wild("monai-deploy-app-sdk#535", "a label of one phase on all phases of its series")
@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
@pytest.mark.parametrize("lists", ["its own", "all, each region its own"])
def test_a_label_of_one_phase_is_matched_with_it_alone(tmp_path: Path, kind: str, lists: str) -> None:
    first, second = _two_phases(tmp_path / "in")
    files, also = (first, True) if lists == "its own" else ([*first, *second], True)
    _label(kind, tmp_path / "in" / "label.dcm", first, _name_all(files, also))
    (entry,) = _labelled(_register(tmp_path), tmp_path)
    assert str(entry.source).startswith("1/")


@pytest.mark.wild("monai-deploy-app-sdk#535", "a label that names a series and none of its phases in particular")
@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
@pytest.mark.parametrize("listed", [True, False])
def test_a_label_without_a_phase_is_matched_with_each_and_noted(tmp_path: Path, kind: str, listed: bool) -> None:
    first, second = _two_phases(tmp_path / "in")
    change = _name_all([*first, *second] if listed else [], also=False)
    _label(kind, tmp_path / "in" / "label.dcm", first, change)
    entries = _labelled(_register(tmp_path), tmp_path)
    assert len(entries) == 2
    assert all(any("it lies on each" in note for note in entry.notes) for entry in entries)


@pytest.mark.wild("monai-deploy-app-sdk#535", "a label that names no image, and several share its space")
@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_a_label_of_a_space_is_matched_with_each_image_it_overlaps(tmp_path: Path, kind: str) -> None:
    files = _series(tmp_path / "in" / "a")
    same = _in_the_study_of(files[0])
    _series(tmp_path / "in" / "b", same)
    make_series(tmp_path / "in" / "far", origin=(-30, -40, 510), change=lambda _, d: same(d))
    _label(kind, tmp_path / "in" / "label.dcm", files, _no_reference)
    manifest = _register(tmp_path)
    entries = _labelled(manifest, tmp_path)
    (remark,) = manifest.remarks
    assert "lie on each, 1: label.dcm" in remark
    rows = list(csv.DictReader((tmp_path / "out" / "files.csv").open()))
    (row,) = [row for row in rows if row["path"] == "label.dcm"]
    assert sorted(row["case"].split(", ")) == sorted(str(entry.name) for entry in entries)
    assert sorted(str(entry.source)[0] for entry in entries) == ["a", "b"]
    assert all(any("as on 1 more of its frame of reference" in note for note in entry.notes) for entry in entries)


def _in_the_study_of(file: Path) -> Change:
    first = pydicom.dcmread(file)

    def change(dataset: Dataset) -> None:
        dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = first.StudyInstanceUID, first.FrameOfReferenceUID

    return change


@pytest.mark.wild("matRad#273", "a label that names no image, on the images of all whom an anonymiser gave its space")
@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
@pytest.mark.parametrize("identity", ["ANON", ""])
def test_a_label_of_a_space_is_matched_within_its_study(tmp_path: Path, kind: str, identity: str) -> None:
    def anonymised(dataset: Dataset) -> None:
        dataset.FrameOfReferenceUID, dataset.PatientName, dataset.PatientBirthDate = "1.2.3.99", "", ""

    series = [_series(tmp_path / "in" / f"{n}", anonymised, values=volume(seed=n), patient=identity) for n in range(5)]
    _label(kind, tmp_path / "in" / "label.dcm", series[1], _no_reference)
    manifest = _register(tmp_path)
    (entry,) = _labelled(manifest, tmp_path)
    assert str(entry.source).startswith("1/")
    assert not any("another study" in note for note in entry.notes)

    label = pydicom.dcmread(tmp_path / "in" / "label.dcm")
    label.StudyInstanceUID = generate_uid()
    label.save_as(tmp_path / "in" / "label.dcm")
    assert _register(tmp_path).left_out == {matching.SEVERAL_STUDIES: 1}


@pytest.mark.wild("healthcare-dicom-dicomweb-adapter#153", "one UID for the studies, series and images of all patients")
@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
@pytest.mark.parametrize("way", [_by_series, _no_reference])
def test_a_label_with_shared_uids_is_matched_within_its_folder(tmp_path: Path, kind: str, way: Change) -> None:
    series = []
    for number in range(3):

        def repeated(index: int, dataset: Dataset) -> None:
            dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", "1.2.3.5"
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{index}"

        folder = tmp_path / "in" / f"p{number}" / "ct"
        values = volume(seed=number)
        series.append(
            make_series(folder, values, spacing=SPACING, origin=ORIGIN, series="1.2.3.4", patient="A", change=repeated)
        )
    _label(kind, tmp_path / "in" / "p1" / "label.dcm", series[1], way)
    (entry,) = _labelled(_register(tmp_path), tmp_path)
    assert str(entry.source).startswith("p1/")
    assert matching.IN_FOLDER in entry.notes
    (tmp_path / "in" / "p1" / "label.dcm").rename(tmp_path / "in" / "label.dcm")
    assert _register(tmp_path).left_out == {matching.SAME_UIDS: 1}


@pytest.mark.wild("OHIF#4030", "a segmentation that names no image: the image of its grid, not all of its space")
def test_a_segmentation_of_a_space_is_matched_by_its_grid(tmp_path: Path) -> None:
    files = _series(tmp_path / "in" / "a")
    frame = pydicom.dcmread(files[0]).FrameOfReferenceUID
    make_series(
        tmp_path / "in" / "pet",
        spacing=(2, 2, 3),
        origin=ORIGIN,
        change=lambda _, d: setattr(d, "FrameOfReferenceUID", frame),
    )
    _label("seg", tmp_path / "in" / "label.dcm", files, _no_reference)
    (entry,) = _labelled(_register(tmp_path), tmp_path)
    assert str(entry.source).startswith("a/")


@pytest.mark.wild("standard: PS3.3 C.7.4.1", "one frame of reference for all patients, which an anonymiser left")
@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_a_label_is_not_matched_with_another_patients_space(tmp_path: Path, kind: str) -> None:
    files = _series(tmp_path / "in" / "a", patient="A")
    frame = pydicom.dcmread(files[0]).FrameOfReferenceUID
    _series(tmp_path / "in" / "b", lambda d: setattr(d, "FrameOfReferenceUID", frame), patient="B")
    _label(kind, tmp_path / "in" / "label.dcm", files, _no_reference)
    (entry,) = _labelled(_register(tmp_path), tmp_path)
    assert str(entry.source).startswith("a/")
    for file in files:
        file.unlink()
    assert _register(tmp_path).left_out == {matching.OTHER_PATIENT: 1}


def _other_space(dataset: Dataset) -> None:
    _no_reference(dataset)
    dataset.FrameOfReferenceUID = "1.2.3"
    for frame in dataset.get("ReferencedFrameOfReferenceSequence", ()):
        frame.FrameOfReferenceUID = "1.2.3"
    for region in dataset.get("StructureSetROISequence", ()):
        region.ReferencedFrameOfReferenceUID = "1.2.3"


def _nothing(dataset: Dataset) -> None:
    _no_reference_at_all(dataset)
    dataset.FrameOfReferenceUID = ""
    for region in dataset.get("StructureSetROISequence", ()):
        region.ReferencedFrameOfReferenceUID = ""


def _no_region(dataset: Dataset) -> None:
    for keyword in ("SegmentSequence", "StructureSetROISequence"):
        if keyword in dataset:
            setattr(dataset, keyword, Items([]))


@pytest.mark.wild("OHIF#2361, rt-utils#33", "label files that find no image, each with its reason")
@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_other_space, matching.NO_SPACE),
        (_nothing, matching.NO_REFERENCE),
        (_no_region, matching.NO_REGION),
    ],
    ids=["another space", "no reference", "no region"],
)
def test_a_label_without_an_image_says_why(tmp_path: Path, kind: str, change: Change, reason: str) -> None:
    files = _series(tmp_path / "in")
    _label(kind, tmp_path / "in" / "label.dcm", files, change)
    manifest = _register(tmp_path)
    assert (manifest.left_out, _labelled(manifest, tmp_path)) == ({reason: 1}, [])


@pytest.mark.wild("rt-utils#33", "a label that lies beside every image of its space")
def test_a_label_outside_its_images_is_reported(tmp_path: Path) -> None:
    files = _series(tmp_path / "in")
    far = [np.add(contour, [0, 0, 300]) for contour in _contours()]
    make_rtstruct(tmp_path / "in" / "label.dcm", files, {"liver": far}, change=_no_reference)
    assert _register(tmp_path).left_out == {matching.BESIDE: 1}


@pytest.mark.wild("rt-utils#33", "a label of a space, beside an image whose place only its frames say")
@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_a_multiframe_image_keeps_its_place_next_to_a_label(tmp_path: Path, kind: str) -> None:
    files = _series(tmp_path / "plain")
    far = make_series(
        tmp_path / "far",
        spacing=SPACING,
        origin=ORIGIN + np.array([0, 0, 300]),
        change=lambda _, d: setattr(d, "FrameOfReferenceUID", pydicom.dcmread(files[0]).FrameOfReferenceUID),
    )
    (tmp_path / "in").mkdir()
    make_multiframe(tmp_path / "in" / "enhanced.dcm", far)
    _label(kind, tmp_path / "in" / "label.dcm", files, _no_reference)
    (entry,) = _register(tmp_path).entries
    assert entry.label is None
    assert "label.dcm shares its frame of reference, and lies outside: not drawn" in entry.notes


@pytest.mark.wild("–", "a structure set of an X-ray")
def test_a_structure_set_on_an_xray_is_reported(tmp_path: Path) -> None:
    xray = make_xray(tmp_path / "in", np.arange(1200, dtype=np.uint16).reshape(30, 40), FrameOfReferenceUID="1.2")
    make_rtstruct(tmp_path / "in" / "label.dcm", [xray], {"liver": _contours()})
    assert _register(tmp_path).left_out == {matching.CONTOURS_ON_FLAT: 1}


@pytest.mark.wild("–", "a label that names another patient than its image")
def test_a_label_that_names_another_patient_is_noted(tmp_path: Path) -> None:
    files = _series(tmp_path / "in")
    _label("seg", tmp_path / "in" / "label.dcm", files, lambda d: setattr(d, "PatientID", "somebody else"))
    (entry,) = _labelled(_register(tmp_path), tmp_path)
    assert "its label names another patient than its image" in entry.notes


@pytest.mark.wild("healthcare-dicom-dicomweb-adapter#153", "one UID for the series and images of all patients")
def test_a_label_of_a_shared_series_is_matched_by_patient(tmp_path: Path) -> None:
    stacks = []
    for patient in ("A", "B"):
        file = _series(tmp_path / patient, patient=patient)[3]
        header = replace(read_header(file), series="1.2", instance="1.2.3")
        stacks.append(Stack((Slice(f"{patient}/{file.name}", header),), "volume"))
    _label("seg", tmp_path / "label.dcm", _series(tmp_path / "B2", patient="B"))
    header = replace(read_header(tmp_path / "label.dcm"), refers_to={"1.2": ["1.2.3"]})
    placed, reasons = matching.match_labels(tmp_path, stacks, [LabelFile("label.dcm", header)])
    assert ([len(labels) for labels in placed], reasons) == ([0, 1], {})


@pytest.mark.wild("–", "one file a region, and only some regions asked for")
def test_files_without_a_wanted_region_are_left_out(tmp_path: Path) -> None:
    files = _series(tmp_path / "in")
    _label("seg", tmp_path / "in" / "liver.dcm", files)
    make_seg(tmp_path / "in" / "kidney.dcm", files, {"kidney": _mask()})
    manifest = _register(tmp_path, labels={0: "background", 1: "liver"})
    assert (len(_labelled(manifest, tmp_path)), manifest.left_out) == (1, {matching.UNWANTED: 1})


@pytest.mark.wild("–", "an image of many frames, and a segmentation that names it")
def test_a_segmentation_of_a_multiframe_image(tmp_path: Path) -> None:
    files = _series(tmp_path / "plain")
    (tmp_path / "in").mkdir()
    make_multiframe(tmp_path / "in" / "enhanced.dcm", files)
    enhanced = pydicom.dcmread(tmp_path / "in" / "enhanced.dcm")

    def change(dataset: Dataset) -> None:
        series = dataset.ReferencedSeriesSequence[0]
        series.SeriesInstanceUID = enhanced.SeriesInstanceUID
        series.ReferencedInstanceSequence = Items([item(ReferencedSOPInstanceUID=enhanced.SOPInstanceUID)])

    _label("seg", tmp_path / "in" / "label.dcm", files, change)
    manifest = _register(tmp_path)
    assert [case.reason for case in manifest.quarantine] == []
    (entry,) = manifest.entries
    image, label = (nib.load(tmp_path / "out" / path) for path in (entry.images[0], str(entry.label)))
    np.testing.assert_array_equal(np.asarray(label.dataobj) > 0, np.asarray(image.dataobj) >= 500)


@pytest.mark.wild("rt-utils#33, OHIF#4030, rt-utils#82", "many labels in a heap: each on its image, or left out")
@few
@given(
    st.lists(
        st.tuples(st.sampled_from(["seg", "rtstruct"]), st.sampled_from([*WAYS, _nothing, _other_space])),
        min_size=1,
        max_size=3,
    )
)
def test_every_label_file_is_matched_or_says_why(
    tmp_path_factory: pytest.TempPathFactory, labels: list[tuple[str, Change]]
) -> None:
    tmp_path = tmp_path_factory.mktemp("heap")
    lost = 0
    for number, (kind, way) in enumerate(labels):
        files = _series(tmp_path / "in" / str(number), patient=str(number))
        _IMAGES[:] = _uids(files)
        _label(kind, tmp_path / "in" / f"label{number}.dcm", files, way)
        lost += way in (_nothing, _other_space)
    manifest = _register(tmp_path)
    assert len(_labelled(manifest, tmp_path)) == len(labels) - lost
    assert manifest.files.get("left out", 0) == lost
