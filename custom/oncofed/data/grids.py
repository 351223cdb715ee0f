"""Resample between aligned grids, one axis at a time.

MONAI's ``SpatialResample`` looks up eight neighbours of each voxel for each channel, in float64 by default; values here
are the same within float32's rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import AFFINE_TOL
from monai.transforms import SpatialResample
from numpy.typing import NDArray
from torch import Tensor

# Places of two grids nearer than this, in voxels, are the same: affines are stored in float32.
_NEAR = 1e-4
# Voxels smaller than this, in mm, come from microscopes.
_SMALL = 0.1

Affine = NDArray[np.float64]


@dataclass(frozen=True)
class Axis:
    """How an axis maps to an axis of another grid.

    The two point the same or opposite way.

    Attributes:
        target: number of the axis in the other grid.
        below: the place at or before each place of the other grid, (n,) int64; outside, the nearest.
        above: the place at or after each, (n,) int64.
        share: of the place above, (n,) float32; None where every place of the other grid is one of this grid's.
        turned: the other grid has the same places, last to first.
        same: it has the same places.
    """

    target: int
    below: Tensor
    above: Tensor
    share: Tensor | None
    turned: bool
    same: bool

    def to(self, device: torch.device) -> Axis:
        """Return the same on a device."""
        share = None if self.share is None else self.share.to(device)
        return Axis(
            target=self.target,
            below=self.below.to(device),
            above=self.above.to(device),
            share=share,
            turned=self.turned,
            same=self.same,
        )

    def of(self, values: Tensor, dim: int, part: slice = slice(None), begun: int = 0) -> Tensor:
        """Return values interpolated along one axis.

        Args:
            values: on this grid along ``dim``.
            dim: number of the axis in ``values``.
            part: of the other grid's places.
            begun: number of the first place in ``values``.
        """
        if part == slice(None) and self.same:
            return values
        if part == slice(None) and self.turned:
            return values.flip(dim)
        low = _taken(values, dim, self.below[part] - begun)
        if self.share is None:
            return low
        shape = [1] * values.ndim
        shape[dim] = -1
        return low.lerp_(_taken(values, dim, self.above[part] - begun), self.share[part].view(shape))


def transfer(source: Affine, target: Affine, dimensions: int) -> Affine:
    """Return the index matrix between two grids.

    (dimensions + 1, dimensions + 1).

    Args:
        source: affine of the grid whose indices result, (4, 4) from voxels to mm.
        target: affine of the grid whose indices are given.
        dimensions: 2 or 3.
    """
    one, other = (_of_axes(affine, dimensions) for affine in (source, target))
    return np.asarray(np.linalg.solve(one, other))


def is_same(source: Affine, target: Affine, dimensions: int) -> bool:
    """Return whether MONAI takes two affines for equal.

    Its tolerance is for units in which voxels are about 1.
    """
    one, other = (_of_axes(affine, dimensions) for affine in (source, target))
    matrix = transfer(source, target, dimensions)
    near = AFFINE_TOL / in_larger_units(source)
    return bool(np.allclose(one, other, atol=near) or np.allclose(matrix, np.eye(len(matrix)), atol=AFFINE_TOL))


def in_larger_units(affine: Affine) -> float:
    """Return the factor that brings affines to MONAI's scale.

    Its tolerance is for voxels of about 1 mm.
    """
    smallest = float(np.linalg.norm(np.asarray(affine, np.float64)[:3, :3], axis=0).min())
    return 1.0 if smallest >= _SMALL else 1 / smallest


def align(source: Affine, shape: Sequence[int], target: Affine, target_shape: Sequence[int]) -> list[Axis] | None:
    """Return the axis mappings between grids; None where axes disagree.

    Args:
        source: affine of the grid with values, (4, 4) from voxels to mm.
        shape: of the source grid.
        target: affine of the target grid.
        target_shape: of the target grid.
    """
    dimensions = len(shape)
    if tuple(shape) == tuple(target_shape) and is_same(source, target, dimensions):
        return [_axis(n, np.arange(side, dtype=np.float64), side) for n, side in enumerate(shape)]
    matrix = transfer(source, target, dimensions)
    # Distance along each source axis for the full length of each target axis.
    reach = np.abs(matrix[:-1, :-1]) * np.maximum(np.array(target_shape) - 1, 1)
    order = [int(n) for n in reach.argmax(axis=1)]
    rest = reach.copy()
    rest[range(dimensions), order] = 0
    if sorted(order) != list(range(dimensions)) or rest.sum(axis=1).max() > _NEAR:
        return None
    return [
        _axis(other, matrix[n, other] * np.arange(target_shape[other]) + matrix[n, -1], shape[n])
        for n, other in enumerate(order)
    ]


def resampled(values: Tensor, source: Affine, target: Affine, shape: Sequence[int]) -> Tensor:
    """Return values of one grid on another, float32.

    (channel, x, y[, z]); outside, the value of the nearest edge.

    Args:
        values: float32.
        source: affine of their grid, (4, 4).
        target: affine of the other grid.
        shape: of the other grid.
    """
    axes = align(source, values.shape[1:], target, shape)
    if axes is None:
        resample = SpatialResample(mode="bilinear", padding_mode="border", dtype=torch.float32)
        scale = np.diag([*[in_larger_units(source)] * 3, 1.0])
        placed = MetaTensor(values, affine=torch.from_numpy(scale @ source))
        moved = resample(placed, dst_affine=torch.from_numpy(scale @ target), spatial_size=list(shape))
        result: Tensor = moved.as_tensor()
        return result
    axes = [axis.to(values.device) for axis in axes]
    # The axis that shrinks most goes first, to leave less work for the others.
    for n in sorted(range(len(axes)), key=lambda n: len(axes[n].below) / values.shape[1 + n]):
        values = axes[n].of(values, 1 + n)
    return values.permute(0, *(1 + int(n) for n in np.argsort([axis.target for axis in axes]))).contiguous()


def _of_axes(affine: Affine, dimensions: int) -> Affine:
    """Return an affine's part for the first axes."""
    kept = [*range(dimensions), -1]
    return np.asarray(affine, np.float64)[np.ix_(kept, kept)]


def _axis(target: int, places: NDArray[np.float64], length: int) -> Axis:
    nearest = np.round(places)
    if np.abs(places - nearest).max() < _NEAR:
        places = nearest
    places = np.clip(places, 0, length - 1)
    below = np.floor(places).astype(np.int64)
    share = (places - below).astype(np.float32)
    above = np.minimum(below + (share > 0), length - 1)
    every = np.arange(length)
    return Axis(
        target=target,
        below=torch.from_numpy(below),
        above=torch.from_numpy(above),
        share=torch.from_numpy(share) if share.any() else None,
        turned=not share.any() and np.array_equal(below, every[::-1]),
        same=not share.any() and np.array_equal(below, every),
    )


def _taken(values: Tensor, dim: int, places: Tensor) -> Tensor:
    # On a CPU, indexing is three times as fast along the last axis, index_select along the others.
    return values[..., places] if dim == values.ndim - 1 else values.index_select(dim, places)
