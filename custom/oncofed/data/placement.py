"""Measure how well labels lie on their images.

A mask that was mirrored, turned or shifted fits better elsewhere.

An image changes more across the border of a drawn structure than across the same line elsewhere. So the contrast is
measured across the border, and again with the whole mask mirrored along each axis, turned, and shifted. This needs no
model and no intensity threshold, and some thousand places along the border serve as well as all voxels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray
from scipy import ndimage

from oncofed.data import case_facts
from oncofed.data.case import Case
from oncofed.data.images import LoadedImage

Points = NDArray[np.float32]

# Ends of a volume's axes in right, anterior, superior order, and of a flat image's axes.
ENDS = (("left", "right"), ("back", "front"), ("feet", "head"))
FLAT_ENDS = (("left", "right"), ("top", "bottom"))
MIRRORED = ("left to right", "front to back", "head to feet")
FLAT_MIRRORED = ("left to right", "upside down")
# Trial shifts of a mask, as shares of the image's side, and the least shift in voxels.
_SHIFTS = (0.06, 0.12)
_LEAST_SHIFT = 2
# Distances along the normal at which the image is sampled on either side of a border, in voxels.
_OUTSIDE, _INSIDE = (1.0, 2.0), (0.0, -1.0)
_MOST_CLASSES = 12
_MOST_BORDER = 3000
_MOST_INNER = 2000
_COARSE = 64
CELLS = 12


@dataclass(frozen=True)
class Placement:
    """Measures of a label's placement.

    Axes point right, anterior, superior, or right, down.

    Attributes:
        name: of the case.
        problem: why its files cannot be compared; the other fields are empty then.
        fit: description of a move -> logarithm of the contrast along the mask's border, over that of the moved border;
            below 0 the moved mask fits better.
        outside: share of the mask in the surroundings of body or specimen; None if there are none.
        pieces: connected components of the mask; None where objects are numbered.
        cut: share of the mask's border that lies on the image's edge.
        centre: of the mask, each axis from 0 to 1.
        centres: label value -> centre.
        place: share of the mask in each of ``CELLS`` parts along each axis.
    """

    name: str
    problem: str = ""
    fit: dict[str, float] = field(default_factory=dict)
    outside: float | None = None
    pieces: int | None = None
    cut: float = 0.0
    centre: tuple[float, ...] = ()
    centres: dict[int, tuple[float, ...]] = field(default_factory=dict)
    place: NDArray[np.float32] | None = None


def measure_placement(case: Case) -> Placement:
    """Measure the placement of a case's label.

    A case that cannot be read gets a ``problem``.
    """
    try:
        image, label = case.read(numbered=case.instances)
        if label.shape != image.shape:
            what = f"its label has shape {label.shape}, expected the image's {image.shape}"
            return Placement(case.name, problem=what)
        return place(case.name, image, label, case.instances)
    except Exception as error:  # noqa: BLE001 - readers raise any type of error for a malformed file
        return Placement(case.name, problem=case_facts.reason_of(error))


def place(name: str, image: LoadedImage, label: LoadedImage, instances: bool = False, seed: int = 0) -> Placement:
    """Measure where a label lies on its image.

    Args:
        name: of the case.
        image: (x, y[, z], channel).
        label: the same, of one channel.
        instances: the label numbers objects, all of one class.
        seed: of the sampled places.
    """
    rng = np.random.default_rng(seed)
    values, mask = upright(image.values, image.affine), upright(label.values, image.affine)[..., 0]
    mask = (mask != 0).astype(np.uint8) if instances else mask.astype(np.int32, copy=False)
    if mask.max() <= 0:
        return Placement(name, problem="its label is empty: no voxel of any class. Leave it out, or export it anew")
    boxes, sides = ndimage.find_objects(mask), np.array(mask.shape)
    numbers, counts = np.unique(mask[mask > 0], return_counts=True)
    largest = numbers[np.argsort(-counts, kind="stable")][:_MOST_CLASSES]
    borders, centres = [], {}
    for value in (int(v) for v in largest):
        inner, points, normals = _outline(mask, value, boxes[value - 1], rng)
        centres[value] = tuple(float(c) for c in (inner.mean(axis=0) + 0.5) / sides)
        borders.append((points, normals))
    points, normals = (np.concatenate(parts) for parts in zip(*borders, strict=True))
    chosen = _drawn(np.flatnonzero(mask > 0), _MOST_INNER, rng)
    inner = np.stack(np.unravel_index(chosen, mask.shape), axis=-1)
    on_edge = ((points == 0) | (points == sides - 1)) & (sides > 1)
    return Placement(
        name,
        fit=_fit(values, points, normals, mask.shape),
        outside=_outside(values, inner),
        pieces=None if instances else int(ndimage.label(mask[_around([box for box in boxes if box])] > 0)[1]),
        cut=float(on_edge.any(axis=1).mean()),
        centre=tuple(float(c) for c in (inner.mean(axis=0) + 0.5) / sides),
        centres=centres,
        place=_cells(inner, mask.shape),
    )


def upright(values: NDArray[Any], affine: NDArray[np.float64]) -> NDArray[Any]:
    """Return (x, y, z, channel) with axes right, anterior, superior.

    A flat image as it is.
    """
    if values.ndim < 4:
        return values
    turn = io_orientation(affine)
    return np.asarray(apply_orientation(values, turn)) if np.isfinite(turn).all() else values


def is_oblique(affine: NDArray[np.float64], degrees: float = 10.0) -> bool:
    """Return whether a volume's axes are oblique."""
    return bool(nib.affines.obliquity(affine).max() > np.deg2rad(degrees))


def _outline(
    mask: NDArray[Any], value: int, where: tuple[slice, ...], rng: np.random.Generator
) -> tuple[NDArray[np.int64], Points, Points]:
    """Return a class's inner places, border and normals.

    The normals point outwards.
    """
    crop = mask[where] == value
    corner = np.array([part.start for part in where])
    inner = _drawn(np.flatnonzero(crop), _MOST_INNER, rng)
    rim = _drawn(np.flatnonzero(crop & ~ndimage.binary_erosion(crop)), _MOST_BORDER, rng)
    points = np.stack(np.unravel_index(rim, crop.shape), axis=-1)
    padded = np.pad(crop, 2)
    normals = np.zeros(points.shape, np.float32)
    for offset in itertools.product(range(-2, 3), repeat=crop.ndim):
        neighbours = padded[tuple((points + 2 + np.array(offset)).T)]
        normals -= neighbours[:, None] * np.array(offset, np.float32)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-6)
    inside = np.stack(np.unravel_index(inner, crop.shape), axis=-1)
    return inside + corner, (points + corner).astype(np.float32), normals


def _drawn(numbers: NDArray[np.int64], most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    return numbers if len(numbers) <= most else rng.choice(numbers, most, replace=False)


def _around(found: Sequence[tuple[slice, ...]]) -> tuple[slice, ...]:
    axes = range(len(found[0]))
    return tuple(slice(min(f[n].start for f in found), max(f[n].stop for f in found)) for n in axes)


def _fit(values: NDArray[Any], points: Points, normals: Points, shape: Sequence[int]) -> dict[str, float]:
    moves = [("", points, normals), *_moves(points, normals, shape)]
    contrast = np.zeros(len(moves))
    for channel in range(values.shape[-1]):
        steps = np.stack([_steps(values[..., channel], at, towards) for _, at, towards in moves])
        # Large steps are damped: a few along the lungs or the skull would outweigh all others.
        typical = float(np.median(steps)) or float(steps.mean())
        contrast += (steps / (steps + typical)).mean(axis=1) if typical else 0.0
    if contrast.max() <= 0:
        return {}
    # On a plain background nothing changes at the border, and any place with contrast would fit better.
    own = max(contrast[0], contrast.max() * 1e-3)
    fits = np.log(own / np.maximum(contrast[1:], own * 1e-3))
    return {words: float(fit) for (words, _, _), fit in zip(moves[1:], fits, strict=True)}


def _steps(plane: NDArray[Any], points: Points, normals: Points) -> NDArray[np.float32]:
    """Return the image's change across a border, by place."""
    outer, inner = (
        sum(_sampled(plane, points + normals * step) for step in steps) / len(steps) for steps in (_OUTSIDE, _INSIDE)
    )
    return np.abs(outer - inner)


def _sampled(plane: NDArray[Any], points: Points) -> NDArray[np.float32]:
    return np.asarray(ndimage.map_coordinates(plane, points.T, np.float32, order=1, mode="nearest"))


def _moves(points: Points, normals: Points, shape: Sequence[int]) -> Iterator[tuple[str, Points, Points]]:
    """Yield moves of a mask: description, border, normals."""
    axes, last = len(shape), np.array(shape, np.float32) - 1
    mirrored, ends = (MIRRORED, ENDS) if axes == 3 else (FLAT_MIRRORED, FLAT_ENDS)
    swap = [1, 0, *range(2, axes)]
    for turned in (False, True) if shape[0] == shape[1] else (False,):
        for chosen in itertools.product((False, True), repeat=axes):
            if not any(chosen) and not turned:
                continue
            at, towards = (points[:, swap], normals[:, swap]) if turned else (points, normals)
            words = " and ".join(w for w, is_chosen in zip(mirrored, chosen, strict=True) if is_chosen)
            how = f"mirrored {words}" if words else ""
            how = f"{how}, rows for columns".lstrip(", ") if turned else how
            yield how, np.where(chosen, last - at, at), np.where(chosen, -towards, towards)
    for axis, share, sign in itertools.product(range(axes), _SHIFTS, (-1, 1)):
        step = max(_LEAST_SHIFT, round(share * shape[axis]))
        if step >= shape[axis] // 2:
            continue
        offset = np.zeros(axes, np.float32)
        offset[axis] = sign * step
        yield f"shifted by {share:.0%} of the image to the {ends[axis][sign > 0]}", points + offset, normals


def _outside(values: NDArray[Any], inner: NDArray[np.int64]) -> float | None:
    """Return the share of a mask in the background.

    The background is uniform, and reaches the sides of the image.
    """
    steps = [max(1, n // _COARSE) for n in values.shape[:-1]]
    grey = values[tuple(slice(None, None, step) for step in steps)].mean(axis=-1, dtype=np.float32)
    threshold = _otsu(grey)
    faces = np.zeros(grey.shape, bool)
    for axis in range(2):  # the body may reach a scan's ends, not its sides
        faces[(slice(None),) * axis + ([0, -1],)] = True
    dark = float((grey[faces] <= threshold).mean())
    if 0.2 < dark < 0.8:
        return None
    pieces, _ = ndimage.label((grey <= threshold) == (dark > 0.5))
    reaching = np.unique(pieces[faces])
    around = np.isin(pieces, reaching[reaching > 0])
    at = np.minimum(inner // np.array(steps), np.array(grey.shape) - 1)
    return float(around[tuple(at.T)].mean())


def _otsu(values: NDArray[np.float32]) -> float:
    """Return Otsu's threshold between extreme values.

    IEEE Transactions on Systems, Man, and Cybernetics 1979.
    """
    low, high = (float(v) for v in np.percentile(values, (0.5, 99.5)))
    if high <= low:
        return low
    counts, edges = np.histogram(values.clip(low, high), bins=128)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(edges[1 + int(np.nanargmax(between))]) if np.isfinite(between).any() else low


def _cells(inner: NDArray[np.int64], shape: Sequence[int]) -> NDArray[np.float32]:
    bins = [CELLS] * len(shape)
    counts, _ = np.histogramdd((inner + 0.5) / np.array(shape), bins, [(0, 1)] * len(shape))
    share: NDArray[np.float32] = (counts / max(len(inner), 1)).astype(np.float32)
    return share
