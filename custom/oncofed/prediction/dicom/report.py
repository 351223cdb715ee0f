"""Writes measurements as a structured report about a SEG.

DICOM PS3.16, TID 1500 with TID 1411 (volumes) and TID 1410 (flat images); PS3.3, section A.35.13 (Comprehensive 3D SR).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from oncofed.errors import DataError
from oncofed.prediction.dicom.codes import Term, clean
from oncofed.prediction.dicom.common import (
    MANUFACTURER,
    ModelIdentity,
    derived_uid,
    series_description,
    series_number,
    write_dataset,
)
from oncofed.prediction.dicom.segmentation import segment_numbers

_MILLIMETRE = Term("mm", "UCUM", "mm")
_MAXIMUM = Term("56851009", "SCT", "Maximum")  # CID 7464


@dataclass(frozen=True)
class Measure:
    """Coded name, unit and derivation of a measurement.

    Attributes:
        name: measured quantity (CID 7469).
        unit: UCUM unit.
        derivation: how it was selected among several values; None: single value.
    """

    name: Term
    unit: Term
    derivation: Term | None = None


# By the keys of ``measurements.csv``. CID 7462 has cubic centimetres, which are millilitres.
MEASURES = {
    "volume_ml": Measure(Term("118565006", "SCT", "Volume"), Term("cm3", "UCUM", "cubic centimeter")),
    "area_mm2": Measure(Term("42798000", "SCT", "Area"), Term("mm2", "UCUM", "square millimeter")),
    "longest_mm": Measure(Term("103339001", "SCT", "Long axis"), _MILLIMETRE),
    "short_mm": Measure(Term("103340004", "SCT", "Short axis"), _MILLIMETRE),
    "longest_3d_mm": Measure(Term("81827009", "SCT", "Diameter"), _MILLIMETRE, _MAXIMUM),
}
# By modality, of CID 100.
_PROCEDURES = {
    "CT": Code("25045-6", "LN", "CT unspecified body region"),
    "MR": Code("25056-3", "LN", "MRI unspecified body region"),
    "NM": Code("49118-3", "LN", "NM unspecified body region"),
    "PT": Code("44136-0", "LN", "PET unspecified body region"),
}
_RADIOGRAPHY = Code("43468-8", "LN", "XR unspecified body region")
_X_RAYS = {"CR", "DX", "MG", "RG", "XA", "RF", "IO", "PX"}
_ANY_PROCEDURE = Code("363679005", "SCT", "Imaging procedure")


def write_report(
    segmentation: Path,
    classes: Mapping[int, str],
    measures: Mapping[int, Mapping[str, float | None]],
    model: ModelIdentity,
    path: Path,
    modality: str = "",
) -> None:
    """Write measurements as a structured report.

    Args:
        segmentation: SEG file that was measured; patient, study, images and codes are taken from it.
        classes: label value -> name, as in the SEG.
        measures: label value -> value by name; names not in ``MEASURES`` and None are skipped.
        model: model that made the segmentation.
        path: file to write.
        modality: DICOM modality of the images.

    Raises:
        DataError: the classes are not those of the SEG.
    """
    seg = pydicom.dcmread(segmentation, stop_before_pixels=True)
    numbers = segment_numbers(classes)
    if not set(numbers.values()) <= {int(segment.SegmentNumber) for segment in seg.SegmentSequence}:
        raise DataError(f"{segmentation}: has not the {len(classes)} classes that were measured. Write it again")
    by_segment = {numbers[value]: figures for value, figures in measures.items() if value in numbers}
    write_dataset(_report(seg, by_segment, model, modality), path)


def _report(
    seg: Dataset, measures: Mapping[int, Mapping[str, float | None]], model: ModelIdentity, modality: str
) -> Dataset:
    from highdicom import sr  # noqa: PLC0415 - takes long to import

    groups = [
        _group(seg, segment, measures[int(segment.SegmentNumber)], model)
        for segment in seg.SegmentSequence
        if int(segment.SegmentNumber) in measures
    ]
    content = sr.MeasurementReport(
        observation_context=_observed_by(model),
        procedure_reported=_procedure(modality),
        imaging_measurements=groups,
    )
    description = f"{sorted((n, sorted(f.items())) for n, f in measures.items())} {model.version}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset: Dataset = sr.Comprehensive3DSR(
            evidence=[seg, *_images(seg)],
            content=content[0],
            series_instance_uid=derived_uid("SR series", str(seg.SeriesInstanceUID)),
            series_number=series_number(seg, 2),
            sop_instance_uid=derived_uid("SR", str(seg.SOPInstanceUID), model.digest, description),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=clean(model.name),
            software_versions=model.version,
            device_serial_number=model.digest,
            series_description=series_description(f"{model.name} measurements"),
            is_complete=True,
            is_final=False,
            is_verified=False,
            specific_character_set="ISO_IR 192",
        )
    dataset.ContributingEquipmentSequence = seg.ContributingEquipmentSequence
    if "CodingSchemeIdentificationSequence" in seg:
        dataset.CodingSchemeIdentificationSequence = seg.CodingSchemeIdentificationSequence
    return dataset


def _procedure(modality: str) -> Code:
    return _RADIOGRAPHY if modality in _X_RAYS else _PROCEDURES.get(modality, _ANY_PROCEDURE)


def _observed_by(model: ModelIdentity) -> Any:
    from highdicom import sr  # noqa: PLC0415 - the same

    device = sr.DeviceObserverIdentifyingAttributes(
        uid=derived_uid("device", model.digest),
        name=clean(model.name),
        manufacturer_name=MANUFACTURER,
        model_name=model.algorithm_version,
        serial_number=model.digest,
    )
    return sr.ObservationContext(
        observer_device_context=sr.ObserverContext(Code("121007", "DCM", "Device"), device),
    )


def _group(seg: Dataset, segment: Dataset, figures: Mapping[str, float | None], model: ModelIdentity) -> Any:
    """Return the measurement group of one segment."""
    from highdicom import sr  # noqa: PLC0415 - the same

    kind = segment.SegmentedPropertyTypeCodeSequence[0]
    regions = [*segment.get("AnatomicRegionSequence", ())]
    number = int(segment.SegmentNumber)
    common = {
        "tracking_identifier": sr.TrackingIdentifier(
            uid=derived_uid("finding", str(seg.SOPInstanceUID), str(number)), identifier=str(segment.SegmentLabel)
        ),
        "finding_type": _code(kind),
        "finding_category": _code(segment.SegmentedPropertyCategoryCodeSequence[0]),
        "finding_sites": [sr.FindingSite(_code(region)) for region in regions] or None,
        "algorithm_id": sr.AlgorithmIdentification(
            name=clean(model.name),
            version=model.algorithm_version,
            parameters=[f"{name}={value}" for name, value in model.parameters.items()],
        ),
        "measurements": list(_measurements(figures)),
    }
    if "FrameOfReferenceUID" not in seg:
        at = _frame_of(seg, number)
        frame = sr.ReferencedSegmentationFrame(
            str(seg.SOPClassUID), str(seg.SOPInstanceUID), at or 1, number, _source_images(seg)[0]
        )
        # Frame or segment, not both (PS3.3, table C.18.4-1): label maps have one frame for all segments.
        reference = frame[0].ReferencedSOPSequence[0]
        delattr(reference, "ReferencedSegmentNumber" if at else "ReferencedFrameNumber")
        return sr.PlanarROIMeasurementsAndQualitativeEvaluations(referenced_segment=frame, **common)
    series = seg.ReferencedSeriesSequence
    lone = sr.SourceSeriesForSegmentation(str(series[0].SeriesInstanceUID)) if len(series) == 1 else None
    referenced = sr.ReferencedSegment(
        str(seg.SOPClassUID),
        str(seg.SOPInstanceUID),
        number,
        source_series=lone,
        source_images=None if lone is not None else _source_images(seg),
    )
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_segment=referenced, **common)


def _measurements(figures: Mapping[str, float | None]) -> Iterator[Any]:
    from highdicom import sr  # noqa: PLC0415 - the same

    for name, measure in MEASURES.items():
        value = figures.get(name)
        if value is not None:
            derivation = Code(*measure.derivation) if measure.derivation else None
            # A decimal string (DS, PS3.5) has at most 16 characters; more digits would be false precision.
            rounded = float(f"{value:.6g}")
            yield sr.Measurement(Code(*measure.name), rounded, Code(*measure.unit), derivation=derivation)


def _frame_of(seg: Dataset, number: int) -> int | None:
    """Return a flat segment's frame; None if all share one."""
    shared = seg.SharedFunctionalGroupsSequence[0]
    for at, frame in enumerate(seg.PerFrameFunctionalGroupsSequence, start=1):
        items = frame.get("SegmentIdentificationSequence") or shared.get("SegmentIdentificationSequence") or ()
        if any(int(item.ReferencedSegmentNumber) == number for item in items):
            return at
    return None


def _source_images(seg: Dataset) -> list[Any]:
    from highdicom import sr  # noqa: PLC0415 - the same

    return [
        sr.SourceImageForSegmentation(str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID))
        for series in seg.ReferencedSeriesSequence
        for item in series.ReferencedInstanceSequence
    ]


def _images(seg: Dataset) -> Iterator[Dataset]:
    """Yield references to the images of a SEG."""
    for series in seg.ReferencedSeriesSequence:
        for item in series.ReferencedInstanceSequence:
            image = Dataset()
            image.StudyInstanceUID, image.SeriesInstanceUID = seg.StudyInstanceUID, series.SeriesInstanceUID
            image.SOPClassUID, image.SOPInstanceUID = item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID
            yield image


def _code(item: Dataset) -> Code:
    return Code(item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning)
