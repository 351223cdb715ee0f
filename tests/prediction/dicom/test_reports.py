"""Measurements as a structured report.

Read back without the library that wrote it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from highdicom._standard_utils import check_required_attributes, get_iod_module_map, get_sop_class_iod_map
from pydicom.dataset import Dataset

from dicoms import make_series, make_xray
from oncofed.data.register import RegisterOptions, register
from oncofed.errors import DataError
from oncofed.prediction.dicom.common import ModelIdentity
from oncofed.prediction.dicom.labelled_series import LabelledSeries
from oncofed.prediction.dicom.report import write_report
from oncofed.prediction.dicom.segmentation import write_segmentation

MODEL = ModelIdentity("organs", "0123456789abcdef" * 4)
CLASSES = {1: "liver", 2: "liver tumour"}
FIGURES = {
    1: {"volume_ml": 12.3456789, "longest_mm": 30.25, "short_mm": 11.5, "longest_3d_mm": 40.0, "voxels": 9},
    2: {"volume_ml": 0.0, "longest_mm": None},
}


def _written(tmp_path: Path) -> tuple[Dataset, Dataset]:
    """The SEG and the report of a series."""
    files = make_series(tmp_path / "in")
    (entry,) = register(RegisterOptions(tmp_path / "in", "demo", tmp_path / "out")).entries
    image = nib.load(tmp_path / "out" / str(entry.image))
    labels = np.zeros(image.shape[:3], np.uint8)
    labels[2:5, 3:9, 1:6] = 1
    write_segmentation(LabelledSeries(labels, files, image.affine, CLASSES, {}, MODEL), tmp_path / "seg.dcm")
    write_report(tmp_path / "seg.dcm", CLASSES, FIGURES, MODEL, tmp_path / "sr.dcm", "MR")
    return pydicom.dcmread(tmp_path / "seg.dcm"), pydicom.dcmread(tmp_path / "sr.dcm")


def _items(item: Dataset) -> Iterator[Dataset]:
    for child in item.get("ContentSequence", ()):
        yield child
        yield from _items(child)


def _named(item: Dataset, name: str) -> list[Dataset]:
    return [i for i in _items(item) if i.ConceptNameCodeSequence[0].CodeMeaning == name]


def _numbers(group: Dataset) -> dict[str, tuple[float, str]]:
    found = {}
    for item in _items(group):
        if item.ValueType == "NUM":
            value = item.MeasuredValueSequence[0]
            unit = value.MeasurementUnitsCodeSequence[0]
            assert unit.CodingSchemeDesignator == "UCUM"
            found[item.ConceptNameCodeSequence[0].CodeMeaning] = float(value.NumericValue), unit.CodeValue
    return found


def test_figures_read_back_with_their_units_and_segments(tmp_path: Path) -> None:
    seg, report = _written(tmp_path)
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    groups = _named(report, "Measurement Group")
    assert [group.ContentTemplateSequence[0].TemplateIdentifier for group in groups] == ["1411", "1411"]
    assert _numbers(groups[0]) == {
        "Volume": (12.3457, "cm3"),
        "Long axis": (30.25, "mm"),
        "Short axis": (11.5, "mm"),
        "Diameter": (40.0, "mm"),
    }
    assert _numbers(groups[1]) == {"Volume": (0.0, "cm3")}
    for number, group in enumerate(groups, start=1):
        (segment,) = _named(group, "Referenced Segment")
        reference = segment.ReferencedSOPSequence[0]
        assert reference.ReferencedSOPInstanceUID == seg.SOPInstanceUID
        assert reference.ReferencedSegmentNumber == number
        (series,) = _named(group, "Source Series for Segmentation")
        assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == series.UID
    assert _named(groups[1], "Finding")[0].ConceptCodeSequence[0].CodeMeaning == "Neoplasm"
    assert _named(groups[1], "Finding Site")[0].ConceptCodeSequence[0].CodeMeaning == "Liver"


def test_it_names_observer_patient_and_purpose(tmp_path: Path) -> None:
    seg, report = _written(tmp_path)
    assert report.SeriesDescription.startswith("RESEARCH")
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "AccessionNumber"):
        assert report[keyword].value == seg[keyword].value
    assert {item.TextValue for item in _named(report, "Algorithm Parameters")} >= {f"model_sha256={MODEL.digest}"}
    assert _named(report, "Device Observer Serial Number")[0].TextValue == MODEL.digest
    assert _named(report, "Procedure reported")[0].ConceptCodeSequence[0].CodeValue == "25056-3"
    named = {
        str(item.ReferencedSOPInstanceUID)
        for sequence in (
            report.CurrentRequestedProcedureEvidenceSequence,
            report.get("PertinentOtherEvidenceSequence", ()),
        )
        for study in sequence
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert str(seg.SOPInstanceUID) in named
    for module in get_iod_module_map()[get_sop_class_iod_map()[report.SOPClassUID]]:
        # What kind an item of the content is says what it must have, which the tables cannot tell.
        if module["usage"] == "M" and module["key"] != "sr-document-content":
            check_required_attributes(report, module["key"])


def test_writing_it_again_gives_the_same_object(tmp_path: Path) -> None:
    _, first = _written(tmp_path)
    write_report(tmp_path / "seg.dcm", CLASSES, FIGURES, MODEL, tmp_path / "again.dcm", "MR")
    other = {**FIGURES, 2: {"volume_ml": 1.0}}
    write_report(tmp_path / "seg.dcm", CLASSES, other, MODEL, tmp_path / "other.dcm", "MR")
    again, changed = pydicom.dcmread(tmp_path / "again.dcm"), pydicom.dcmread(tmp_path / "other.dcm")
    assert again.SOPInstanceUID == first.SOPInstanceUID != changed.SOPInstanceUID
    assert again.SeriesInstanceUID == first.SeriesInstanceUID == changed.SeriesInstanceUID


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_areas_of_a_flat_image_name_the_frame_of_their_segment(tmp_path: Path, kind: str) -> None:
    file = make_xray(tmp_path / "in", np.zeros((12, 16), np.uint16))
    labels = np.zeros((16, 12), np.uint8)
    labels[2:6, 3:5] = 2
    write_segmentation(LabelledSeries(labels, [file], np.eye(4), CLASSES, {}, MODEL), tmp_path / "seg.dcm", kind)  # type: ignore[arg-type]
    figures = {2: {"area_mm2": 0.16, "longest_mm": 0.9}}
    write_report(tmp_path / "seg.dcm", CLASSES, figures, MODEL, tmp_path / "sr.dcm", "DX")
    report = pydicom.dcmread(tmp_path / "sr.dcm")
    (group,) = _named(report, "Measurement Group")
    assert group.ContentTemplateSequence[0].TemplateIdentifier == "1410"
    assert _numbers(group) == {"Area": (0.16, "mm2"), "Long axis": (0.9, "mm")}
    (frame,) = _named(group, "Referenced Segmentation Frame")
    reference = frame.ReferencedSOPSequence[0]
    named = (reference.get("ReferencedFrameNumber"), reference.get("ReferencedSegmentNumber"))
    assert named == ((2, None) if kind == "binary" else (None, 2))  # never both: PS3.3, table C.18.4-1
    assert _named(report, "Procedure reported")[0].ConceptCodeSequence[0].CodeValue == "43468-8"


def test_figures_of_another_segmentation_are_refused(tmp_path: Path) -> None:
    _written(tmp_path)
    with pytest.raises(DataError, match="has not the 3 classes that were measured"):
        write_report(tmp_path / "seg.dcm", {**CLASSES, 3: "spleen"}, FIGURES, MODEL, tmp_path / "sr.dcm")
