"""Completes source headers for highdicom, and undoes it afterwards.

Patient and study are copied unchanged (PS3.3, sections C.7.1 and C.7.2); invalid values become empty.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from copy import copy
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import EnhancedMRImageStorage, MRImageStorage, SecondaryCaptureImageStorage
from pydicom.valuerep import DA, TM, DSfloat

from oncofed.data.dicom.frames import mean_orientation
from oncofed.prediction.dicom.common import derived_uid
from oncofed.prediction.dicom.series import Series

# Type 2 attributes of patient and study: required, may be empty.
EMPTY_IF_UNKNOWN = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
_TYPED = {"PatientBirthDate": DA, "StudyDate": DA, "StudyTime": TM}
_SEXES = {"M", "F", "O"}
_PLACES = (
    "FrameOfReferenceUID",
    "PositionReferenceIndicator",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "SliceThickness",
    "SpacingBetweenSlices",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)


def frame_of_reference(series: Series) -> str:
    """Return a volume's frame of reference UID, derived if absent."""
    own = str(series.first.get("FrameOfReferenceUID") or "")
    return own or derived_uid("frame of reference", str(series.first.SeriesInstanceUID))


def placeholder_headers(series: Series) -> list[Dataset]:
    """Return the series' headers with all that highdicom requires.

    Their SOP class is a generic one and they share one series; objects made from them need ``restore``.
    """
    found = []
    for number, header in enumerate(series.headers):
        own = with_required_attributes(header)
        for keyword in _PLACES:
            if keyword in own:
                delattr(own, keyword)
        own.SeriesInstanceUID = series.first.SeriesInstanceUID
        if series.is_flat:
            own.SOPClassUID = SecondaryCaptureImageStorage
        else:
            _put_place(own, series, number)
        found.append(own)
    return found


def with_required_attributes(header: Dataset) -> Dataset:
    """Copy a header and complete its type 2 attributes.

    Invalid values of patient and study attributes become empty.
    """
    found = Dataset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for tag in header.keys():  # noqa: SIM118 - iterating the header decodes values and fails at invalid ones
            with contextlib.suppress(ValueError, TypeError, NotImplementedError):
                found.add(copy(header[tag]))
        for keyword in EMPTY_IF_UNKNOWN:
            value = found.get(keyword)
            if value is None or not _is_valid(keyword, value):
                setattr(found, keyword, "")
    return found


def _is_valid(keyword: str, value: Any) -> bool:
    if keyword == "PatientSex":
        return value in _SEXES
    if keyword in _TYPED:
        try:
            _TYPED[keyword](value)
        except (ValueError, TypeError):
            return False
    return True


def _put_place(header: Dataset, series: Series, number: int) -> None:
    header.FrameOfReferenceUID = frame_of_reference(series)
    header.PositionReferenceIndicator = series.first.get("PositionReferenceIndicator") or ""
    places = series.places
    orientation, measures = _numbers(_orientation(series)), pixel_measures(series)
    if not series.has_frames:
        header.SOPClassUID = MRImageStorage
        header.update(measures)
        header.ImageOrientationPatient = orientation
        header.ImagePositionPatient = _numbers(places[number][:3, 3])
        return
    header.SOPClassUID = EnhancedMRImageStorage
    shared, directions = Dataset(), Dataset()
    directions.ImageOrientationPatient = orientation
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Items([directions]), Items([measures])
    header.SharedFunctionalGroupsSequence = Items([shared])
    header.PerFrameFunctionalGroupsSequence = Items(_positions(places))
    header.NumberOfFrames = len(places)


def pixel_measures(series: Series) -> Dataset:
    """Return a PixelMeasuresSequence item (PS3.3, section C.7.6.16.2.1)."""
    own = _functional_group(series.first, "PixelMeasures") if series.has_frames else series.first
    spacing = own.PixelSpacing if series.has_frames else series.stack.header.spacing
    gap = _slice_gap(series)
    measures = Dataset()
    measures.PixelSpacing = _numbers(spacing)
    measures.SliceThickness = _thickness(own) or gap or series.stack.header.thickness or 1.0
    if gap:
        measures.SpacingBetweenSlices = _numbers([gap])[0]
    return measures


def _positions(frames: list[Any]) -> Iterator[Dataset]:
    for place in frames:
        position, group = Dataset(), Dataset()
        position.ImagePositionPatient = _numbers(place[:3, 3])
        group.PlanePositionSequence = Items([position])
        yield group


def _slice_gap(series: Series) -> float:
    """Return the slice distance in mm; 0 for one slice."""
    if len(series.places) < 2:
        return 0.0
    depths = np.sort([place[:3, 2] @ place[:3, 3] for place in series.places])
    return float(depths[-1] - depths[0]) / (len(depths) - 1)


def _orientation(series: Series) -> NDArray[np.float64]:
    """Return row and column directions, averaged over rounding errors."""
    if series.has_frames:
        directions = _functional_group(series.first, "PlaneOrientation")
        return np.array([float(value) for value in directions.ImageOrientationPatient])
    return mean_orientation(series.stack.slices)


def _functional_group(header: Dataset, name: str) -> Dataset:
    """Return a shared functional group, or the first frame's."""
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for group in (header.get(keyword) or ())[:1]:
            for item in group.get(f"{name}Sequence") or ():
                return cast("Dataset", item)
    return Dataset()


def _thickness(measures: Dataset) -> float:
    try:
        return abs(float(measures.get("SliceThickness") or 0))
    except (TypeError, ValueError):
        return 0.0


def _numbers(values: Any) -> list[DSfloat]:
    return [DSfloat(float(value), auto_format=True) for value in values]


def restore(dataset: Dataset, series: Series) -> None:
    """Put the original SOP classes and series into references.

    For objects that were made of ``placeholder_headers``.
    """
    classes = {str(header.SOPInstanceUID): header.SOPClassUID for header in series.headers}
    for item in _references(dataset):
        item.ReferencedSOPClassUID = classes[str(item.ReferencedSOPInstanceUID)]
    dataset.ReferencedSeriesSequence = Items(series_references(series))


def _references(dataset: Dataset) -> Iterator[Dataset]:
    yield from dataset.get("SourceImageSequence") or ()
    for group in dataset.get("PerFrameFunctionalGroupsSequence") or ():
        for derivation in group.get("DerivationImageSequence") or ():
            yield from derivation.get("SourceImageSequence") or ()


def series_references(series: Series) -> list[Dataset]:
    """Return ReferencedSeriesSequence items (PS3.3, section C.12.2)."""
    by_series: dict[str, list[Dataset]] = {}
    for header in series.headers:
        by_series.setdefault(str(header.SeriesInstanceUID), []).append(image_reference(header))
    items = []
    for uid, images in by_series.items():
        item = Dataset()
        item.SeriesInstanceUID, item.ReferencedInstanceSequence = uid, Items(images)
        items.append(item)
    return items


def image_reference(header: Dataset) -> Dataset:
    """Return a reference to an image (PS3.3, table 10-11)."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    return item
