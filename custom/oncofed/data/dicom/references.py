"""Read a label file's regions, and its references to images.

Segmentations: DICOM PS3.3, sections A.51, C.8.20 (regions) and C.12.4 (references). Structure sets: C.8.8.5, C.8.8.6.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from oncofed.data.dicom.frames import frame_affine
from oncofed.data.dicom.header_types import FrameGrid, ImageHeader, LabelHeader

LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"  # SOP class Label Map Segmentation Storage
_BACKGROUND = ("125040", "DCM")  # PS3.16, annex D
_TAGS: list[BaseTag | int] = [
    Tag(keyword)
    for keyword in (
        "ReferencedSeriesSequence",
        "StudiesContainingOtherReferencedInstancesSequence",
        "SourceImageSequence",
        "ReferencedFrameOfReferenceSequence",
        "SegmentSequence",
        "PixelPaddingValue",
        "StructureSetROISequence",
    )
]
_PLACES: dict[str, list[BaseTag | int]] = {
    "seg": [
        Tag(keyword)
        for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "Rows", "Columns")
    ],
    "rtstruct": [Tag("ROIContourSequence")],
}


def read_references(file: BinaryIO, header: LabelHeader) -> LabelHeader:
    """Return a label file's header, with regions and references.

    The regions' places are read only if the file names no series.

    Args:
        file: open, at any position.
        header: with the fields of every object.
    """
    dataset = _read(file, _TAGS)
    header = _of_segmentation(dataset, header) if header.kind == "seg" else _of_structures(dataset, header)
    if header.refers_to:
        return header
    dataset = _read(file, _PLACES[header.kind])
    instances, points = (_frames if header.kind == "seg" else _contours)(dataset)
    return replace(
        header,
        refers_to_images=sorted({*header.refers_to_images, *instances}),
        box=_box(points),
        grid=_grid(dataset) if header.kind == "seg" else None,
    )


def read_sources(path: Path, kind: str) -> tuple[set[str], list[list[float]] | None]:
    """Return the regions' source images and their box."""
    with path.open("rb") as file:
        dataset = _read(file, _PLACES[kind])
    instances, points = (_frames if kind == "seg" else _contours)(dataset)
    return instances, _box(points)


def read_whole(path: Path) -> Dataset:
    """Return a whole label file.

    Without the preamble of Part 10, the encoding is the one that pydicom detected.
    """
    dataset = pydicom.dcmread(path, force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit = dataset.original_encoding[0]
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    return dataset


def wanted_regions(labels: Mapping[str, str], values: Mapping[str, int]) -> dict[int, int]:
    """Return number of a region -> its label value.

    Names are compared as written, else without case and surrounding spaces.

    Args:
        labels: number of a region -> its name.
        values: name -> label value; regions of other names are left out.
    """
    loose = {region_key(name): value for name, value in values.items()}
    found = {int(n): values.get(name, loose.get(region_key(name))) for n, name in labels.items()}
    return {number: value for number, value in found.items() if value is not None}


def region_key(name: str) -> str:
    """Return a region's name without case and surrounding spaces."""
    return name.strip().casefold()


def named_twice(labels: Iterable[LabelHeader], image: ImageHeader, values: Mapping[str, int]) -> list[str]:
    """Return regions that several label files hold.

    Args:
        labels: headers of the files.
        image: the image's header.
        values: name -> label value; other regions do not count.
    """
    files: Counter[str] = Counter()
    written: dict[str, str] = {}
    for label in labels:
        regions = regions_on(label, image)
        names = {region_key(name): name for name in (regions[str(n)] for n in wanted_regions(regions, values))}
        files.update(names.keys())
        written = {**names, **written}
    return sorted(written[key] for key, count in files.items() if count > 1)


def regions_on(label: LabelHeader, image: ImageHeader) -> dict[str, str]:
    """Return number -> name of regions in an image's space.

    A structure set may hold regions in several frames of reference: PS3.3, C.8.8.5 (Referenced Frame of Reference UID).
    """
    spaces = {"", image.frame_of_reference, label.series_frames.get(image.series, "")}
    frames = label.frames_of_reference
    if not image.frame_of_reference:
        return dict(label.labels)
    return {number: name for number, name in label.labels.items() if frames.get(number, "") in spaces}


def source_instances(frame: Dataset) -> Iterator[str]:
    """Yield the UIDs of a segmentation frame's source images."""
    for derivation in frame.get("DerivationImageSequence") or ():
        for source in derivation.get("SourceImageSequence") or ():
            yield str(source.get("ReferencedSOPInstanceUID", ""))


def _read(file: BinaryIO, tags: list[BaseTag | int]) -> Dataset:
    file.seek(0)
    return pydicom.dcmread(file, stop_before_pixels=True, force=True, specific_tags=tags)


def _of_segmentation(dataset: Dataset, header: LabelHeader) -> LabelHeader:
    series: dict[str, list[str]] = {}
    for part in (dataset, *(dataset.get("StudiesContainingOtherReferencedInstancesSequence") or ())):
        for item in part.get("ReferencedSeriesSequence") or ():
            instances = item.get("ReferencedInstanceSequence") or item.get("ReferencedSOPSequence") or ()
            series.setdefault(str(item.get("SeriesInstanceUID", "")), []).extend(_instances(instances))
    series.pop("", None)
    padding = dataset.get("PixelPaddingValue")
    numbered = [s for s in dataset.get("SegmentSequence") or () if s.get("SegmentNumber") is not None]
    segments = [s for s in numbered if not _is_background(s, padding)]
    return replace(
        header,
        labels={str(s.SegmentNumber): _segment_name(s) for s in segments},
        codes={str(s.SegmentNumber): code for s in segments if (code := _segment_code(s))},
        refers_to=series,
        refers_to_images=_instances(dataset.get("SourceImageSequence") or ()),
    )


def _is_background(segment: Dataset, padding: object) -> bool:
    """Return whether a segment is background.

    PS3.3, C.8.20.2 and C.7.5.1.1.2.
    """
    if padding is not None and int(segment.SegmentNumber) == padding:
        return True
    kinds = segment.get("SegmentedPropertyTypeCodeSequence") or ()
    if any((k.get("CodeValue"), k.get("CodingSchemeDesignator")) == _BACKGROUND for k in kinds):
        return True
    return int(segment.SegmentNumber) == 0 and _segment_name(segment).casefold() == "background"


def _segment_name(segment: Dataset) -> str:
    name = str(segment.get("SegmentLabel") or segment.get("SegmentDescription") or "").strip()
    return name or f"segment {segment.SegmentNumber}"


def _segment_code(segment: Dataset) -> str:
    """Return a segment's property type with its modifiers; empty where it has none."""
    kinds = segment.get("SegmentedPropertyTypeCodeSequence") or ()
    if not kinds:
        return ""
    modifiers = kinds[0].get("SegmentedPropertyTypeModifierCodeSequence") or ()
    return "+".join(_code_text(one) for one in (kinds[0], *modifiers))


def _code_text(item: Dataset) -> str:
    """Return an item of a code sequence as SCHEME:CODE (PS3.3, section 8.1)."""
    value = item.get("CodeValue") or item.get("LongCodeValue") or item.get("URNCodeValue") or ""
    return f"{item.get('CodingSchemeDesignator') or ''}:{value}"


def _of_structures(dataset: Dataset, header: LabelHeader) -> LabelHeader:
    series: dict[str, list[str]] = {}
    spaces: dict[str, str] = {}
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or ():
        for study in frame.get("RTReferencedStudySequence") or ():
            for item in study.get("RTReferencedSeriesSequence") or ():
                uid = str(item.get("SeriesInstanceUID", ""))
                series.setdefault(uid, []).extend(_instances(item.get("ContourImageSequence") or ()))
                spaces[uid] = str(frame.get("FrameOfReferenceUID", ""))
    series.pop("", None)
    regions = [r for r in dataset.get("StructureSetROISequence") or () if r.get("ROINumber") is not None]
    listed = {str(f.get("FrameOfReferenceUID", "")) for f in dataset.get("ReferencedFrameOfReferenceSequence") or ()}
    return replace(
        header,
        labels={str(r.ROINumber): str(r.get("ROIName") or f"region {r.ROINumber}") for r in regions},
        refers_to=series,
        frames_of_reference={str(r.ROINumber): _space_of(r, listed) for r in regions},
        series_frames=spaces,
    )


def _space_of(region: Dataset, listed: set[str]) -> str:
    """Return a region's frame of reference.

    As stated, unless the file lists only one space and it is another.
    """
    own = str(region.get("ReferencedFrameOfReferenceUID") or "")
    return next(iter(listed)) if len(listed) == 1 and own not in listed else own


def _instances(items: Iterable[Dataset]) -> list[str]:
    return [str(item.ReferencedSOPInstanceUID) for item in items if item.get("ReferencedSOPInstanceUID")]


def _frames(dataset: Dataset) -> tuple[set[str], list[NDArray[np.float64]]]:
    """Return a segmentation's source images and frames' corners."""
    instances: set[str] = set()
    corners = []
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    for frame in dataset.get("PerFrameFunctionalGroupsSequence") or ():
        instances |= {uid for uid in source_instances(frame) if uid}
        place = frame_place(frame, shared)
        if place is not None:
            size = np.array([dataset.Columns - 1, dataset.Rows - 1])
            corners.append(np.array([place[:3, 3] + place[:3, :2] @ (size * end) for end in np.ndindex(2, 2)]))
    return instances, corners


def frame_place(frame: Dataset, shared: Dataset) -> NDArray[np.float64] | None:
    """Return a frame's affine to LPS in mm, if any.

    Args:
        frame: its functional groups.
        shared: those of all frames.
    """
    position = _group(frame, shared, "PlanePositionSequence", "ImagePositionPatient")
    orientation = _group(frame, shared, "PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = _group(frame, shared, "PixelMeasuresSequence", "PixelSpacing")
    if not position or not orientation or not spacing:
        return None
    return frame_affine(orientation, spacing, position)


def _grid(dataset: Dataset) -> FrameGrid | None:
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    frame = (dataset.get("PerFrameFunctionalGroupsSequence") or [Dataset()])[0]
    place = frame_place(frame, shared)
    if place is None:
        return None
    sizes = np.linalg.norm(place[:3, :2], axis=0)
    return FrameGrid(
        size=[int(dataset.Rows), int(dataset.Columns)],
        spacing=[float(sizes[1]), float(sizes[0])],
        orientation=(place[:3, :2] / sizes).T.ravel().tolist(),
        position=place[:3, 3].tolist(),
    )


def _group(frame: Dataset, shared: Dataset, sequence: str, keyword: str) -> Any:
    for groups in (frame, shared):
        for item in groups.get(sequence) or ():
            if item.get(keyword) is not None:
                return item.get(keyword)
    return None


def frame_measure(frame: Dataset, shared: Dataset, keyword: str) -> float:
    """Return a number of PixelMeasuresSequence; 0 without it."""
    return float(_group(frame, shared, "PixelMeasuresSequence", keyword) or 0)


def _contours(dataset: Dataset) -> tuple[set[str], list[NDArray[np.float64]]]:
    """Return a structure set's source images and contour points."""
    instances: set[str] = set()
    points = []
    for region in dataset.get("ROIContourSequence") or ():
        for contour in region.get("ContourSequence") or ():
            instances |= set(_instances(contour.get("ContourImageSequence") or ()))
            numbers = contour_data(contour)
            if len(numbers) and len(numbers) % 3 == 0:
                points.append(numbers.reshape(-1, 3))
    return instances, points


def contour_data(contour: Dataset) -> NDArray[np.float64]:
    """Return the coordinates of a contour, in mm.

    pydicom makes an object of each, which takes longer than the rest of reading a structure set.

    Raises:
        ValueError: a coordinate is not a number.
    """
    element = contour.get_item("ContourData")
    value = None if element is None else element.value
    if isinstance(value, bytes):
        text = value.strip(b"\0 ")
        return np.array(text.split(b"\\")).astype(np.float64) if text else np.empty(0)
    return np.asarray(contour.get("ContourData") or (), dtype=np.float64)


def _box(points: list[NDArray[np.float64]]) -> list[list[float]] | None:
    if not points:
        return None
    low = np.min([p.min(axis=0) for p in points], axis=0)
    high = np.max([p.max(axis=0) for p in points], axis=0)
    return [low.tolist(), high.tolist()]
