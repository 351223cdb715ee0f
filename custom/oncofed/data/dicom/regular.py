"""Check that slices form one volume.

They are evenly spaced, or of a tilted gantry. Positions and orientation: DICOM PS3.3, section C.7.6.2. highdicom
(``get_volume_positions``) decides whether positions are those of a volume.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from oncofed.data.dicom.stacks import Slice, Stack, refused

_SMALLEST_TILT_DEGREES = 0.5
_SMALLEST_TILT = math.cos(math.radians(_SMALLEST_TILT_DEGREES))
_EXACT = 1e-3  # of the distance between slices
# Positions in tenths of a millimetre: both ends of the line and the slice are off by up to half of a tenth, and sums of
# floats by a little more.
_TENTHS_MM = 0.1 + 1e-6
_TENTHS_SHARE = 0.2  # of the distance between slices
_STRAIGHTENED = ": straightened"  # ends the note of a tilted gantry
EVEN = 0.02  # share of the typical distance by which distances may differ


def as_volume(group: list[Slice]) -> Stack:
    """Return slices as a volume, or the reason against it.

    The slices have one direction and size, and distinct places.
    """
    header = group[0].header
    if not header.spacing or min(header.spacing) <= 0:
        return refused(
            group, "has no PixelSpacing: how large its pixels are is not known. Export the series again from its source"
        )
    reason = _scaling_problem(group)
    if reason:
        return refused(group, reason)
    if len(group) == 1:
        return Stack(tuple(group), "volume", notes=("has one slice only",))
    positions = np.array([item.header.position for item in group])
    normal = np.cross(header.orientation[:3], header.orientation[3:])
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    ordered = tuple(group[i] for i in order)
    if _is_plain(positions[order], along[order]):
        return Stack(ordered, "volume")
    from highdicom.spatial import get_volume_positions  # noqa: PLC0415 - see pixels.py

    spacing, _ = get_volume_positions(positions.tolist(), header.orientation, rtol=EVEN)
    if spacing is not None:
        return Stack(ordered, "volume")
    return _irregular(ordered, positions[order], along[order], normal)


def _is_plain(positions: NDArray[np.float64], along: NDArray[np.float64]) -> bool:
    """Return whether slices lie evenly along their normal.

    Within the rounding of positions.
    """
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    depth = float(along[-1] - along[0]) / (len(along) - 1)
    off = np.abs(positions - positions[0] - np.arange(len(positions))[:, None] * step).max()
    return bool(depth > 0 and off <= rounding(depth) and np.linalg.norm(step) * _SMALLEST_TILT <= depth)


def rounding(gap: float) -> float:
    """Return the tolerance of a slice's position in mm.

    Positions are often written in tenths of a millimetre.
    """
    return max(_EXACT * gap, min(_TENTHS_MM, _TENTHS_SHARE * gap))


def _irregular(
    ordered: tuple[Slice, ...],
    positions: NDArray[np.float64],
    along: NDArray[np.float64],
    normal: NDArray[np.float64],
) -> Stack:
    gaps = np.diff(along)
    if gaps.min() < 1e-3:
        return refused(
            ordered,
            "has slices at the same distance along the normal but shifted sideways. Export each volume as a series of "
            "its own",
        )
    typical = float(np.median(gaps))
    multiples = gaps / typical
    if np.abs(gaps - typical).max() < EVEN * typical:
        return _tilted(ordered, positions, normal)
    if np.abs(multiples - np.rint(multiples)).max() < 0.05:
        missing = int(np.rint(multiples).sum()) - len(gaps)
        at = along[int(np.argmax(multiples > 1.5))] + typical
        what = f"lacks {missing} of {len(ordered) + missing} slices, the first at {at:.1f} mm. Copy them, too"
        return refused(ordered, what)
    what = f"has uneven spacing: {gaps.min():.2f} to {gaps.max():.2f} mm between slices"
    return refused(ordered, f"{what}. Export the whole series again, or convert it with dcm2niix")


def is_straightened(notes: Iterable[str]) -> bool:
    """Return whether slices were moved, by the notes.

    Then not all voxels are pixels of a slice.
    """
    return any(note.endswith(_STRAIGHTENED) for note in notes)


def _tilted(ordered: tuple[Slice, ...], positions: NDArray[np.float64], normal: NDArray[np.float64]) -> Stack:
    step = positions[-1] - positions[0]
    steps = np.diff(positions, axis=0)
    if np.linalg.norm(steps - steps.mean(axis=0), axis=1).max() > 0.1 * np.linalg.norm(steps.mean(axis=0)):
        return refused(
            ordered, "has slices that are shifted sideways against each other unevenly. Export the series again"
        )
    angle = math.degrees(math.acos(min(1.0, abs(float(step @ normal)) / float(np.linalg.norm(step)))))
    if angle < _SMALLEST_TILT_DEGREES:
        return Stack(ordered, "volume")
    return Stack(ordered, "volume", tilt=angle, notes=(f"gantry tilt of {angle:.1f} degrees{_STRAIGHTENED}",))


def _scaling_problem(group: Sequence[Slice]) -> str | None:
    scales = {item.header.philips_scale for item in group}
    wrong = [scale for scale in scales if scale is not None and not (math.isfinite(scale) and scale > 0)]
    if wrong:
        return f"has Philips' private scaling with a ScaleSlope of {wrong[0]:g}, expected a positive number"
    if len(scales) == 1:
        return None
    if None in scales:
        return (
            "has Philips' private scaling (ScaleSlope) in some of its slices only: their values cannot be compared. "
            "Export the whole series again with its private elements"
        )
    if not all(item.header.has_slope for item in group):
        return (
            "has Philips' private scaling that differs between slices, and no RescaleSlope to read it by. Export the "
            "series again from the scanner or the archive"
        )
    return None
