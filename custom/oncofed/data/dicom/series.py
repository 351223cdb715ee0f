"""Group slices into images.

Slices of an image are sorted; slices that form none come with the reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydicom.uid import SecondaryCaptureImageStorage

from oncofed.data.dicom.directions import by_plane
from oncofed.data.dicom.duplicates import copies_among, is_placed, suspects
from oncofed.data.dicom.header_types import (
    BrokenFile,
    Directory,
    ForeignFile,
    Header,
    ImageHeader,
    LabelHeader,
    OtherObject,
    SlideHeader,
)
from oncofed.data.dicom.regular import as_volume
from oncofed.data.dicom.stacks import Digests, LabelFile, Slice, SlideFile, Stack, refused
from oncofed.data.dicom.volumes import volumes

# Note on a slice of CT, MR or the like that is taken as a flat image.
WITHOUT_PLACE = "no place in space (ImagePositionPatient, ImageOrientationPatient)"
COPY = "copy of another file of its series (the same place and pixels)"
LOCALIZER = "localizer"
CAPTURE = "picture of a screen or a report (secondary capture) beside volumes"
JOINED = "each of its slices has a SeriesInstanceUID of its own: joined by their places"
ODD_SLICE = "one slice of another direction or size than the rest of its series"
_PROJECTIONS = {"CR", "DX", "MG", "RG", "RF", "XA", "XC", "IO", "PX", "US", "ES", "GM", "SM", "OP"}
_FLAT_MODALITIES = {*_PROJECTIONS, "SC", "OT"}
_VOLUMES = {"CT", "MR", "PT", "NM"}
_CAPTURED = {"SECONDARY", "SCREEN SAVE", "SCREENSHOT"}
_LOCALIZER_WORDS = ("localizer", "scout", "topogram", "surview", "survey")
_MOST_OF_LOCALIZER = 15
_FEWEST_OF_VOLUME = 4


@dataclass
class DicomIndex:
    """A folder's DICOM objects by kind.

    Attributes:
        stacks: the images.
        labels: SEG and RT-STRUCT files; once matched, those that lie on an image.
        unplaced: label files that lie on no image.
        slides: whole-slide instances by series.
        broken: path -> reason.
        left_out: path -> what it is, of files that are no image.
    """

    stacks: list[Stack] = field(default_factory=list)
    labels: list[LabelFile] = field(default_factory=list)
    unplaced: list[LabelFile] = field(default_factory=list)
    slides: dict[str, list[SlideFile]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def headers(self) -> Iterator[ImageHeader | SlideHeader]:
        """Yield the header of each image and slide file."""
        yield from (stack.header for stack in self.stacks)
        yield from (item.header for instances in self.slides.values() for item in instances)


def group_series(headers: Iterable[tuple[str, Header]], digests: Digests | None = None) -> DicomIndex:
    """Group DICOM files into images, labels and slides.

    Args:
        headers: path and header of each file, in any order.
        digests: called only with files that may be copies of others; None: no file is a copy.
    """
    index = DicomIndex()
    by_series: dict[str, list[Slice]] = defaultdict(list)
    for path, header in sorted(headers, key=lambda item: item[0]):
        match header:
            case ImageHeader():
                by_series[header.series].append(Slice(path, header))
            case LabelHeader():
                index.labels.append(LabelFile(path, header))
            case SlideHeader():
                index.slides.setdefault(header.series, []).append(SlideFile(path, header))
            case OtherObject():
                index.left_out[path] = f"DICOM {header.modality or 'object'} without pixels"
            case Directory():
                index.left_out[path] = "DICOMDIR"
            case ForeignFile():
                index.left_out[path] = header.what
            case BrokenFile():
                index.broken[path] = header.reason
    _leave_out_captures(by_series, index)
    digests = digests or (lambda slices: {})
    alike = [group for series in by_series.values() for group in suspects(series)]
    copies = copies_among(alike, digests([item for group in alike for item in group])) if alike else set()
    for series in _joined(by_series):
        stacks, left_out = _stacks(series, copies, digests)
        if len({item.header.series for item in series}) > 1:
            stacks = [replace(stack, notes=(*stack.notes, JOINED)) for stack in stacks]
        index.stacks += [replace(stack, part=part) for part, stack in enumerate(stacks)]
        index.left_out |= left_out
    return index


def _joined(by_series: Mapping[str, list[Slice]]) -> Iterator[list[Slice]]:
    """Yield the slices of each series.

    Some anonymisers give each slice another series. Such slices are joined if they are evenly spaced, of one study, and
    only their UIDs differ.
    """
    alone: dict[Any, list[Slice]] = defaultdict(list)
    for series in by_series.values():
        if len(series) == 1 and is_placed(series[0].header) and not _is_flat(series[0].header):
            header = series[0].header
            tells = tuple((key, header.tells.get(key)) for key in ("SeriesNumber", "SeriesDescription"))
            alone[header.patient, header.study, header.rows, header.columns, tells].append(series[0])
        else:
            yield series
    for slices in alone.values():
        planes = by_plane(slices)
        is_stack = len(slices) >= _FEWEST_OF_VOLUME and len(planes) == 1 and not planes[0][1]
        if is_stack and as_volume(slices).reason is None:
            yield slices
        else:
            yield from ([item] for item in slices)


def _leave_out_captures(by_series: dict[str, list[Slice]], index: DicomIndex) -> None:
    """Leave out screenshots and reports next to volumes.

    Without volumes they are kept, as they may be the dataset.
    """
    placed = [
        item.header
        for series in by_series.values()
        for item in series
        if is_placed(item.header) and not _is_flat(item.header)
    ]
    patients = {header.patient for header in placed}
    for series, items in by_series.items():
        captures = {
            item.path
            for item in items
            if _is_capture(item.header)
            and (item.header.patient in patients or (placed and item.header.modality in _VOLUMES))
        }
        if captures:
            index.left_out |= dict.fromkeys(captures, CAPTURE)
            by_series[series] = [item for item in items if item.path not in captures]


def _is_capture(header: ImageHeader) -> bool:
    if header.position or header.enhanced or header.modality in _PROJECTIONS:
        return False
    return header.sop_class.startswith(SecondaryCaptureImageStorage) or bool(_CAPTURED & set(header.image_type))


def _stacks(series: list[Slice], copies: set[str], digests: Digests) -> tuple[list[Stack], dict[str, str]]:
    """Return a series' images, and kinds of its other files."""
    left_out = {item.path: COPY for item in series if item.path in copies}
    stacks: list[Stack] = []
    classic: list[Slice] = []
    for item in series:
        single = _single(item)
        if item.path in left_out:
            continue
        if single is not None:
            stacks.append(single)
        elif "LOCALIZER" in item.header.image_type:
            left_out[item.path] = LOCALIZER
        else:
            classic.append(item)
    for group, _ in by_plane([item for item in classic if _is_described_as_localizer(item)]):
        if len(group) <= _MOST_OF_LOCALIZER:
            left_out |= {item.path: LOCALIZER for item in group}
    classic = [item for item in classic if item.path not in left_out]
    planes = by_plane(classic)
    most = max((len(group) for group, _ in planes), default=0)
    notes = (f"its series holds {len(planes)} orientations or sizes",) if len(planes) > 1 else ()
    for group, reason in planes:
        if len(group) == 1 and not reason and most >= _FEWEST_OF_VOLUME:
            left_out[group[0].path] = ODD_SLICE
        elif reason:
            stacks.append(refused(group, reason))
        elif len(group) == 1 and len(planes) > 1:
            stacks.append(
                refused(
                    group,
                    f"is one slice, in a series of {len(planes)} directions or sizes: no volume. "
                    "Leave it out where it is a localizer",
                )
            )
        else:
            found, more = _volumes(group, digests)
            left_out |= dict.fromkeys(more, COPY)
            stacks += [replace(stack, notes=(*notes, *stack.notes)) for stack in found]
    twice = sum(reason == COPY for reason in left_out.values())
    notes = (f"{twice} files are copies of others of the series",) if twice else ()
    return [replace(stack, notes=(*notes, *stack.notes)) for stack in stacks], left_out


def _single(item: Slice) -> Stack | None:
    """Return a file's image; None for slices of volumes."""
    header = item.header
    if header.mosaic:
        reason = "is a Siemens mosaic: many slices in one flat image. Convert it with dcm2niix, register the NIfTI"
        return refused([item], reason)
    if header.frames > 1:
        return _multiframe(item)
    if not header.position or not header.orientation or _is_flat(header):
        return Stack((item,), "flat", notes=() if _is_flat(header) else (WITHOUT_PLACE,))
    return None


def _volumes(group: list[Slice], digests: Digests) -> tuple[list[Stack], set[str]]:
    """Return volumes by patient, and the paths of copies."""
    patients: dict[str, list[Slice]] = defaultdict(list)
    for item in group:
        patients[item.header.patient].append(item)
    if len(patients) > 1 and as_volume(group).reason is None:
        what = f"has slices of {len(patients)} patients by their headers (PatientID), in one volume"
        return [refused(group, f"{what}. Export each patient's slices as a series of their own")], set()
    stacks: list[Stack] = []
    copies: set[str] = set()
    notes = (f"its series holds images of {len(patients)} patients",) if len(patients) > 1 else ()
    for own in patients.values():
        found, more = volumes(own, digests)
        stacks += [replace(stack, notes=(*notes, *stack.notes)) for stack in found]
        copies |= more
    return stacks, copies


def _is_flat(header: ImageHeader) -> bool:
    return header.modality in _FLAT_MODALITIES or header.samples > 1


def _is_described_as_localizer(item: Slice) -> bool:
    description = item.header.description.lower()
    return any(word in description for word in _LOCALIZER_WORDS)


def _multiframe(item: Slice) -> Stack:
    header = item.header
    if header.enhanced:
        return Stack((item,), "multiframe")
    kind = header.modality or "no modality"
    what = f"has {header.frames} frames without positions ({kind}): no volume in space"
    return refused([item], f"{what}. Leave it out, or export the pictures that count as files of their own")
