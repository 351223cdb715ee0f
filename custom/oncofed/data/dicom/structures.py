"""Draw structure sets (RT-STRUCT) on a volume.

DICOM PS3.3, C.8.8.6. Of contours of type CLOSED_PLANAR in one plane, the region is the union. One wholly inside another
is a hole in it, as workstations draw holes; the standard's ways, keyholes and CLOSEDPLANAR_XOR, are followed to the
letter (C.8.8.6.3). Open contours and points have no area (C.8.8.6.1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from oncofed.data.dicom.canvas import Canvas, OutsideError
from oncofed.data.dicom.contours import Outline, Region
from oncofed.data.dicom.matching import PlacedLabel
from oncofed.data.dicom.planes import ROUNDING, Floats, reaches, voxels_near
from oncofed.data.dicom.references import contour_data
from oncofed.data.formats.common import LPS_TO_RAS
from oncofed.data.images import LoadedImage
from oncofed.errors import DataError

_XOR = "CLOSEDPLANAR_XOR"
_NO_AREA = {"POINT": "points", "OPEN_PLANAR": "open contours", "OPEN_NONPLANAR": "open contours"}
# Contours nearer than this, in slices and in mm, lie in one plane.
_SAME_PLANE_SLICES, _SAME_PLANE_MM = 0.1, 0.2
_PARALLEL = 0.9998  # cosine of one degree
_MOST_DIRECTIONS = 3


@dataclass(frozen=True)
class _Contour:
    """A closed contour: points (n, 3) LPS in mm.

    ``xor``: it is combined with others by exclusive or.
    """

    points: Floats
    xor: bool


def draw_structures(
    path: Path, canvas: Canvas, wanted: Mapping[int, int], image: LoadedImage, label: PlacedLabel
) -> list[str]:
    """Draw a structure set.

    Args:
        path: the file.
        canvas: to draw on.
        wanted: number of a region -> label value.
        image: the volume, with its place in space.
        label: how the file refers to it.

    Returns:
        Notes for people.

    Raises:
        DataError: a contour is invalid or not planar, or the contours enclose no voxel.
        OutsideError: all contours lie outside the image.
    """
    dataset = pydicom.dcmread(path, force=True, specific_tags=[Tag("ROIContourSequence")])
    items: dict[int, list[Dataset]] = {}
    for item in dataset.get("ROIContourSequence") or ():
        items.setdefault(int(item.ReferencedROINumber), []).extend(item.get("ContourSequence") or ())
    seen = _Observations()
    for number, value in sorted(wanted.items(), key=lambda pair: pair[1]):
        name = canvas.names[value]
        contours = list(_closed(items.get(number, ()), name, seen))
        if not items.get(number):
            seen.bare.add(name)
        if contours:
            _draw_region(canvas, value, contours, image, label, seen)
    if seen.contours and seen.outside == seen.contours:
        raise OutsideError(f"its label lies outside the image, with all of its contours ({seen.contours})")
    if seen.contours and not seen.voxels:
        raise DataError(
            f"its label encloses no voxel of the image, with all of its contours ({seen.contours}). See whether it was "
            "drawn on this image; if it was, export it as a mask"
        )
    if seen.without_area and not seen.contours:
        raise DataError(
            "its label holds points or open contours alone, which have no area, expected closed contours. Close them, "
            "and export it again"
        )
    return list(seen.notes())


class _Observations:
    """Observations in a structure set, by region."""

    def __init__(self) -> None:
        self.contours = self.voxels = self.outside = 0
        self.without_area: Counter[tuple[str, str]] = Counter()
        self.beyond: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()
        self.doubled: Counter[str] = Counter()
        self.across: set[str] = set()
        self.empty: set[str] = set()
        self.bare: set[str] = set()
        self.apart: dict[str, str] = {}

    def notes(self) -> Iterator[str]:
        """Yield a note on each kind of observation."""
        for (name, kind), count in sorted(self.without_area.items()):
            yield f"{name}: without area, not drawn: {count} {kind}"
        for name, count in sorted((+self.doubled).items()):
            yield f"{name}: contours that are there twice, drawn once: {count}"
        for name, count in sorted(self.beyond.items()):
            yield f"{name}: contours outside the image, not drawn: {count}"
        for name, count in sorted(self.cut.items()):
            yield f"{name}: contours that leave the image, cut at its border: {count}"
        if self.across:
            yield (
                f"contours lie across the slices ({', '.join(sorted(self.across))}): each fills the voxels half way to "
                "the next"
            )
        for name, gap in sorted(self.apart.items()):
            yield f"{name}: contours lie {gap}"
        if self.bare:
            yield f"named without a contour, not drawn: {', '.join(sorted(self.bare))}"
        if self.empty:
            yield f"no voxel inside the contours of {', '.join(sorted(self.empty))}"


def _closed(items: Sequence[Dataset], name: str, seen: _Observations) -> Iterator[_Contour]:
    """Yield the contours that enclose an area."""
    for item in items:
        kind = str(item.get("ContourGeometricType") or "CLOSED_PLANAR").strip().upper().replace(" ", "_")
        if kind in _NO_AREA or not kind.startswith("CLOSED"):
            seen.without_area[name, _NO_AREA.get(kind, f"contours of the type {kind[:20]}")] += 1
            continue
        if any(float(v) for v in item.get("ContourOffsetVector") or ()):
            raise DataError(
                f"its label moves a contour of {name} by a ContourOffsetVector, which is retired and unclear. Export "
                "it again without one, or as a mask"
            )
        numbers = _numbers(item, name)
        if len(numbers) % 3 or not np.isfinite(numbers).all():
            raise DataError(
                f"its label holds a contour of {name} of {len(numbers)} numbers, expected three finite ones a point"
            )
        if len(numbers) < 9:
            seen.without_area[name, "contours of fewer than three points"] += 1
            continue
        seen.contours += 1
        yield _Contour(numbers.reshape(-1, 3), kind == _XOR)


def _numbers(item: Dataset, name: str) -> Floats:
    try:
        return contour_data(item)
    except ValueError:
        raise DataError(
            f"its label holds a contour of {name} whose ContourData are not all numbers. Export it again"
        ) from None


def _draw_region(
    canvas: Canvas, value: int, contours: list[_Contour], image: LoadedImage, label: PlacedLabel, seen: _Observations
) -> None:
    name = canvas.names[value]
    region = np.zeros(image.shape, bool)
    to_voxels = np.linalg.inv(image.affine) @ LPS_TO_RAS
    flat: list[Outline] = []
    across: list[_Contour] = []
    for contour in contours:
        voxels = contour.points @ to_voxels[:3, :3].T + to_voxels[:3, 3]
        _look_outside(voxels, image.shape, name, seen)
        if np.ptp(voxels[:, 2]) <= 0.5:
            flat.append(Outline(voxels[:, :2], float(voxels[:, 2].mean()), contour.xor))
        else:
            across.append(contour)
    if flat:
        _draw_slices(region, flat, image, label.named, name, seen)
    if across:
        seen.across.add(name)
        _draw_across(region, across, image, name, seen)
    count = int(np.count_nonzero(region))
    seen.voxels += count
    if not count:
        seen.empty.add(name)
    used = np.flatnonzero(region.any(axis=(0, 1)))
    for number in used:
        x, y = np.nonzero(region[..., number])
        canvas.draw((x, y, number), value)


def _look_outside(voxels: Floats, shape: Sequence[int], name: str, seen: _Observations) -> None:
    """Count a contour more than a voxel outside the image.

    Drawings at the image's border may end within one voxel outside.
    """
    last = np.array(shape)
    low, high = voxels.min(axis=0), voxels.max(axis=0)
    if (high < -0.5 - ROUNDING).any() or (low >= last - 0.5 + ROUNDING).any():
        seen.beyond[name] += 1
        seen.outside += 1
    elif (low[:2] < -1).any() or (high[:2] > last[:2]).any():
        seen.cut[name] += 1


# --- contours of the image's slices


def _draw_slices(
    region: NDArray[np.bool_], outlines: list[Outline], image: LoadedImage, named: bool, name: str, seen: _Observations
) -> None:
    thickness = float(np.linalg.norm(image.affine[:3, 2]))
    planes = _planes(outlines, min(_SAME_PLANE_SLICES, _SAME_PLANE_MM / thickness))
    seen.doubled[name] += sum(plane.doubled for plane in planes)
    depths = np.array([plane.depth for plane in planes])
    gap = float(np.median(np.diff(depths))) if len(depths) > 1 else 1.0
    half = 0.5 if named else max(0.5, gap / 2)
    if gap > 1.5 and len(depths) > 2:
        seen.apart[name] = (
            f"{gap:.3g} slices apart, those between are {'empty' if named else 'filled half way to each'}"
        )
    left: list[Region] = []
    for plane, (low, high) in zip(planes, reaches(depths, half), strict=True):
        first = np.ceil(plane.depth + low - ROUNDING)
        last = np.ceil(plane.depth + high - ROUNDING) - 1
        for number in range(max(int(first), 0), min(int(last), region.shape[2] - 1) + 1):
            _fill_slice(region[..., number], plane)
        if last < first:
            left.append(plane)
    for plane in left:
        number = int(np.ceil(plane.depth - 0.5 - ROUNDING))
        if 0 <= number < region.shape[2]:
            _fill_slice(region[..., number], plane, only_new=True)


def _planes(outlines: list[Outline], tolerance: float) -> list[Region]:
    """Return the contours of each plane, ascending."""
    ordered = sorted(outlines, key=lambda outline: outline.depth)
    groups = [[ordered[0]]]
    for outline in ordered[1:]:
        if outline.depth - groups[-1][0].depth > tolerance:
            groups.append([])
        groups[-1].append(outline)
    return [Region(group) for group in groups]


def _fill_slice(mask: NDArray[np.bool_], plane: Region, only_new: bool = False) -> None:
    """Fill the area of a plane's contours.

    ``only_new``: only those of its parts that touch nothing filled before.

    Planes between slices are not drawn otherwise, so a part that only such a plane shows would vanish.
    """
    low = np.maximum(np.floor(plane.low).astype(int), 0)
    high = np.minimum(np.ceil(plane.high).astype(int) + 1, mask.shape)
    if (high <= low).any():
        return
    x, y = np.meshgrid(np.arange(low[0], high[0]), np.arange(low[1], high[1]), indexing="ij")
    window = mask[low[0] : high[0], low[1] : high[1]]
    parts = [part.reshape(x.shape) for part in plane.parts(np.stack([x.ravel(), y.ravel()], axis=1))]
    for part in parts:
        if not only_new or not (part & window).any():
            window |= part


# --- contours across slices


def _draw_across(
    region: NDArray[np.bool_], contours: list[_Contour], image: LoadedImage, name: str, seen: _Observations
) -> None:
    """Fill the voxels that contours across slices enclose.

    A plane's contours reach half way to the next parallel plane.
    """
    to_lps = LPS_TO_RAS @ image.affine
    smallest = float(np.linalg.norm(to_lps[:3, :3], axis=0).min())
    for normal, group in _by_normal(contours, smallest, name):
        axes = _axes(normal)
        to_plane = np.eye(4)
        to_plane[:3] = axes @ to_lps[:3]
        outlines = []
        for contour in group:
            places = contour.points @ axes.T
            outlines.append(Outline(places[:, :2], float(places[:, 2].mean()), contour.xor))
        planes = _planes(outlines, min(_SAME_PLANE_MM, 0.1 * smallest))
        seen.doubled[name] += sum(plane.doubled for plane in planes)
        depths = np.array([plane.depth for plane in planes])
        voxel = float(np.abs(to_plane[2, :3]).max())
        half = max(voxel, float(np.median(np.diff(depths)))) / 2 if len(depths) > 1 else voxel / 2
        for plane, (below, above) in zip(planes, reaches(depths, half), strict=True):
            low = np.array([*plane.low, plane.depth + below - ROUNDING])
            high = np.array([*plane.high, plane.depth + above - ROUNDING])
            for index, places in voxels_near(to_plane, region.shape, low, high):
                for part in plane.parts(places):
                    region[tuple(axis[part] for axis in index)] = True


def _by_normal(contours: list[_Contour], tolerance: float, name: str) -> list[tuple[Floats, list[_Contour]]]:
    """Return contours by the direction of their planes."""
    groups: list[tuple[Floats, list[_Contour]]] = []
    for contour in contours:
        centred = contour.points - contour.points.mean(axis=0)
        normal = np.linalg.svd(centred, full_matrices=False)[2][2]
        normal = normal * np.sign(normal[np.argmax(np.abs(normal))])
        off = float(np.abs(centred @ normal).max())
        if off > 0.5 * tolerance:
            raise DataError(
                f"its label holds a contour of {name} that lies in no plane (its points are {off:.1f} mm off it), "
                "expected planar ones. Export the label as a segmentation (SEG) or NIfTI"
            )
        found = next((group for first, group in groups if abs(first @ normal) > _PARALLEL), None)
        if found is None:
            groups.append((normal, [contour]))
        else:
            found.append(contour)
    if len(groups) > _MOST_DIRECTIONS:
        raise DataError(
            f"its label's contours of {name} lie in planes of {len(groups)} directions across the slices, expected "
            "parallel planes. Export the label as a segmentation (SEG) or NIfTI"
        )
    return groups


def _axes(normal: Floats) -> Floats:
    """Return two unit vectors in a plane, and its normal."""
    first = np.cross(normal, np.eye(3)[int(np.argmin(np.abs(normal)))])
    first /= np.linalg.norm(first)
    return np.stack([first, np.cross(normal, first), normal])
