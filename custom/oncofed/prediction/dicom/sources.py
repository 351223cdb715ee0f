"""Source images as highdicom takes them, whatever their headers lack, and what is true of them put back afterwards.

Patient and study are copied as they are (PS3.3, sections C.7.1 and C.7.2); what is no value of its type is left empty.
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

# Type 2 attributes of patient and study: there, if only empty.
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
    """Return the UID of a volume's space; one derived from its series where its header has none."""
    own = str(series.first.get("FrameOfReferenceUID") or "")
    return own or derived_uid("frame of reference", str(series.first.SeriesInstanceUID))


def stand_ins(series: Series) -> list[Dataset]:
    """Return headers like a series' own, with all that highdicom asks for.

    Their class is a plain one of their kind, and their series one: what was written of them needs ``restore``.
    """
    found = []
    for number, header in enumerate(series.headers):
        own = tidy(header)
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


def tidy(header: Dataset) -> Dataset:
    """Return a copy of a header with each attribute of patient and study that must be there, and is what it must be."""
    found = Dataset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for tag in header.keys():  # noqa: SIM118 - the header itself yields values, and fails at one that is none
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
    """Return the sizes of a volume's voxels as an item of a PixelMeasuresSequence (PS3.3, section C.7.6.16.2.1)."""
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
    """Return the distance between neighbouring slices along their normal in mm; 0 of a single one."""
    if len(series.places) < 2:
        return 0.0
    depths = np.sort([place[:3, 2] @ place[:3, 3] for place in series.places])
    return float(depths[-1] - depths[0]) / (len(depths) - 1)


def _orientation(series: Series) -> NDArray[np.float64]:
    """Return the directions of rows and columns; where slices differ by rounding, in the middle of theirs."""
    if series.has_frames:
        directions = _functional_group(series.first, "PlaneOrientation")
        return np.array([float(value) for value in directions.ImageOrientationPatient])
    return mean_orientation(series.stack.slices)


def _functional_group(header: Dataset, name: str) -> Dataset:
    """Return the shared functional group of a name, or the first frame's."""
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
    """Name a series' images by their own classes and series, in an object that was made of its ``stand_ins``."""
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
    """Return the items of a ReferencedSeriesSequence (PS3.3, section C.12.2): each series with its images."""
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
    """Return a reference to an image by its class and UID (PS3.3, table 10-11)."""
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    return item
