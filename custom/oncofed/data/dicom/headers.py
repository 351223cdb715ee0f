"""The headers of a heap of DICOM files, as plain values that fit into an index."""

from __future__ import annotations

import contextlib
import re
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import data_element_generator
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

Header = dict[str, Any]
Elements = dict[int, Any]

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
    "ContainerIdentifier",
    "ImagedVolumeWidth",
    "ImagedVolumeHeight",
    "TotalPixelMatrixColumns",
    "TotalPixelMatrixRows",
    _SIEMENS_MOSAIC_IMAGES,
    *_PHILIPS_SCALE,
]
_WANTED: list[BaseTag | int] = [Tag(tag) for tag in _TAGS]
_LABEL_TAGS: list[BaseTag | int] = [
    Tag("ReferencedSeriesSequence"),
    Tag("ReferencedFrameOfReferenceSequence"),
    Tag("SegmentSequence"),
    Tag("StructureSetROISequence"),
]
_SYNTAX, _MEDIA_CLASS = int(Tag("TransferSyntaxUID")), int(Tag("MediaStorageSOPClassUID"))
_UNCOMMON_SYNTAXES = {DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian}
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
# A code string (CS) and a long string (LO) of PS3.5, table 6.2-1. What a damaged header holds in their place may be the
# elements after it, with the patient's name.
_CODE = re.compile(r"[A-Za-z0-9_ ]{0,16}")
_LONGEST_TEXT = 64
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
                elements = _elements(file) or _any_elements(file)
                # pydicom leaves off where the pixels begin.
                header = _values(elements, file.tell())
                if header["kind"] in {"seg", "rtstruct"}:
                    header |= _label_values(file, header["kind"])
                return header
        except Exception as error:  # noqa: BLE001 - a broken header raises whatever its bytes lead to
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            return {"kind": "broken", "reason": f"its header cannot be read ({reason.replace(str(path), 'file')})"}


def _elements(file: BinaryIO) -> Elements:
    """Return the wanted elements of a file of Part 10, meta information too; empty where it is out of the common.

    This is the walk of pydicom's ``dcmread`` without the data sets that it builds for each file, which take four times
    as long as the walk.
    """
    if file.read(132)[128:] != b"DICM":
        return {}
    try:
        elements = {int(e.tag): e for e in data_element_generator(file, False, True, stop_when=_after_meta)}
        syntax = _text(elements, _SYNTAX)
        if syntax in _UNCOMMON_SYNTAXES or not syntax.startswith(ImplicitVRLittleEndian):
            return {}
        implicit = syntax == ImplicitVRLittleEndian
        first = file.read(6)
        file.seek(-len(first), 1)
        # Two capitals, the type of the first element, stand there only where types are explicit: PS3.5, section 7.1.
        if first[4:].isupper() == implicit:
            return {}
        walk = data_element_generator(file, implicit, True, stop_when=_at_pixels, specific_tags=_WANTED)
        elements |= {int(e.tag): e for e in walk}
    except Exception:  # noqa: BLE001 - whatever a broken header leads to: dcmread copes with more, or says what it is
        return {}
    # Where it is missing, the file may be written otherwise than it says.
    return elements if _tag("SOPClassUID") in elements else {}


def _any_elements(file: BinaryIO) -> Elements:
    """Return the wanted elements of a file, whatever pydicom can read."""
    file.seek(0)
    dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=_WANTED)
    parts = (dataset.file_meta, dataset)
    return {int(tag): cast("Any", part.get_item(tag)) for part in parts for tag in part.keys()}  # noqa: SIM118


def _after_meta(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag.group != 2


def _at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
    return int(tag) >= 0x7FE00008  # float, double or plain pixel data


def _label_values(file: BinaryIO, kind: str) -> Header:
    """Return the names of a label file's regions, and the series that they lie on."""
    file.seek(0)
    dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=_LABEL_TAGS)
    if kind == "seg":
        return {
            "labels": {str(s.SegmentNumber): str(s.SegmentLabel) for s in dataset.get("SegmentSequence", [])},
            "refers_to": [str(s.SeriesInstanceUID) for s in dataset.get("ReferencedSeriesSequence", [])],
        }
    return {
        "labels": {str(r.ROINumber): str(r.ROIName) for r in dataset.get("StructureSetROISequence", [])},
        "refers_to": _referenced_by_rtstruct(dataset),
    }


def _values(elements: Elements, pixels_at: int) -> Header:
    header: Header = {name: _text(elements, number) for name, number in _TEXT_TAGS.items()}
    if _text(elements, _MEDIA_CLASS) == _DICOMDIR:
        return {"kind": "dicomdir"}
    if not _CODE.fullmatch(header["modality"]):
        return {"kind": "broken", "reason": "its header is damaged: what stands in its Modality is no code"}
    if len(header["vendor"]) > _LONGEST_TEXT or not header["vendor"].isprintable():
        header["vendor"] = ""
    header["syntax"] = _text(elements, _SYNTAX)
    header["kind"] = _kind(elements, header["sop_class"])
    if _tag("EncryptedAttributesSequence") in elements:
        return {**header, "kind": "broken", "reason": "its attributes are encrypted; ask its source for the key"}
    header["patient"] = _patient(elements)
    if header["kind"] == "slide":
        header |= _slide_values(elements)
    if header["kind"] == "image":
        header |= _image_values(elements)
        header["pixels_at"] = pixels_at
        if not header["series"] or not header["rows"]:
            missing = "SeriesInstanceUID" if not header["series"] else "Rows"
            return {"kind": "broken", "reason": f"its header has no {missing}; it is cut off or no DICOM image"}
    return header


def _text(elements: Elements, tag: int) -> str:
    """Return an element as text; its bytes are taken as they are, for pydicom's conversion takes ten times as long."""
    element = elements.get(tag)
    if element is None or not element.value:
        return ""
    value = element.value
    if isinstance(value, bytes):
        return value.decode("latin-1").rstrip("\0 ").lstrip()
    return "\\".join(map(str, value)) if isinstance(value, MultiValue) else str(value)


def _texts(elements: Elements, keyword: str) -> list[str]:
    text = _text(elements, _tag(keyword))
    return [part.strip() for part in text.split("\\")] if text else []


def _floats(elements: Elements, keyword: str, count: int) -> list[float] | None:
    values = _texts(elements, keyword)
    return [float(value) for value in values] if len(values) == count else None


def _float(elements: Elements, keyword: str, default: float) -> float:
    values = _texts(elements, keyword)
    return float(values[0]) if values and values[0] else default


def _integer(elements: Elements, keyword: str, default: int) -> int:
    """Return a number that is stored in binary (US) or, where pydicom has converted it, as it is."""
    element = elements.get(_tag(keyword))
    if element is None or element.value in {None, b"", ""}:
        return default
    if isinstance(element.value, bytes):
        little = getattr(element, "is_little_endian", True)
        return int.from_bytes(element.value[:2], "little" if little else "big")
    return int(element.value)


@lru_cache(maxsize=100)
def _tag(keyword: str) -> int:
    return int(tag_for_keyword(keyword) or 0)


def _kind(elements: Elements, sop_class: str) -> str:
    if sop_class == _SEG:
        return "seg"
    if sop_class == _RTSTRUCT:
        return "rtstruct"
    if sop_class == _WSI:
        return "slide"
    if _text(elements, _tag("Modality")) in {"RTDOSE", "RTPLAN", "SR", "PR", "KO", "ECG", "DOC", "REG", "RTRECORD"}:
        return "other"
    return "image" if _tag("Rows") in elements or not sop_class else "other"


def _image_values(elements: Elements) -> Header:
    image_type = _texts(elements, "ImageType")
    return {
        "rows": _integer(elements, "Rows", 0),
        "columns": _integer(elements, "Columns", 0),
        "frames": int(_float(elements, "NumberOfFrames", 1)),
        "samples": _integer(elements, "SamplesPerPixel", 1),
        "bits": _integer(elements, "BitsAllocated", 16),
        "bits_stored": _integer(elements, "BitsStored", 16),
        "signed": _integer(elements, "PixelRepresentation", 0) == 1,
        "image_type": image_type,
        "position": _floats(elements, "ImagePositionPatient", 3),
        "orientation": _floats(elements, "ImageOrientationPatient", 6),
        "spacing": _floats(elements, "PixelSpacing", 2) or _floats(elements, "ImagerPixelSpacing", 2),
        "thickness": _float(elements, "SpacingBetweenSlices", 0) or _float(elements, "SliceThickness", 0),
        "turned": _texts(elements, "PatientOrientation"),
        "slope": _float(elements, "RescaleSlope", 1),
        "intercept": _float(elements, "RescaleIntercept", 0),
        "has_slope": _tag("RescaleSlope") in elements,
        "plain_values": _tag("ModalityLUTSequence") not in elements,
        "enhanced": _tag("SharedFunctionalGroupsSequence") in elements,
        "mosaic": "MOSAIC" in image_type or int(_SIEMENS_MOSAIC_IMAGES) in elements,
        "philips_scale": _philips_scale(elements),
    }


def _slide_values(elements: Elements) -> Header:
    """Return what tells the levels of a whole slide: PS3.3, C.8.12.4."""
    matrix = [_integer32(elements, f"TotalPixelMatrix{axis}") for axis in ("Columns", "Rows")]
    volume = [_real32(elements, f"ImagedVolume{axis}") for axis in ("Width", "Height")]
    return {
        "image_type": _texts(elements, "ImageType"),
        "container": _text(elements, _tag("ContainerIdentifier")),
        "matrix": matrix,
        "imaged_mm": volume if all(volume) else None,
    }


def _integer32(elements: Elements, keyword: str) -> int:
    """Return an unsigned long (UL); 0 where it is not there."""
    element = elements.get(_tag(keyword))
    if element is None or element.value in {None, b"", ""}:
        return 0
    if isinstance(element.value, bytes):
        return int.from_bytes(element.value[:4], "little" if getattr(element, "is_little_endian", True) else "big")
    return int(element.value)


def _real32(elements: Elements, keyword: str) -> float:
    """Return a floating point single (FL); 0 where it is not there."""
    element = elements.get(_tag(keyword))
    if element is None or element.value in {None, b"", ""}:
        return 0.0
    if isinstance(element.value, bytes):
        if len(element.value) != 4:
            return 0.0
        return float(np.frombuffer(element.value, "<f4" if getattr(element, "is_little_endian", True) else ">f4")[0])
    return float(element.value)


def _philips_scale(elements: Elements) -> float | None:
    if "philips" not in _text(elements, _tag("Manufacturer")).lower():
        return None
    for tag in _PHILIPS_SCALE:
        element = elements.get(int(tag))
        if element is None or not element.value:
            continue
        # A binary number (FL) of four bytes, or text (DS); where values have no type in the file (implicit VR), FL.
        if isinstance(element.value, bytes) and len(element.value) == 4 and element.VR != "DS":
            return float(np.frombuffer(element.value, "<f4")[0])
        with contextlib.suppress(ValueError):
            return float(_text(elements, int(tag)))
    return None


def _patient(elements: Elements) -> str:
    known = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID")
    identity, issuer, name, birth, study = (_text(elements, _tag(keyword)) for keyword in known)
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
