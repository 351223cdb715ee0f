"""Surface Dice and Hausdorff distance by class or region.

The figures are those of MONAI's ``compute_surface_dice`` and ``compute_hausdorff_distance``. Here both come from the
same distances, each class is cropped to its box, and classes run in parallel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree

from oncofed.tasks.metrics import Metric
from oncofed.tasks.overlap import Labels, bounding_box

Mask = NDArray[np.bool_]

SURFACE_METRICS = (
    Metric("surface_dice", "surface Dice", per_class=True),
    Metric("hd95_mm", "95 % Hausdorff distance", per_class=True, unit="mm", bounds=(0.0, 100_000.0)),
)
# For a tree with a single query, larger leaves than scipy's default are faster.
_LEAF = 32


def surface_figures(
    prediction: Labels,
    reference: Labels,
    structures: Mapping[str, Sequence[int]],
    spacing: Sequence[float],
    tolerance: float,
) -> dict[str, float]:
    """Return surface Dice and hd95 in mm by name.

    Nikolov et al. (2018); the Hausdorff distance's 95th percentile.

    If a structure is in only one volume, its surface Dice is zero and its distance unknown; if it is in neither,
    surface Dice is NaN.

    Args:
        prediction: label values, (x, y[, z]).
        reference: label values, (x, y[, z]).
        structures: name -> its label values.
        spacing: size of a voxel along each axis in mm.
        tolerance: distance in mm that counts as equal.
    """

    def of(values: Sequence[int]) -> tuple[float, float | None]:
        return _one(_any(prediction, values), _any(reference, values), spacing, tolerance)

    with ThreadPoolExecutor(max(1, min(len(structures), torch.get_num_threads()))) as pool:
        found = list(pool.map(of, structures.values()))
    figures = {}
    for name, (share, distance) in zip(structures, found, strict=True):
        figures[f"surface_dice.{name}"] = share
        if distance is not None:
            figures[f"hd95_mm.{name}"] = distance
    return figures


def _any(labels: Labels, values: Sequence[int]) -> Mask:
    """Return where a volume holds any of some label values."""
    found: Mask = labels == values[0]
    for value in values[1:]:
        found |= labels == value
    return found


def _one(found: Mask, expected: Mask, spacing: Sequence[float], tolerance: float) -> tuple[float, float | None]:
    boxes = [bounding_box(found), bounding_box(expected)]
    if boxes[0] is None or boxes[1] is None:
        return (float("nan") if boxes[0] is boxes[1] else 0.0), None
    box = tuple(
        slice(min(one.start, other.start), max(one.stop, other.stop)) for one, other in zip(*boxes, strict=True)
    )
    edges = [_edges(mask[box]) * np.asarray(spacing) for mask in (found, expected)]
    distances = [_nearest(edges[0], edges[1]), _nearest(edges[1], edges[0])]
    near = sum(int((each <= tolerance).sum()) for each in distances)
    share = near / (len(edges[0]) + len(edges[1]))
    return share, max(float(torch.quantile(torch.from_numpy(each), 0.95)) for each in distances)


def _edges(mask: Mask) -> NDArray[np.float64]:
    """Return the indices (voxels, axes) of a mask's border."""
    return np.argwhere(mask & ~binary_erosion(mask)).astype(np.float64)


def _nearest(places: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return each point's distance to the nearest of others.

    In float32, as in MONAI.
    """
    return np.asarray(KDTree(others, leafsize=_LEAF).query(places)[0], np.float32)
