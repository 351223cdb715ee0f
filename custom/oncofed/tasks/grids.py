"""Resampling of planes to the label file's grid.

Planes come from the working grid as soon as they are finished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from oncofed.data.grids import Affine, Axis, align, transfer
from oncofed.tasks.windows import Planes

# Values of the file's grid per step, or voxels per step if axes are oblique.
_VALUES_AT_ONCE, _VALUES_AT_ONCE_GPU = 1 << 20, 1 << 25

Decide = Callable[[Tensor], Tensor]


class FileGrid:
    """A label file's grid, seen from the working grid.

    Args:
        image: affine of the working grid, (4, 4).
        image_shape: of the working grid.
        label: affine of the file's grid.
        label_shape: of the file's grid.
        axis: of the working grid along which planes come.

    Attributes:
        whole: each of the file's voxels is one of the working grid's, without interpolation.
    """

    def __init__(
        self, image: Affine, image_shape: Sequence[int], label: Affine, label_shape: Sequence[int], axis: int
    ) -> None:
        self._first = [axis, *(n for n in range(len(image_shape)) if n != axis)]
        self._shape = tuple(image_shape[n] for n in self._first)
        self._matrix = transfer(image, label, len(image_shape))[[*self._first, -1]]
        axes = align(image, image_shape, label, label_shape)
        self._axes = [axes[n] for n in self._first] if axes else None
        self.whole = self._axes is not None and all(one.share is None for one in self._axes)

    def fill(self, planes: Iterable[Planes], into: Tensor, decide: Decide) -> None:
        """Decide voxel by voxel, and write to the file's grid.

        Args:
            planes: of the working grid, first to last; see ``Windows.slabs``.
            into: (out, x, y[, z]), contiguous, on the planes' device.
            decide: from (n, …) to (out, …).
        """
        if self._axes is None:
            flat = into.view(len(into), -1)
            for places, values in _oblique(planes, self._matrix, self._shape, into.shape[1:]):
                flat[:, places] = decide(values).to(into.dtype)
            return
        view = into.permute(0, *(1 + axis.target for axis in self._axes))
        if self.whole:
            planes = ((first, decide(values).to(into.dtype)) for first, values in planes)
        for part, values in _aligned(planes, self._axes, into.device):
            view[:, part] = values if self.whole else decide(values).to(into.dtype)


def _aligned(planes: Iterable[Planes], axes: Sequence[Axis], device: torch.device) -> Iterator[tuple[slice, Tensor]]:
    """Yield planes of the file's grid with their indices.

    Their axes are in the working grid's order.
    """
    needed = axes[0].above.numpy()
    along, *others = (axis.to(device) for axis in axes)
    downwards = len(needed) > 1 and needed[0] > needed[-1]
    upwards = needed[::-1] if downwards else needed
    across = int(np.prod([len(axis.below) for axis in others]))
    done, last = 0, None
    for first, values in planes:
        ready = int(np.searchsorted(upwards, first + values.shape[1]))
        held = values if last is None else torch.cat([last, values], 1)
        begun = first - (last is not None)
        limit = _VALUES_AT_ONCE_GPU if values.is_cuda else _VALUES_AT_ONCE
        step = max(1, limit // (len(values) * across))
        for low in range(done, ready, step):
            high = min(low + step, ready)
            part = slice(len(needed) - high, len(needed) - low) if downwards else slice(low, high)
            moved = along.of(held, 1, part, begun)
            for n, axis in enumerate(others):
                moved = axis.of(moved, 2 + n)
            yield part, moved
        done = ready
        # Needed to interpolate with the next planes; at whole positions nothing is interpolated.
        last = None if along.share is None else values[:, -1:].clone()


def _oblique(
    planes: Iterable[Planes], matrix: Affine, shape: Sequence[int], file_shape: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield voxels' flat indices and values for oblique axes."""
    last: Tensor | None = None
    for first, values in planes:
        held = values if last is None else torch.cat([last, values], 1)
        begun = first - (last is not None)
        stop = first + values.shape[1]
        # Voxels beyond the last plane but one need the next plane, unless there is none.
        reach = (begun, stop - 1 if stop < shape[0] else np.inf)
        for places, indices in _within(matrix, shape, file_shape, reach, values.device):
            indices[0] -= begun
            sizes = torch.tensor(held.shape[1:], device=values.device)[:, None]
            grid = (2 * indices / (sizes - 1).clamp_min(1) - 1).flip(0).T.float()
            grid = grid.view(1, *[1] * (len(shape) - 1), -1, len(shape))
            found = functional.grid_sample(held[None], grid, "bilinear", "border", align_corners=True)
            yield places, found.view(len(values), -1)
        last = values[:, -1:].clone()


def _within(
    matrix: Affine, shape: Sequence[int], file_shape: Sequence[int], reach: tuple[float, float], device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield indices and positions of voxels between two planes.

    Flat indices are of the file's grid, planes and positions of the working grid.
    """
    step = max(1, _VALUES_AT_ONCE // int(np.prod(file_shape[1:])))
    limits = torch.tensor(shape, device=device, dtype=torch.float64)[:, None] - 1
    turn = torch.from_numpy(matrix).to(device)
    across = torch.cartesian_prod(*(torch.arange(side, device=device) for side in file_shape[1:]))
    across = across.view(-1, len(file_shape) - 1).T.double()
    for low in range(0, file_shape[0], step):
        count = min(step, file_shape[0] - low)
        first = torch.arange(low, low + count, device=device, dtype=torch.float64)
        begins = turn[:-1, :1] * first + turn[:-1, -1:]
        there = turn[:-1, 1:-1] @ across
        depth = (begins[0, :, None] + there[0]).clamp(0, float(limits[0]))
        places = torch.nonzero(((depth >= reach[0]) & (depth < reach[1])).flatten()).flatten()
        if len(places):
            row, column = places // across.shape[1], places % across.shape[1]
            indices = torch.minimum((begins[:, row] + there[:, column]).clamp_min(0), limits)
            yield places + low * across.shape[1], indices
