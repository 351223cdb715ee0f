"""Headers of DICOM files, one class per kind of object.

All values are plain, so that the index can store headers, by ``to_json`` and ``from_json``. UIDs and codes are those of
the standard (PS3.3); missing texts are empty.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

_shared = sys.intern


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectHeader:
    """A DICOM object of any kind.

    Attributes:
        patient: key of the patient, by PatientID, name and birth date, or study: see ``headers.read_header``.
        syntax: the transfer syntax.
        study_date: when the study began, as DICOM writes a date.
        stamp: of the file; changes when the file does.
        person: key of the patient according to registering: see ``patients.person``.
    """

    sop_class: str
    instance: str
    series: str
    study: str
    frame_of_reference: str
    modality: str
    vendor: str
    body_part: str
    description: str
    photometric: str
    burned_in: str
    syntax: str
    patient: str
    study_date: str = ""
    stamp: str = ""
    person: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader(ObjectHeader):
    """An image with one frame or more.

    Attributes:
        position: of the first pixel's centre, LPS in mm; empty: not stated.
        orientation: direction cosines of rows and columns; empty: not stated.
        spacing: mm between rows and between columns; empty: not stated.
        magnified: see ``projections.pixel_size``.
        thickness: mm between slices, else slice thickness; 0: not stated.
        turned: directions of rows and columns in the patient (PatientOrientation).
        plain_values: the image has no table from stored to real values.
        padding: smallest and largest stored value of padding; None: not stated.
        enhanced: each frame has a place.
        mosaic: many slices are tiles of one flat image, as Siemens writes them.
        intent: PresentationIntentType.
        tells: keyword -> value of headers that tell the volumes of a series apart.
        has_slope: whether slope and intercept are in the header.
        philips_scale: Philips' private ScaleSlope; None: not Philips' MR.
        pixels_at: byte of the file at which the pixels begin.
    """

    rows: int
    columns: int
    frames: int
    samples: int
    bits: int
    bits_stored: int
    signed: bool
    image_type: list[str]
    position: list[float]
    orientation: list[float]
    spacing: list[float]
    magnified: float | None
    thickness: float
    turned: list[str]
    plain_values: bool
    padding: list[int] | None
    enhanced: bool
    mosaic: bool
    units: str
    intent: str
    tells: dict[str, str]
    has_slope: bool
    slope: float
    intercept: float
    philips_scale: float | None
    pixels_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameGrid:
    """The grid of a segmentation's first frame.

    ``size`` is rows and columns; the rest as in an image's header.
    """

    size: list[int]
    spacing: list[float]
    orientation: list[float]
    position: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelHeader(ObjectHeader):
    """A segmentation (SEG) or a structure set (RT-STRUCT).

    Attributes:
        kind: which of the two.
        labels: number of a region -> its name.
        codes: number of a segment -> its property type as SCHEME:CODE, with modifiers behind ``+``.
        refers_to: UID of a series -> its instances that the file names.
        refers_to_images: instances named without their series.
        frames_of_reference: number of a region -> UID of its frame of reference.
        series_frames: series -> its frame of reference, according to the file.
        box: lowest and highest corner of all regions, LPS in mm; None if the file names series, or has no places.
        grid: of a segmentation that names no series.
    """

    kind: Literal["seg", "rtstruct"]
    labels: dict[str, str] = field(default_factory=dict)
    codes: dict[str, str] = field(default_factory=dict)
    refers_to: dict[str, list[str]] = field(default_factory=dict)
    refers_to_images: list[str] = field(default_factory=list)
    frames_of_reference: dict[str, str] = field(default_factory=dict)
    series_frames: dict[str, str] = field(default_factory=dict)
    box: list[list[float]] | None = None
    grid: FrameGrid | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideHeader(ObjectHeader):
    """One instance of a whole slide: PS3.3, C.8.12.

    Attributes:
        container: identifier of the physical slide.
        matrix: columns and rows of the level.
        imaged_mm: width and height of the imaged area; empty: not stated.
    """

    image_type: list[str]
    container: str
    matrix: list[int]
    imaged_mm: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherObject(ObjectHeader):
    """An object without an image: a report, plan or dose."""


@dataclass(frozen=True, slots=True)
class Directory:
    """A DICOMDIR: a list of files."""


@dataclass(frozen=True, slots=True)
class BrokenFile:
    """A DICOM file that cannot be read.

    ``series`` is empty if it cannot be read either.
    """

    reason: str
    series: str = ""


@dataclass(frozen=True, slots=True)
class ForeignFile:
    """A file that is not DICOM, and what it is."""

    what: str


Header = ImageHeader | LabelHeader | SlideHeader | OtherObject | Directory | BrokenFile | ForeignFile
_TYPES: dict[str, Callable[..., Header]] = {
    kind.__name__: kind
    for kind in (ImageHeader, LabelHeader, SlideHeader, OtherObject, Directory, BrokenFile, ForeignFile)
}


def to_json(header: Header) -> dict[str, Any]:
    """Return a header as JSON's values."""
    values = {item.name: getattr(header, item.name) for item in fields(header)}
    if isinstance(header, LabelHeader) and header.grid:
        values["grid"] = asdict(header.grid)
    return {"type": type(header).__name__, **values}


def from_json(values: dict[str, Any]) -> Header:
    """Return the header from the values of ``to_json``.

    Equal texts are held once in memory: a folder has many thousands of files.
    """
    known: dict[str, Any] = {key: _shared(v) if isinstance(v, str) else v for key, v in values.items()}
    kind = _TYPES[known.pop("type")]
    if kind is ImageHeader:
        known["tells"] = {_shared(key): _shared(value) for key, value in known["tells"].items()}
    if known.get("grid"):
        known["grid"] = FrameGrid(**known["grid"])
    return kind(**known)
