"""The headers of a heap of DICOM files, as plain values that fit into an index."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

from pydicom.datadict import tag_for_keyword
from pydicom.tag import BaseTag, Tag

from oncofed.data.dicom.elements import SYNTAX, Elements, any_elements, tag_of, text, walked
from oncofed.data.dicom.image_header import PRIVATE, SLIDE_TAGS, TELLING, image_values, slide_values
from oncofed.data.dicom.projections import SIZE_TAGS
from oncofed.data.dicom.references import LABEL_MAP, read_references
from oncofed.errors import DataError

Header = dict[str, Any]

_SEG = {"1.2.840.10008.5.1.4.1.1.66.4", LABEL_MAP}
_RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
_DICOMDIR = "1.2.840.10008.1.3.10"
_WSI = "1.2.840.10008.5.1.4.1.1.77.1.6"

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
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "ImagerPixelSpacing",
    *SIZE_TAGS,
    "SpacingBetweenSlices",
    "RescaleSlope",
    "RescaleIntercept",
    "PatientOrientation",
    "PresentationIntentType",
    "BurnedInAnnotation",
    "EncryptedAttributesSequence",
    "SharedFunctionalGroupsSequence",
    *SLIDE_TAGS,
    *TELLING,
    *PRIVATE,
]
_WANTED: list[BaseTag | int] = [Tag(tag) for tag in _TAGS]
_MEDIA_CLASS = int(Tag("MediaStorageSOPClassUID"))
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
    if head[128:132] == b"DICM":
        return True
    # Without a preamble a data set starts with group 0002 or 0008 and an element of few bytes; where the larger byte
    # comes first, the element's type is always there: PS3.5, sections 7.1 and 7.3.
    little = head[:2] in {b"\x02\x00", b"\x08\x00"} and head[3:4] == b"\x00"
    big = head[:3] in {b"\x00\x02\x00", b"\x00\x08\x00"} and head[4:6].isalpha() and head[4:6].isupper()
    return len(head) > 8 and (little or big)


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
                elements, syntax = walked(file, _WANTED), ""
                if not elements:
                    elements, syntax = any_elements(file, _WANTED)
                # pydicom leaves off where the pixels begin.
                header = _values(elements, file.tell(), syntax)
                if header["kind"] in {"seg", "rtstruct"}:
                    header |= read_references(file, header["kind"])
                return header
        except DataError as error:
            return {"kind": "broken", "reason": str(error)}
        except Exception:  # noqa: BLE001 - a broken header raises whatever its bytes lead to
            size = path.stat().st_size
            reason = f"its header cannot be read: the file of {size} bytes is cut off or damaged. Copy it anew"
            return {"kind": "broken", "reason": reason}


def _values(elements: Elements, pixels_at: int, syntax: str = "") -> Header:
    header: Header = {name: text(elements, number) for name, number in _TEXT_TAGS.items()}
    if text(elements, _MEDIA_CLASS) == _DICOMDIR:
        return {"kind": "dicomdir"}
    if not _CODE.fullmatch(header["modality"]):
        reason = "its header is damaged: what stands in its Modality is no code. Copy it again, or export it anew"
        return {"kind": "broken", "reason": reason}
    if len(header["vendor"]) > _LONGEST_TEXT or not header["vendor"].isprintable():
        header["vendor"] = ""
    header["syntax"] = text(elements, SYNTAX) or syntax
    header["kind"] = _kind(elements, header["sop_class"])
    if tag_of("EncryptedAttributesSequence") in elements:
        return {**header, "kind": "broken", "reason": "its attributes are encrypted; ask its source for the key"}
    header["patient"] = _patient(elements)
    if header["kind"] == "slide":
        header |= slide_values(elements)
    if header["kind"] == "image":
        header |= image_values(elements)
        header["pixels_at"] = pixels_at
        if not header["rows"]:
            reason = "its header has no Rows; it is cut off or no DICOM image. Copy it again, or export it anew"
            return {"kind": "broken", "reason": reason}
    return header


def _kind(elements: Elements, sop_class: str) -> str:
    # A segmentation of a kind yet to come is no image either.
    if sop_class in _SEG or text(elements, tag_of("Modality")) == "SEG":
        return "seg"
    if sop_class == _RTSTRUCT:
        return "rtstruct"
    if sop_class == _WSI:
        return "slide"
    if text(elements, tag_of("Modality")) in {"RTDOSE", "RTPLAN", "SR", "PR", "KO", "ECG", "DOC", "REG", "RTRECORD"}:
        return "other"
    return "image" if tag_of("Rows") in elements or not sop_class else "other"


def _patient(elements: Elements) -> str:
    known = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID")
    identity, issuer, name, birth, study = (text(elements, tag_of(keyword)) for keyword in known)
    if identity:
        return f"{issuer}|{identity}"
    return f"{name}|{birth}" if name else f"study|{study}"
