"""Writes segmentations as RT Structure Sets: contours along voxel edges.

DICOM PS3.3, sections A.19 and C.8.8.5 to C.8.8.8. Filling the contours gives each slice's mask exactly.
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset as write_to_buffer
from pydicom.sequence import Sequence as Items
from pydicom.tag import ItemTag, Tag
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, UID, ImplicitVRLittleEndian, RTStructureSetStorage

from oncofed.errors import DataError
from oncofed.prediction.dicom.codes import SegmentCode, clean
from oncofed.prediction.dicom.common import (
    MANUFACTURER,
    RESEARCH,
    ModelIdentity,
    derived_uid,
    series_description,
    series_number,
    write_dataset,
)
from oncofed.prediction.dicom.contours import mask_contours
from oncofed.prediction.dicom.labelled_series import LabelledSeries
from oncofed.prediction.dicom.segmentation import (
    COLOURS,
    algorithm,
    coded_item,
    private_notes,
    private_scheme,
    segment_numbers,
)
from oncofed.prediction.dicom.series import Floats, Series
from oncofed.prediction.dicom.source_images import (
    EMPTY_IF_UNKNOWN,
    frame_of_reference,
    image_reference,
    series_references,
    with_required_attributes,
)

_COPIED = (
    *EMPTY_IF_UNKNOWN,
    "StudyInstanceUID",
    "StudyDescription",
    "IssuerOfPatientID",
    "OtherPatientIDs",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
)


def write_structures(labelled: LabelledSeries, path: Path) -> list[str]:
    """Write labels as an RT Structure Set.

    A class without a voxel is a region without contours. Holes are keyholes; see ``mask_contours``.

    Returns:
        Notes for people.

    Raises:
        DataError: the files are no volume, or the labels do not fit it.
    """
    source, placed = labelled.read()
    if source.is_flat:
        raise DataError(
            f"{labelled.files[0].parent}: a flat image has no place in space, which a structure set needs. Write a SEG"
        )
    write_dataset(_structure_set(placed, source, labelled), path)
    return private_notes(labelled.classes, labelled.codes)


def _structure_set(placed: NDArray[Any], source: Series, labelled: LabelledSeries) -> Dataset:
    classes, terms, model = labelled.classes, labelled.terms, labelled.model
    identity = [model.digest, *sorted(str(header.SOPInstanceUID) for header in source.headers)]
    description = f"{sorted(classes.items())} {sorted(terms.items())} {model.version}"
    content = hashlib.sha256(placed.tobytes()).hexdigest()
    dataset = _head(source, model, derived_uid("RTSTRUCT", *identity, description, content))
    dataset.SeriesInstanceUID = derived_uid("RTSTRUCT series", *identity)
    if any(term.is_private for term in terms.values()):
        dataset.CodingSchemeIdentificationSequence = Items([private_scheme()])
    space = frame_of_reference(source)
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = space, ""
    dataset.ReferencedFrameOfReferenceSequence = Items([_reference(source, space)])
    regions, contours, observations = [], [], []
    for value, number in segment_numbers(classes).items():
        regions.append(_region(number, classes[value], space, model))
        contours.append(_contours(number, placed == value, source))
        observations.append(_observation(number, classes[value], terms[value]))
    dataset.StructureSetROISequence = Items(regions)
    dataset.ROIContourSequence = Items(contours)
    dataset.RTROIObservationsSequence = Items(observations)
    return dataset


def _head(source: Series, model: ModelIdentity, uid: UID) -> Dataset:
    dataset = Dataset()
    meta = FileMetaDataset()
    # Explicit VR would limit a contour to 64 kB of text (PS3.5, section 7.1.2).
    meta.TransferSyntaxUID = ImplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = RTStructureSetStorage, uid
    meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    dataset.file_meta = meta
    header = with_required_attributes(source.first)
    for keyword in _COPIED:
        if keyword in header:
            setattr(dataset, keyword, header[keyword].value)
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID, dataset.SOPInstanceUID = RTStructureSetStorage, uid
    now = datetime.datetime.now().astimezone()
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    dataset.InstanceCreationDate, dataset.InstanceCreationTime = date, time
    dataset.StructureSetDate, dataset.StructureSetTime = date, time
    dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber = "RTSTRUCT", series_number(source.first, 2), 1
    dataset.SeriesDescription = series_description(f"{model.name} contours")
    dataset.OperatorsName = ""
    dataset.Manufacturer, dataset.ManufacturerModelName = MANUFACTURER, clean(model.name)
    dataset.SoftwareVersions, dataset.DeviceSerialNumber = model.version, model.digest
    dataset.StructureSetLabel = RESEARCH
    dataset.StructureSetName = clean(model.name)
    dataset.StructureSetDescription = series_description("not for diagnosis, treatment or planning")
    dataset.ApprovalStatus = "UNAPPROVED"
    return dataset


def _reference(source: Series, space: str) -> Dataset:
    """Return the referenced frame of reference (PS3.3, section C.8.8.5)."""
    frame, study = Dataset(), Dataset()
    items = []
    for reference in series_references(source):
        item = Dataset()
        item.SeriesInstanceUID = reference.SeriesInstanceUID
        item.ContourImageSequence = reference.ReferencedInstanceSequence
        items.append(item)
    study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management, required by the table
    study.ReferencedSOPInstanceUID = source.first.StudyInstanceUID
    study.RTReferencedSeriesSequence = Items(items)
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = space, Items([study])
    return frame


def _region(number: int, name: str, space: str, model: ModelIdentity) -> Dataset:
    item = Dataset()
    item.ROINumber, item.ReferencedFrameOfReferenceUID = number, space
    item.ROIName = clean(name) or f"class {number}"
    item.ROIGenerationAlgorithm = "AUTOMATIC"
    item.ROIGenerationDescription = clean(model.algorithm_version)
    item.ROIDerivationAlgorithmIdentificationSequence = algorithm(model)
    return item


def _contours(number: int, masks: NDArray[np.bool_], source: Series) -> Dataset:
    item = Dataset()
    item.ReferencedROINumber, item.ROIDisplayColor = number, list(COLOURS[(number - 1) % len(COLOURS)])
    drawn = b"".join(_drawn(masks, source))
    if drawn:
        # Encoded here, since pydicom takes a millisecond per contour and speckled labels have some 100,000.
        item.add(DataElement(Tag("ContourSequence"), "OB", drawn))
    return item


def _drawn(masks: NDArray[np.bool_], source: Series) -> Iterator[bytes]:
    """Yield a region's contours as encoded items, frame by frame."""
    numbers = itertools.count(1)
    for frame, place, mask in zip(source.frames, source.places, masks, strict=True):
        if not mask.any():
            continue
        image = image_reference(source.headers[frame.file])
        if source.has_frames:
            image.ReferencedFrameNumber = frame.number
        head = _encoded(image)
        for outline in mask_contours(mask):
            yield _contour(next(numbers), outline @ place[:3, :2].T + place[:3, 3], head)


def _encoded(image: Dataset) -> bytes:
    """Encode the start of a frame's contours: image and type."""
    item = Dataset()
    item.ContourImageSequence, item.ContourGeometricType = Items([image]), "CLOSED_PLANAR"
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = True, True
    write_to_buffer(buffer, item)
    return buffer.getvalue()


def _contour(number: int, points: Floats, head: bytes) -> bytes:
    """Encode one contour item (PS3.5, sections 7.1.3 and 7.5).

    Implicit VR, little endian.
    """
    values = {
        "NumberOfContourPoints": str(len(points)),
        "ContourNumber": str(number),
        "ContourData": "\\".join(["%.5f"] * points.size) % tuple(points.ravel().tolist()),
    }
    parts = [head]
    for keyword, value in values.items():
        text = (value + " " * (len(value) % 2)).encode("ascii")
        parts += [_header(keyword, len(text)), text]
    return _header("Item", sum(map(len, parts))) + b"".join(parts)


def _header(keyword: str, length: int) -> bytes:
    """Encode an element's tag and length."""
    tag = ItemTag if keyword == "Item" else Tag(keyword)
    return struct.pack("<HHL", tag.group, tag.element, length)


def _observation(number: int, name: str, code: SegmentCode) -> Dataset:
    item = Dataset()
    item.ObservationNumber = item.ReferencedROINumber = number
    item.ROIObservationLabel = clean(name)[:16]
    kind = coded_item(code.kind)
    if code.modifiers:
        kind.SegmentedPropertyTypeModifierCodeSequence = Items(coded_item(term) for term in code.modifiers)
    item.SegmentedPropertyCategoryCodeSequence = Items([coded_item(code.category)])
    item.RTROIIdentificationCodeSequence = Items([kind])
    item.RTROIInterpretedType, item.ROIInterpreter = "", ""
    return item
