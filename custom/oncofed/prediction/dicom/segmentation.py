"""Writes segmentations as DICOM SEG on their source frames.

DICOM PS3.3, sections A.51 and C.8.20 (Segmentation), A.101 (Label Map Segmentation).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from oncofed.prediction.dicom.codes import PRIVATE_SCHEME, SegmentCode, clean, segment_codes
from oncofed.prediction.dicom.common import (
    MANUFACTURER,
    RESEARCH,
    ModelIdentity,
    derived_uid,
    series_description,
    series_number,
    write_dataset,
)
from oncofed.prediction.dicom.labelled_series import LabelledSeries
from oncofed.prediction.dicom.series import Series
from oncofed.prediction.dicom.source_images import pixel_measures, placeholder_headers, restore
from oncofed.tasks.codes import ClassCode

SegmentationKind = Literal["binary", "labelmap"]

_ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")  # CID 7162
_UTF8 = "ISO_IR 192"
# Ten class colours that are distinct to colour-blind readers, too (Okabe and Ito, 2008).
COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (153, 153, 153),
    (148, 103, 189),
    (140, 86, 75),
)


def write_segmentation(labelled: LabelledSeries, path: Path, kind: SegmentationKind = "binary") -> list[str]:
    """Write labels as a DICOM SEG.

    Each class is a segment, also if it has no voxel: it then has a description but no frame. If no class has a voxel,
    each has one empty frame on the first slice, since an image needs a frame.

    The SOP Instance UID depends on labels, series and model: writing the same again gives the same object.

    Args:
        labelled: labels and their series.
        path: file to write.
        kind: "binary": one bit per voxel and class, which every reader knows; "labelmap": one number per voxel, in the
            standard since 2024.

    Returns:
        Notes for people.

    Raises:
        DataError: the files are no image, or the labels do not fit it.
    """
    source, placed = labelled.read()
    write_dataset(make_segmentation(placed, source, labelled, kind), path)
    return private_notes(labelled.classes, labelled.codes)


def segment_numbers(classes: Mapping[int, str]) -> dict[int, int]:
    """Number segments from 1, in the order of label values."""
    return {value: number for number, value in enumerate(sorted(classes), start=1)}


def private_notes(classes: Mapping[int, str], codes: Mapping[int, ClassCode]) -> list[str]:
    """Return a note about classes that only have private codes."""
    private = [clean(classes[value]) for value, code in segment_codes(classes, codes).items() if code.is_private]
    if not private:
        return []
    known = f"no SNOMED CT code is known for {', '.join(private)}"
    return [f"{known}: coded by name in {PRIVATE_SCHEME}. Name one in the job (task: codes)"]


def make_segmentation(
    placed: NDArray[Any], source: Series, labelled: LabelledSeries, kind: SegmentationKind = "binary"
) -> Dataset:
    """Return a SEG as a data set.

    Args:
        placed: (frame, row, column) label values.
        source: series of the frames.
        labelled: classes, codes and model.
        kind: see ``write_segmentation``.
    """
    import highdicom  # noqa: PLC0415 - takes long to import

    classes, terms, model = labelled.classes, labelled.terms, labelled.model
    numbers = segment_numbers(classes)
    numbered = _numbered(placed, numbers)
    segments = [_segment(number, classes[value], terms[value], model) for value, number in numbers.items()]
    description = f"{sorted(classes.items())} {sorted(terms.items())} {kind} {model.version}"
    identity = [model.digest, *sorted(str(header.SOPInstanceUID) for header in source.headers)]
    content = hashlib.sha256(numbered.tobytes()).hexdigest()
    compact = RLELossless if kind == "labelmap" else ExplicitVRLittleEndian
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset: Dataset = highdicom.seg.Segmentation(
            source_images=placeholder_headers(source),
            segmentation_type=kind.upper(),
            segment_descriptions=segments,
            series_instance_uid=derived_uid("SEG series", *identity),
            series_number=series_number(source.first, 1),
            sop_instance_uid=derived_uid("SEG", *identity, description, content),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=clean(model.name),
            software_versions=model.version,
            device_serial_number=model.digest,
            content_label=RESEARCH,
            content_description=series_description("not for diagnosis or treatment"),
            series_description=series_description(f"{model.name} segmentation"),
            transfer_syntax_uid=compact,
            specific_character_set=_UTF8,
            **_frames(numbered, source),
        )
    restore(dataset, source)
    dataset.ContentCreatorName = ""
    if source.is_flat:
        dataset.PatientOrientation = source.first.get("PatientOrientation") or ""
    _name_dimensions(dataset)
    if any(term.is_private for term in terms.values()):
        dataset.CodingSchemeIdentificationSequence = Items([private_scheme()])
    return dataset


def _numbered(placed: NDArray[Any], numbers: Mapping[int, int]) -> NDArray[Any]:
    """Map label values to segment numbers; 0 for unknown values."""
    table = np.zeros(max(int(placed.max(initial=0)), *numbers) + 1, np.uint8 if len(numbers) < 256 else np.uint16)
    table[list(numbers)] = list(numbers.values())
    found: NDArray[Any] = table[placed]
    return found


def _frames(numbered: NDArray[Any], source: Series) -> dict[str, Any]:
    """Return highdicom's arguments for the pixels of each frame.

    Without any label, one empty frame is written.
    """
    if source.is_flat or numbered.any():
        return {"pixel_array": numbered, "omit_empty_frames": not source.is_flat}
    from highdicom import PixelMeasuresSequence, PlanePositionSequence  # noqa: PLC0415 - the same

    place, measures = source.places[0], pixel_measures(source)
    return {
        "pixel_array": numbered[:1],
        "omit_empty_frames": False,
        "plane_positions": [PlanePositionSequence("PATIENT", image_position=place[:3, 3].tolist())],
        "pixel_measures": PixelMeasuresSequence(
            measures.PixelSpacing, measures.SliceThickness, measures.get("SpacingBetweenSlices")
        ),
    }


def _segment(number: int, name: str, code: SegmentCode, model: ModelIdentity) -> Any:
    from highdicom.color import CIELabColor  # noqa: PLC0415 - the same
    from highdicom.seg import SegmentDescription  # noqa: PLC0415

    described = SegmentDescription(
        segment_number=number,
        segment_label=clean(name) or f"class {number}",
        segmented_property_category=Code(*code.category),
        segmented_property_type=Code(*code.kind),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm(model),
        anatomic_regions=[Code(*code.region)] if code.region else None,
        display_color=CIELabColor.from_rgb(*COLOURS[(number - 1) % len(COLOURS)]),
    )
    if code.modifiers:
        kind = described.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = Items(coded_item(term) for term in code.modifiers)
    return described


def algorithm(model: ModelIdentity) -> Any:
    """Return an algorithm identification (PS3.3, table 10-19).

    Its parameters hold the model's full digest.
    """
    from highdicom import AlgorithmIdentificationSequence  # noqa: PLC0415 - the same

    return AlgorithmIdentificationSequence(
        name=clean(model.name),
        family=_ARTIFICIAL_INTELLIGENCE,
        version=model.algorithm_version,
        source=MANUFACTURER,
        parameters=model.parameters,
    )


def coded_item(term: tuple[str, str, str]) -> Dataset:
    """Return a code as a sequence item (PS3.3, section 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = term
    return item


def private_scheme() -> Dataset:
    """Identify the private coding scheme (PS3.3, section C.12.1.1.3)."""
    item = Dataset()
    item.CodingSchemeDesignator = PRIVATE_SCHEME
    item.CodingSchemeName = "Names of classes in jobs of oncofed"
    item.CodingSchemeResponsibleOrganization = MANUFACTURER
    return item


def _name_dimensions(dataset: Dataset) -> None:
    """Give the dimensions a reproducible UID."""
    uid = derived_uid("dimensions", str(dataset.SOPInstanceUID))
    for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        item.DimensionOrganizationUID = uid
