"""From headers to what can be read as one image: slices that belong together, in their order, or why they do not.

Positions and orientation: DICOM PS3.3, section C.7.6.2. Whether positions are those of a volume is decided by
highdicom (``get_volume_positions``).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oncofed.data.dicom.headers import Header

# A note on a slice of CT, MR or the like, which is no volume, and taken as a flat image.
WITHOUT_PLACE = "no place in space (ImagePositionPatient, ImageOrientationPatient)"
_FLAT_MODALITIES = {"CR", "DX", "MG", "RG", "RF", "XA", "XC", "IO", "PX", "SC", "OT", "US", "ES", "GM", "SM", "OP"}
# In this order: the first one that tells slices of one position apart is what the series varies.
_VOLUME_KEYS = (
    "EchoTime",
    "DiffusionBValue",
    "TemporalPositionIdentifier",
    "TriggerTime",
    "AcquisitionNumber",
    "image_type",
    "ContentTime",
)
_SMALLEST_TILT_DEGREES = 0.5


@dataclass(frozen=True)
class Slice:
    """One file with its header."""

    path: str
    header: Header


@dataclass(frozen=True)
class Stack:
    """What is read as one image.

    Attributes:
        slices: in the order of their positions along the normal, or the one file of a flat or multi-frame image.
        kind: "volume" of classic slices, "multiframe", or "flat".
        reason: why it cannot be read; None where it can.
        tilt: of the gantry in degrees.
        notes: what was seen, for people.
        part: number within its series, from 0.
    """

    slices: tuple[Slice, ...]
    kind: str
    reason: str | None = None
    tilt: float = 0.0
    notes: tuple[str, ...] = ()
    part: int = 0

    @property
    def header(self) -> Header:
        """Of the first slice."""
        return self.slices[0].header


@dataclass
class Heap:
    """What a heap of DICOM files holds.

    Attributes:
        stacks: the images.
        labels: SEG and RT-STRUCT files.
        slides: whole-slide instances by series.
        broken: path -> reason.
        left_out: path -> what it is, of files that are no image.
    """

    stacks: list[Stack] = field(default_factory=list)
    labels: list[Slice] = field(default_factory=list)
    slides: dict[str, list[Slice]] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def sort_heap(headers: Iterable[tuple[str, Header]]) -> Heap:
    """Group the files of a heap into images.

    Args:
        headers: path and header of each file, in any order.
    """
    heap = Heap()
    by_series: dict[str, list[Slice]] = defaultdict(list)
    for path, header in sorted(headers, key=lambda item: item[0]):
        kind = header["kind"]
        if kind == "image":
            by_series[header["series"]].append(Slice(path, header))
        elif kind in {"seg", "rtstruct"}:
            heap.labels.append(Slice(path, header))
        elif kind == "slide":
            heap.slides.setdefault(header["series"], []).append(Slice(path, header))
        elif kind == "broken":
            heap.broken[path] = header["reason"]
        else:
            name = "DICOMDIR" if kind == "dicomdir" else f"DICOM {header.get('modality') or 'object'} without pixels"
            heap.left_out[path] = name
    for series in by_series.values():
        stacks, left_out = _stacks(series)
        heap.stacks += [replace(stack, part=part) for part, stack in enumerate(stacks)]
        heap.left_out |= left_out
    return heap


def _stacks(series: list[Slice]) -> tuple[list[Stack], dict[str, str]]:
    """Return the images of a series, and what the files are that are none: path -> kind."""
    series, copies = _without_copies(series)
    notes = (f"{len(copies)} files are copies of others of the series",) if copies else ()
    stacks: list[Stack] = []
    left_out = dict.fromkeys(copies, "copy of another file of its series")
    classic: list[Slice] = []
    for item in series:
        header = item.header
        if header["mosaic"]:
            stacks.append(
                _refused(
                    [item],
                    "is a Siemens mosaic: many slices in one flat image. Convert it with dcm2niix, register the NIfTI",
                )
            )
        elif header["frames"] > 1:
            stacks.append(_multiframe(item))
        elif header["position"] and header["orientation"] and not _is_flat(header):
            classic.append(item)
        else:
            stacks.append(Stack((item,), "flat", notes=() if _is_flat(header) else (WITHOUT_PLACE,)))
    by_grid: dict[Any, list[Slice]] = defaultdict(list)
    for item in classic:
        header = item.header
        direction = tuple(np.round(header["orientation"], 2) + 0.0)
        by_grid[direction, header["rows"], header["columns"]].append(item)
    mixed = len({key[0] for key in by_grid}) > 1
    for group in by_grid.values():
        if _is_localizer(group, mixed):
            left_out |= {item.path: "localizer" for item in group}
            continue
        more = (*notes, f"its series holds {len(by_grid)} orientations or sizes") if len(by_grid) > 1 else notes
        stacks += [replace(stack, notes=(*more, *stack.notes)) for stack in _volumes(group)]
    return stacks, left_out


def _is_flat(header: Header) -> bool:
    return header["modality"] in _FLAT_MODALITIES or header["samples"] > 1


def _is_localizer(group: list[Slice], mixed: bool) -> bool:
    named = any("LOCALIZER" in item.header["image_type"] for item in group)
    described = any(
        word in item.header["description"].lower() for item in group for word in ("localizer", "scout", "topogram")
    )
    return named or (described and len(group) <= 15) or (mixed and len(group) <= 5)


def _multiframe(item: Slice) -> Stack:
    header = item.header
    if header["enhanced"]:
        return Stack((item,), "multiframe")
    return _refused(
        [item],
        f"has {header['frames']} frames without positions ({header['modality'] or 'no modality'}): no volume in space",
    )


def _without_copies(series: list[Slice]) -> tuple[list[Slice], list[str]]:
    """Return the slices of a series, and the paths of those that are copies."""
    seen: dict[str, Slice] = {}
    copies = [item.path for item in series if seen.setdefault(item.header["instance"] or item.path, item) is not item]
    return list(seen.values()), copies


def _volumes(group: list[Slice]) -> list[Stack]:
    """Return the volumes of slices with one orientation and size."""
    if len(_positions_seen(group)) == len(group):
        return [_volume(group)]
    for key in _VOLUME_KEYS:
        parts: dict[str, list[Slice]] = defaultdict(list)
        for item in group:
            parts[str(item.header[key])].append(item)
        sizes = {len(part) for part in parts.values()}
        if len(parts) > 1 and len(sizes) == 1 and all(len(_positions_seen(p)) == len(p) for p in parts.values()):
            note = f"its series holds {len(parts)} volumes, which differ in {key}"
            return [replace(s, notes=(note, *s.notes)) for s in map(_volume, parts.values())]
    twice = len(group) - len(_positions_seen(group))
    return [
        _refused(group, f"has {twice} of {len(group)} slices at positions of others, and no header tells them apart")
    ]


def _positions_seen(group: list[Slice]) -> set[tuple[float, ...]]:
    return {tuple(np.round(item.header["position"], 3) + 0.0) for item in group}


def _volume(group: list[Slice]) -> Stack:
    header = group[0].header
    if not header["spacing"] or min(header["spacing"]) <= 0:
        return _refused(group, "has no PixelSpacing: how large its pixels are is not known")
    reason = _scaling_problem(group)
    if reason:
        return _refused(group, reason)
    if len(group) == 1:
        return Stack(tuple(group), "volume", notes=("has one slice only",))
    positions = np.array([item.header["position"] for item in group])
    normal = np.cross(header["orientation"][:3], header["orientation"][3:])
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    ordered = tuple(group[i] for i in order)
    from highdicom.spatial import get_volume_positions  # noqa: PLC0415 - see pixels.py

    spacing, _ = get_volume_positions(positions.tolist(), header["orientation"], rtol=0.02)
    if spacing is not None:
        return Stack(ordered, "volume")
    return _irregular(ordered, positions[order], along[order], normal, header["orientation"])


def _irregular(
    ordered: tuple[Slice, ...],
    positions: NDArray[np.float64],
    along: NDArray[np.float64],
    normal: NDArray[np.float64],
    orientation: Sequence[float],
) -> Stack:
    gaps = np.diff(along)
    if gaps.min() < 1e-3:
        return _refused(ordered, "has slices at the same distance along the normal but shifted sideways")
    typical = float(np.median(gaps))
    multiples = gaps / typical
    if np.abs(gaps - typical).max() < 0.02 * typical:
        return _tilted(ordered, positions, normal, orientation)
    if np.abs(multiples - np.rint(multiples)).max() < 0.05:
        missing = int(np.rint(multiples).sum()) - len(gaps)
        at = along[int(np.argmax(multiples > 1.5))] + typical
        return _refused(ordered, f"lacks {missing} of {len(ordered) + missing} slices, the first at {at:.1f} mm")
    return _refused(ordered, f"has uneven spacing: {gaps.min():.2f} to {gaps.max():.2f} mm between slices")


def _tilted(
    ordered: tuple[Slice, ...],
    positions: NDArray[np.float64],
    normal: NDArray[np.float64],
    orientation: Sequence[float],
) -> Stack:
    step = positions[-1] - positions[0]
    steps = np.diff(positions, axis=0)
    if np.linalg.norm(steps - steps.mean(axis=0), axis=1).max() > 0.1 * np.linalg.norm(steps.mean(axis=0)):
        return _refused(ordered, "has slices that are shifted sideways against each other unevenly")
    angle = math.degrees(math.acos(min(1.0, abs(float(step @ normal)) / float(np.linalg.norm(step)))))
    if angle < _SMALLEST_TILT_DEGREES:
        return Stack(ordered, "volume")
    return Stack(ordered, "volume", tilt=angle, notes=(f"gantry tilt of {angle:.1f} degrees: straightened",))


def _scaling_problem(group: list[Slice]) -> str | None:
    scales = {item.header["philips_scale"] for item in group}
    if len(scales) > 1 and not all(item.header["has_slope"] for item in group):
        return "has Philips' private scaling that differs between slices, and no RescaleSlope to read it by"
    return None


def _refused(group: Sequence[Slice], reason: str) -> Stack:
    return Stack(tuple(group), "volume", reason=reason)
