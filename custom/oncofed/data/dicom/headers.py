"""The headers of a heap of DICOM files, as plain values that fit into an index."""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag

Header = dict[str, Any]

_SEG = "1.2.840.10008.5.1.4.1.1.66.4"
_RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
_DICOMDIR = "1.2.840.10008.1.3.10"
_WSI = "1.2.840.10008.5.1.4.1.1.77.1.6"

_SIEMENS_MOSAIC_IMAGES = Tag(0x0019, 0x100A)
_PHILIPS_SCALE = (Tag(0x2005, 0x100E), Tag(0x2005, 0x140A))
_TAGS: list[Any] = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "FrameOfReferenceUID",
    "PatientID",
    "IssuerOfPatientID",
    "PatientName",
    "PatientBirthDate",
    "Modality",
    "Manufacturer",
    "ImageType",
    "SeriesDescription",
    "BodyPartExamined",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "BitsAllocated",
    "BitsStored",
    "PixelRepresentation",
    "ModalityLUTSequence",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "InstanceNumber",
    "EchoTime",
    "TemporalPositionIdentifier",
    "DiffusionBValue",
    "TriggerTime",
    "AcquisitionNumber",
    "ContentTime",
    "RescaleSlope",
    "RescaleIntercept",
    "PatientOrientation",
    "BurnedInAnnotation",
    "EncryptedAttributesSequence",
    "SharedFunctionalGroupsSequence",
    "ReferencedSeriesSequence",
    "ReferencedFrameOfReferenceSequence",
    "SegmentSequence",
    "StructureSetROISequence",
    _SIEMENS_MOSAIC_IMAGES,
    *_PHILIPS_SCALE,
]
_WANTED = [Tag(tag) for tag in _TAGS]
_TEXTS = {
    "sop_class": "SOPClassUID",
    "instance": "SOPInstanceUID",
    "series": "SeriesInstanceUID",
    "study": "StudyInstanceUID",
    "frame_of_reference": "FrameOfReferenceUID",
    "modality": "Modality",
    "vendor": "Manufacturer",
    "body_part": "BodyPartExamined",
    "description": "SeriesDescription",
    "photometric": "PhotometricInterpretation",
    "burned_in": "BurnedInAnnotation",
    # These tell the volumes of one series apart.
    "EchoTime": "EchoTime",
    "TemporalPositionIdentifier": "TemporalPositionIdentifier",
    "DiffusionBValue": "DiffusionBValue",
    "TriggerTime": "TriggerTime",
    "AcquisitionNumber": "AcquisitionNumber",
    "ContentTime": "ContentTime",
}
_TEXT_TAGS = {name: int(tag_for_keyword(keyword) or 0) for name, keyword in _TEXTS.items()}


def looks_like_dicom(path: Path) -> bool:
    """Return whether a file's first bytes are DICOM's, with or without the preamble of Part 10."""
    with path.open("rb") as file:
        head = file.read(132)
    # Without a preamble a data set starts with group 0002 or 0008, little endian, and an element of few bytes.
    return head[128:132] == b"DICM" or (
        head[:2] in {b"\x02\x00", b"\x08\x00"} and head[3:4] == b"\x00" and len(head) > 8
    )


def read_header(path: Path) -> Header:
    """Read what is needed of one file's header.

    Returns:
        ``kind`` ("image", "seg", "rtstruct", "slide", "dicomdir", "other") and, by kind, its values. Of a file that
        cannot be read: kind "broken" and ``reason``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with path.open("rb") as file:
                dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=_WANTED)
                # pydicom leaves off where the pixels begin.
                return _values(dataset, file.tell())
        except Exception as error:  # noqa: BLE001 - a broken header raises whatever its bytes lead to
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            return {"kind": "broken", "reason": f"its header cannot be read ({reason.replace(str(path), 'file')})"}


def _values(dataset: Dataset, pixels_at: int) -> Header:
    header: Header = {name: _text(dataset, number) for name, number in _TEXT_TAGS.items()}
    meta = dataset.file_meta
    if str(meta.get("MediaStorageSOPClassUID", "")) == _DICOMDIR:
        return {"kind": "dicomdir"}
    header["syntax"] = str(meta.get("TransferSyntaxUID", "") or "")
    header["kind"] = _kind(dataset, header["sop_class"])
    if "EncryptedAttributesSequence" in dataset:
        return {**header, "kind": "broken", "reason": "its attributes are encrypted; ask its source for the key"}
    header["patient"] = _patient(dataset)
    if header["kind"] == "seg":
        header["labels"] = {str(s.SegmentNumber): str(s.SegmentLabel) for s in dataset.get("SegmentSequence", [])}
        header["refers_to"] = [str(s.SeriesInstanceUID) for s in dataset.get("ReferencedSeriesSequence", [])]
    elif header["kind"] == "rtstruct":
        header["labels"] = {str(r.ROINumber): str(r.ROIName) for r in dataset.get("StructureSetROISequence", [])}
        header["refers_to"] = _referenced_by_rtstruct(dataset)
    elif header["kind"] == "image":
        header |= _image_values(dataset)
        header["pixels_at"] = pixels_at
        if not header["series"] or not header["rows"]:
            missing = "SeriesInstanceUID" if not header["series"] else "Rows"
            return {"kind": "broken", "reason": f"its header has no {missing}; it is cut off or no DICOM image"}
    return header


def _text(dataset: Dataset, tag: int) -> str:
    """Return an element as text; its bytes are taken as they are, for pydicom's conversion takes ten times as long."""
    element = dataset.get_item(tag) if tag in dataset else None
    if element is None or not element.value:
        return ""
    value = element.value
    if isinstance(value, bytes):
        return value.decode("latin-1").rstrip("\0 ").lstrip()
    return "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value)


def _texts(dataset: Dataset, keyword: str) -> list[str]:
    text = _text(dataset, _tag(keyword))
    return [part.strip() for part in text.split("\\")] if text else []


def _floats(dataset: Dataset, keyword: str, count: int) -> list[float] | None:
    values = _texts(dataset, keyword)
    return [float(value) for value in values] if len(values) == count else None


def _float(dataset: Dataset, keyword: str, default: float) -> float:
    values = _texts(dataset, keyword)
    return float(values[0]) if values and values[0] else default


def _integer(dataset: Dataset, keyword: str, default: int) -> int:
    """Return a number that is stored in binary (US) or, where pydicom has converted it, as it is."""
    element = dataset.get_item(_tag(keyword)) if _tag(keyword) in dataset else None
    if element is None or element.value in {None, b"", ""}:
        return default
    if isinstance(element.value, bytes):
        little = getattr(element, "is_little_endian", True)
        return int.from_bytes(element.value[:2], "little" if little else "big")
    return int(element.value)


@lru_cache(maxsize=100)
def _tag(keyword: str) -> int:
    return int(tag_for_keyword(keyword) or 0)


def _kind(dataset: Dataset, sop_class: str) -> str:
    if sop_class == _SEG:
        return "seg"
    if sop_class == _RTSTRUCT:
        return "rtstruct"
    if sop_class == _WSI:
        return "slide"
    if _text(dataset, _tag("Modality")) in {"RTDOSE", "RTPLAN", "SR", "PR", "KO", "ECG", "DOC", "REG", "RTRECORD"}:
        return "other"
    return "image" if "Rows" in dataset or not sop_class else "other"


def _image_values(dataset: Dataset) -> Header:
    image_type = _texts(dataset, "ImageType")
    return {
        "rows": _integer(dataset, "Rows", 0),
        "columns": _integer(dataset, "Columns", 0),
        "frames": int(_float(dataset, "NumberOfFrames", 1)),
        "samples": _integer(dataset, "SamplesPerPixel", 1),
        "bits": _integer(dataset, "BitsAllocated", 16),
        "bits_stored": _integer(dataset, "BitsStored", 16),
        "signed": _integer(dataset, "PixelRepresentation", 0) == 1,
        "image_type": image_type,
        "position": _floats(dataset, "ImagePositionPatient", 3),
        "orientation": _floats(dataset, "ImageOrientationPatient", 6),
        "spacing": _floats(dataset, "PixelSpacing", 2) or _floats(dataset, "ImagerPixelSpacing", 2),
        "thickness": _float(dataset, "SpacingBetweenSlices", 0) or _float(dataset, "SliceThickness", 0),
        "turned": _texts(dataset, "PatientOrientation"),
        "slope": _float(dataset, "RescaleSlope", 1),
        "intercept": _float(dataset, "RescaleIntercept", 0),
        "has_slope": "RescaleSlope" in dataset,
        "plain_values": "ModalityLUTSequence" not in dataset,
        "enhanced": "SharedFunctionalGroupsSequence" in dataset,
        "mosaic": "MOSAIC" in image_type or _SIEMENS_MOSAIC_IMAGES in dataset,
        "philips_scale": _philips_scale(dataset),
    }


def _philips_scale(dataset: Dataset) -> float | None:
    if "philips" not in _text(dataset, _tag("Manufacturer")).lower():
        return None
    for tag in _PHILIPS_SCALE:
        value = dataset.get(tag)
        if value is not None:
            try:
                return float(value.value if not isinstance(value.value, bytes) else value.value.decode())
            except (TypeError, ValueError):
                continue
    return None


def _patient(dataset: Dataset) -> str:
    known = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID")
    identity, issuer, name, birth, study = (_text(dataset, _tag(keyword)) for keyword in known)
    if identity:
        return f"{issuer}|{identity}"
    return f"{name}|{birth}" if name else f"study|{study}"


def _referenced_by_rtstruct(dataset: Dataset) -> list[str]:
    return [
        str(series.SeriesInstanceUID)
        for frame in dataset.get("ReferencedFrameOfReferenceSequence", [])
        for study in frame.get("RTReferencedStudySequence", [])
        for series in study.get("RTReferencedSeriesSequence", [])
    ]
