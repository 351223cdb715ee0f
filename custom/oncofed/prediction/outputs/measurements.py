"""Measures segmentations: volume, diameters, pieces, per class.

Lengths are measured on the surface half a voxel outside the outermost voxel centres, as marching cubes places it
(Lorensen and Cline, SIGGRAPH 1987) and as radiomics measures: one voxel of 1 mm is 1 mm long.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import ConvexHull

Points = NDArray[np.float64]

_MM3_PER_ML = 1000.0
_ROWS_AT_ONCE = 512  # points compared with all others per step


@dataclass(frozen=True)
class SegmentMeasurements:
    """Measurements of one class in one case.

    Attributes:
        value: label value.
        name: of the class.
        voxels: number of voxels, or pixels of a flat image.
        pieces: number of components, with corner connectivity.
        volume_ml: in millilitres; None for a flat image.
        area_mm2: of a flat image with known pixel size.
        longest_mm: longest diameter of one piece within one axial plane (RECIST 1.1: Eisenhauer et al., European
            Journal of Cancer 2009): the voxel plane closest to axial. In the plane of a flat image.
        short_mm: width of that piece in the plane, perpendicular to the longest diameter.
        longest_3d_mm: longest diameter of one piece in any direction (Feret); None for a flat image.
        plane: index of that plane along the through-plane axis; None for a flat image.
        ends: ends of the longest diameter, in mm RAS+, or along the axes of a flat image.
        calibrated: lengths and areas are in mm; else in pixels under the same names, and files must not say mm.
    """

    value: int
    name: str
    voxels: int
    pieces: int
    volume_ml: float | None = None
    area_mm2: float | None = None
    longest_mm: float | None = None
    short_mm: float | None = None
    longest_3d_mm: float | None = None
    plane: int | None = None
    ends: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    calibrated: bool = True

    def figures(self) -> dict[str, Any]:
        """Return known values by name; uncalibrated lengths end in ``_px``."""
        known = {name: value for name, value in asdict(self).items() if value is not None and name != "calibrated"}
        if self.calibrated:
            return known
        return {name.replace("_mm2", "_px").replace("_mm", "_px"): value for name, value in known.items()}


def measure(
    labels: NDArray[Any], affine: NDArray[np.float64], classes: Mapping[int, str], calibrated: bool = True
) -> list[SegmentMeasurements]:
    """Measure each class; absent classes have no length.

    Args:
        labels: integer label values, (x, y[, z]).
        affine: (4, 4), from voxels to RAS+ in mm; of a flat image its pixel sizes.
        classes: label value -> name, without background.
        calibrated: the affine is in mm; false: a flat image of unknown pixel size.
    """
    boxes = ndimage.find_objects(labels, max(classes))
    found = []
    for value, name in classes.items():
        box = boxes[value - 1]
        if box is None:
            volume, area = (0.0, None) if labels.ndim == 3 else (None, 0.0)
            found.append(
                SegmentMeasurements(
                    value, name, voxels=0, pieces=0, volume_ml=volume, area_mm2=area, calibrated=calibrated
                )
            )
        else:
            found.append(_measure(value, name, labels[box] == value, [s.start for s in box], affine, calibrated))
    return found


def _measure(
    value: int, name: str, mask: NDArray[np.bool_], corner: list[int], affine: NDArray[np.float64], calibrated: bool
) -> SegmentMeasurements:
    """Measure one class.

    Args:
        value: label value.
        name: class name.
        mask: bounding box of the class.
        corner: first voxel of the box.
        affine: of the whole image.
        calibrated: see ``measure``.
    """
    dimensions = mask.ndim
    pieces, count = ndimage.label(mask, np.ones([3] * dimensions))
    voxels = int(mask.sum())
    axis = _through_plane(affine) if dimensions == 3 else None
    across = [n for n in range(dimensions) if n != axis]
    longest = _longest_in_plane(mask, axis, affine[:3, across])
    size = abs(float(np.linalg.det(affine[:dimensions, :dimensions]))) * voxels
    ends = None
    if longest:
        places = np.zeros((2, 3))
        places[:, across] = longest.ends
        if axis is not None:
            places[:, axis] = longest.plane
        places[:, :dimensions] += corner
        world = places @ affine[:3, :3].T + affine[:3, 3]
        ends = (tuple(world[0, :dimensions].tolist()), tuple(world[1, :dimensions].tolist()))
    return SegmentMeasurements(
        value,
        name,
        voxels=voxels,
        pieces=int(count),
        volume_ml=size / _MM3_PER_ML if dimensions == 3 else None,
        area_mm2=size if dimensions == 2 else None,
        longest_mm=longest.length if longest else None,
        short_mm=longest.width if longest else None,
        longest_3d_mm=_longest(pieces, affine[:3, :3]) if dimensions == 3 else None,
        plane=None if longest is None or axis is None else longest.plane + corner[axis],
        ends=ends,
        calibrated=calibrated,
    )


@dataclass(frozen=True)
class _InPlane:
    """The longest in-plane diameter: length, width, plane index, end voxels."""

    length: float
    width: float
    plane: int
    ends: Points


def _through_plane(affine: NDArray[np.float64]) -> int:
    """Return the voxel axis closest to the body's long axis."""
    turn = io_orientation(affine)
    axes = np.flatnonzero(turn[:, 0] == 2)
    return int(axes[0]) if len(axes) else 2


def _longest_in_plane(mask: NDArray[np.bool_], axis: int | None, sides: NDArray[np.float64]) -> _InPlane | None:
    """Return the longest in-plane diameter of any piece.

    Args:
        mask: of a class.
        axis: across the planes; None: a flat image.
        sides: (3, 2), the vectors in mm along the axes of a plane.
    """
    to_plane = np.linalg.qr(sides)[1]  # from steps along two axes to mm at right angles in their plane
    structure = np.ones([3] * mask.ndim)
    if axis is not None:
        structure[tuple(slice(None) if n != axis else [0, 2] for n in range(3))] = 0  # no link between planes
    regions, _ = ndimage.label(mask, structure)
    boxes = ndimage.find_objects(regions)
    across = [n for n in range(mask.ndim) if n != axis]
    spans = np.array([[box[n].stop - box[n].start for n in across] for box in boxes], np.float64)
    limits = _diagonals(spans, to_plane)
    best: _InPlane | None = None
    for index in np.argsort(-limits):
        if best and limits[index] <= best.length:
            break
        box = boxes[index]
        region = (regions[box] == index + 1).any(axis=axis) if axis is not None else regions[box] == index + 1
        points = _outermost(region) + [box[n].start for n in across]
        hull = points[ConvexHull(points @ to_plane.T).vertices]
        flat = hull @ to_plane.T
        length, one, two = _farthest(flat)
        if best is None or length > best.length:
            along = (flat[two] - flat[one]) / length
            width = float(np.ptp(flat @ np.array([-along[1], along[0]])))
            best = _InPlane(length, width, 0 if axis is None else box[axis].start, hull[[one, two]])
    return best


def _diagonals(spans: NDArray[np.float64], sides: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return box diagonals in mm, an upper bound, (box,).

    Args:
        spans: (box, axis), in voxels.
        sides: (mm, axis), the vectors along the axes.
    """
    corners = np.array(list(itertools.product((-1, 1), repeat=spans.shape[1])))
    lengths: NDArray[np.float64] = np.linalg.norm((spans[:, None] * corners) @ sides.T, axis=-1).max(axis=1)
    return lengths


def _longest(pieces: NDArray[np.int32], sides: NDArray[np.float64]) -> float:
    """Return the longest 3D diameter of any piece, in mm.

    Args:
        pieces: number of the piece of each voxel, (x, y, z).
        sides: (3, 3), the vectors in mm along the axes.
    """
    boxes = ndimage.find_objects(pieces)
    spans = np.array([[part.stop - part.start for part in box] for box in boxes], np.float64)
    limits = _diagonals(spans, sides)
    best = 0.0
    for index in np.argsort(-limits):
        if limits[index] <= best:
            break
        points = _outermost(pieces[boxes[index]] == index + 1) @ sides.T
        best = max(best, _farthest(points[ConvexHull(points).vertices])[0])
    return best


def _outermost(mask: NDArray[np.bool_]) -> Points:
    """Return surface points that contain the convex hull's corners.

    In voxels, (point, axis).
    """
    axis = int(np.argmax(mask.shape))
    lines = np.moveaxis(mask, axis, -1)
    nonempty = np.argwhere(lines.any(axis=-1))
    kept = lines[tuple(nonempty.T)]
    ends = (kept.argmax(axis=-1), kept.shape[-1] - 1 - kept[:, ::-1].argmax(axis=-1))
    centres = np.concatenate([np.insert(nonempty, axis, end, axis=1) for end in ends]).astype(np.float64)
    steps = 0.5 * np.concatenate([np.eye(mask.ndim), -np.eye(mask.ndim)])
    points: Points = (centres[:, None] + steps[None]).reshape(-1, mask.ndim)
    return points


def _farthest(points: Points) -> tuple[float, int, int]:
    """Return the largest distance between two points, and their indices."""
    best = (-1.0, 0, 0)
    for begun in range(0, len(points), _ROWS_AT_ONCE):
        apart = ((points[begun : begun + _ROWS_AT_ONCE, None] - points[None]) ** 2).sum(axis=-1)
        one, two = np.unravel_index(int(apart.argmax()), apart.shape)
        if apart[one, two] > best[0]:
            best = float(apart[one, two]), int(one) + begun, int(two)
    return math.sqrt(best[0]), best[1], best[2]
