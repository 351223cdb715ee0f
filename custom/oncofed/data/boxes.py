"""Boxes around objects: as a dataset states them, of a mask, and on another grid.

A box is given by its low and its high corner along the stored axes of an image, in voxels from the image's edge: the
first voxel reaches from 0 to 1. Several boxes are one array (box, 2 * axes), the low corners first, as MONAI's
``CornerCornerModeTypeA`` has them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy import ndimage

Corners = NDArray[np.float64]

# Decimals of a voxel to which boxes are written.
_DECIMALS = 3
# An image holds no more objects than this; numbers of objects are 16 bits.
MOST_OBJECTS = 30_000


class Box(BaseModel):
    """One object of a case, as a dataset states it."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    low: tuple[float, ...] = Field(description="corner along each stored axis, in voxels from the image's edge")
    high: tuple[float, ...] = Field(description="the opposite corner")
    label: int = Field(1, description="label value of the object's class")


@dataclass(frozen=True)
class Boxes:
    """The objects of an image.

    Attributes:
        corners: (box, 2 * axes), in voxels of the image's file.
        labels: label value of each one's class in the job, (box,).
    """

    corners: Corners
    labels: NDArray[np.int64]


def stated(boxes: Sequence[Box], values: Mapping[int, int] | None, axes: int) -> Boxes:
    """Return boxes that a dataset states.

    Args:
        boxes: of one case.
        values: the dataset's label value -> the job's, 0 for what the job leaves out; None: the same.
        axes: of the image.
    """
    labels = [box.label if values is None else values.get(box.label, 0) for box in boxes]
    kept = [(box, label) for box, label in zip(boxes, labels, strict=True) if label]
    corners = np.array([[*box.low, *box.high] for box, _ in kept], np.float64).reshape(-1, 2 * axes)
    return Boxes(corners, np.array([label for _, label in kept], np.int64))


def of_mask(mask: NDArray[Any], labels: Collection[int], numbered: bool) -> Boxes:
    """Return the box of each object of a mask.

    Args:
        mask: (x, y[, z]), the class of each voxel; objects are its connected components.
        labels: of the classes.
        numbered: the mask holds a number for each object instead, all of the first of the classes.
    """
    corners, found = [], []
    for label in sorted(labels)[:1] if numbered else sorted(labels):
        numbers = mask.astype(np.int64) if numbered else ndimage.label(mask == label)[0]
        for place in ndimage.find_objects(numbers):
            if place is not None:
                corners.append([*(part.start for part in place), *(part.stop for part in place)])
                found.append(label)
    return Boxes(np.array(corners, np.float64).reshape(-1, 2 * mask.ndim), np.array(found, np.int64))


def fault(boxes: Sequence[Box], shape: Sequence[int], labels: Collection[int]) -> str:
    """Return why a case's boxes cannot be used; empty where they can.

    Args:
        boxes: of the case.
        shape: of its image.
        labels: label values that are known.
    """
    if len(boxes) > MOST_OBJECTS:
        return f"it has {len(boxes)} boxes, expected at most {MOST_OBJECTS}"
    for number, box in enumerate(boxes, start=1):
        what = f"its box {number} from {_written(box.low)} to {_written(box.high)}"
        if len(box.low) != len(shape) or len(box.high) != len(shape):
            return f"{what} has not {len(shape)} numbers a corner: expected one for each axis of the image"
        if not all(low < high for low, high in zip(box.low, box.high, strict=True)):
            return f"{what} is empty, or not finite: expected the low corner first"
        centre = [(low + high) / 2 for low, high in zip(box.low, box.high, strict=True)]
        if not all(0 <= at <= side for at, side in zip(centre, shape, strict=True)):
            return (
                f"{what} lies outside the image of {'x'.join(map(str, shape))} voxels: see in which coordinates the "
                "boxes were given"
            )
        if box.label not in labels:
            return f"its box {number} is of the label {box.label}, expected one of {sorted(labels)}"
    return _twice(boxes)


def _twice(boxes: Sequence[Box]) -> str:
    """Return which box is stated twice: of two objects in one place only one could be learned."""
    first: dict[tuple[tuple[float, ...], tuple[float, ...]], int] = {}
    for number, box in enumerate(boxes, start=1):
        other = first.setdefault((box.low, box.high), number)
        if other != number:
            return f"its boxes {other} and {number} are the same, expected one for each object: leave one of them out"
    return ""


def moved(corners: Corners, matrix: NDArray[np.float64]) -> Corners:
    """Return boxes on another grid: those that just enclose them.

    Args:
        corners: (box, 2 * axes).
        matrix: from indices of this grid to those of the other, (axes + 1, axes + 1); see ``grids.transfer``.
    """
    axes = corners.shape[1] // 2
    # Indices are of the voxels' centres.
    ends = corners.reshape(-1, 2, axes) - 0.5
    choices = np.array(np.meshgrid(*[[0, 1]] * axes, indexing="ij")).reshape(axes, -1)
    points = ends[:, choices, np.arange(axes)[:, None]]  # (box, axis, corner)
    there = np.einsum("ij,bjc->bic", matrix[:-1, :-1], points) + matrix[:-1, -1:]
    return np.concatenate([there.min(axis=2), there.max(axis=2)], axis=1) + 0.5


def apart(
    corners: Corners, scores: NDArray[np.float64], labels: NDArray[np.int64], overlap: float
) -> NDArray[np.int64]:
    """Return the numbers of boxes that overlap no likelier one of their class, the likeliest first.

    Non-maximum suppression. Only boxes that touch are compared: there may be many.

    Args:
        corners: (box, 4), of a flat image.
        scores: of each.
        labels: of each.
        overlap: greatest IoU of two that are kept.
    """
    import shapely  # noqa: PLC0415 - of the extra pathology

    shapes = shapely.box(*corners.T)
    one, other = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    pairs = (one != other) & (labels[one] == labels[other])
    order = np.argsort(one[pairs], kind="stable")
    one, other = one[pairs][order], other[pairs][order]
    low, high = np.maximum(corners[one, :2], corners[other, :2]), np.minimum(corners[one, 2:], corners[other, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    areas = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    same = shared > overlap * (areas[one] + areas[other] - shared)
    one, other = one[same], other[same]
    ends = np.searchsorted(one, np.arange(len(corners) + 1))
    kept, dropped = [], np.zeros(len(corners), bool)
    for number in np.argsort(-scores, kind="stable").tolist():
        if not dropped[number]:
            kept.append(number)
            dropped[other[ends[number] : ends[number + 1]]] = True
    return np.array(kept, np.int64)


def painted(corners: Corners, shape: Sequence[int]) -> NDArray[np.int16]:
    """Return a map of the ellipsoids inscribed in boxes, by number from 1 on.

    Small ones lie above large ones; each has a voxel at least if its centre is in the image.

    Args:
        corners: (box, 2 * axes).
        shape: of the map.
    """
    found = np.zeros(tuple(shape), np.int16)
    axes = len(shape)
    low, high = corners[:, :axes], corners[:, axes:]
    for number in np.argsort(-np.prod(high - low, axis=1), kind="stable"):
        centre, half = (low[number] + high[number]) / 2, (high[number] - low[number]) / 2
        first = np.clip(np.floor(low[number]), 0, shape).astype(int)
        stop = np.clip(np.ceil(high[number]), 0, shape).astype(int)
        place = tuple(slice(begin, end) for begin, end in zip(first, stop, strict=True))
        away = np.meshgrid(
            *(
                ((np.arange(begin, end) + 0.5 - at) / size) ** 2
                for begin, end, at, size in zip(first, stop, centre, half, strict=True)
            ),
            indexing="ij",
            sparse=True,
        )
        inside = sum(away) <= 1
        found[place][inside] = number + 1
        if (centre >= 0).all() and (centre < shape).all():
            found[tuple(centre.astype(int))] = number + 1
    return found


def filled(corners: Corners, labels: NDArray[np.int64], shape: Sequence[int]) -> NDArray[np.uint8]:
    """Return a map of boxes, each filled with its label value.

    Args:
        corners: (box, 2 * axes).
        labels: of each.
        shape: of the map.
    """
    found = np.zeros(tuple(shape), np.uint8)
    for row, label in zip(np.rint(corners).astype(int), labels, strict=True):
        low, high = np.clip(row.reshape(2, -1), 0, shape)
        found[tuple(slice(begin, end) for begin, end in zip(low, high, strict=True))] = label
    return found


def rounded(corners: Corners) -> list[Box]:
    """Return boxes as a dataset states them, all of label 1."""
    axes = corners.shape[1] // 2
    return [Box(low=tuple(row[:axes]), high=tuple(row[axes:])) for row in np.round(corners, _DECIMALS).tolist()]


def _written(corner: Sequence[float]) -> str:
    return f"({', '.join(f'{at:g}' for at in corner)})"
