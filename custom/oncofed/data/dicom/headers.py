"""Read the header of one DICOM file."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

from pydicom.datadict import tag_for_keyword
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    MediaStorageDirectoryStorage,
    RTStructureSetStorage,
    SegmentationStorage,
    VLWholeSlideMicroscopyImageStorage,
)

from oncofed.data.dicom.elements import SYNTAX, Elements, any_elements, tag_of, text, walked
from oncofed.data.dicom.header_types import BrokenFile, Directory, Header, LabelHeader, OtherObject
from oncofed.data.dicom.image_header import PRIVATE, SLIDE_TAGS, TELLING, image_header, slide_header
from oncofed.data.dicom.projections import SIZE_TAGS
from oncofed.data.dicom.references import LABEL_MAP, read_references
from oncofed.errors import DataError

_SEG = {SegmentationStorage, LABEL_MAP}
_WITHOUT_PIXELS = {"RTDOSE", "RTPLAN", "SR", "PR", "KO", "ECG", "DOC", "REG", "RTRECORD"}

_TAGS: list[Any] = [
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "StudyDate",
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
    "study_date": "StudyDate",
    "frame_of_reference": "FrameOfReferenceUID",
    "modality": "Modality",
    "vendor": "Manufacturer",
    "body_part": "BodyPartExamined",
    "description": "SeriesDescription",
    "photometric": "PhotometricInterpretation",
    "burned_in": "BurnedInAnnotation",
}
# A code string (CS) and a long string (LO) of PS3.5, table 6.2-1. A damaged header may hold the following elements in
# their place, with the patient's name.
_CODE = re.compile(r"[A-Za-z0-9_ ]{0,16}")
_DATE = re.compile(r"[0-9.]{8,10}")
_LONGEST_TEXT = 64
_TEXT_TAGS = {name: int(tag_for_keyword(keyword) or 0) for name, keyword in _TEXTS.items()}


def looks_like_dicom(path: Path) -> bool:
    """Return whether a file is DICOM by its first bytes.

    With or without the preamble of Part 10.
    """
    with path.open("rb") as file:
        head = file.read(132)
    if head[128:132] == b"DICM":
        return True
    # Without a preamble a data set starts with group 0002 or 0008 and a short element; in big endian the VR is always
    # explicit: PS3.5, sections 7.1 and 7.3.
    little = head[:2] in {b"\x02\x00", b"\x08\x00"} and head[3:4] == b"\x00"
    big = head[:3] in {b"\x00\x02\x00", b"\x00\x08\x00"} and head[4:6].isalpha() and head[4:6].isupper()
    return len(head) > 8 and (little or big)


def read_header(path: Path) -> Header:
    """Read one file's header.

    An unreadable file gives a ``BrokenFile``, not an error.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with path.open("rb") as file:
                elements, syntax = walked(file, _WANTED), ""
                if not elements:
                    elements, syntax = any_elements(file, _WANTED)
                # pydicom stops where the pixels begin.
                header = _header(elements, file.tell(), syntax)
                return read_references(file, header) if isinstance(header, LabelHeader) else header
        except DataError as error:
            return BrokenFile(reason=str(error))
        except Exception:  # noqa: BLE001 - a broken header raises any type of error
            size = path.stat().st_size
            reason = f"its header cannot be read: the file of {size} bytes is cut off or damaged. Copy it anew"
            return BrokenFile(reason=reason)


def _header(elements: Elements, pixels_at: int, syntax: str = "") -> Header:
    if text(elements, _MEDIA_CLASS) == MediaStorageDirectoryStorage:
        return Directory()
    common = {name: text(elements, number) for name, number in _TEXT_TAGS.items()}
    if not _CODE.fullmatch(common["modality"]):
        return BrokenFile(
            reason="its header is damaged: what stands in its Modality is no code. Copy it again, or export it anew"
        )
    if len(common["vendor"]) > _LONGEST_TEXT or not common["vendor"].isprintable():
        common["vendor"] = ""
    if not _DATE.fullmatch(common["study_date"]):
        common["study_date"] = ""
    if tag_of("EncryptedAttributesSequence") in elements:
        reason = "its attributes are encrypted; ask its source for the key"
        return BrokenFile(reason=reason, series=common["series"])
    common |= {"syntax": text(elements, SYNTAX) or syntax, "patient": _patient(elements)}
    return _of_kind(elements, common, pixels_at)


def _of_kind(elements: Elements, common: dict[str, Any], pixels_at: int) -> Header:
    """Return an object's header, by SOP class and modality."""
    sop_class, modality = common["sop_class"], text(elements, tag_of("Modality"))
    # Future kinds of segmentation are no images either.
    if sop_class in _SEG or modality == "SEG":
        return LabelHeader(**common, kind="seg")
    if sop_class == RTStructureSetStorage:
        return LabelHeader(**common, kind="rtstruct")
    if sop_class == VLWholeSlideMicroscopyImageStorage:
        return slide_header(elements, common)
    if modality in _WITHOUT_PIXELS or (tag_of("Rows") not in elements and sop_class):
        return OtherObject(**common)
    header = image_header(elements, common, pixels_at)
    if not header.rows:
        return BrokenFile(
            reason="its header has no Rows; it is cut off or no DICOM image. Copy it again, or export it anew"
        )
    return header


def _patient(elements: Elements) -> str:
    known = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "StudyInstanceUID")
    identity, issuer, name, birth, study = (text(elements, tag_of(keyword)) for keyword in known)
    if identity:
        return f"{issuer}|{identity}"
    return f"{name}|{birth}" if name else f"study|{study}"
