"""Random turns and sizes, sampled from images in one step.

A patch is read from the whole image at the places that its turned and scaled voxels have there. nnU-Net cuts a larger
patch, turns it, and cuts again: so neither invents anything at a patch's edge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional

# An image whose longest side has more voxels than this many times the shortest is turned in the plane of the others
# (nnU-Net's ANISO_THRESHOLD).
_ANISOTROPIC = 3.0
# A flat patch whose longer side has more pixels than this many times the shorter is turned by no more than the angle in
# radians: what fills a patch that lies hardly fills one that stands.
_ELONGATED, _SMALL_TURN = 1.5, math.pi / 12


@dataclass(frozen=True)
class Moves:
    """Random turns and sizes of samples.

    Attributes:
        rotate: (probability, largest angle in radians about each axis).
        scale: (probability, smallest and largest distance between the voxels that are read).
        plane: largest angle in radians in the plane of a flat image, or of a volume with few thick slices.
    """

    rotate: tuple[float, float]
    scale: tuple[float, float, float]
    plane: float

    def matrices(self, count: int, sides: Sequence[int], generator: Generator) -> tuple[Tensor, Tensor]:
        """Return which of some samples move, and how.

        Args:
            count: of the samples.
            sides: of a sample in voxels.
            generator: of the random numbers, on the CPU.

        Returns:
            Numbers of the samples that move, (n,) int64; their matrices from output to input in voxels, (n, axes, axes)
            float32, last axis first, as ``grid_sample`` has them.
        """
        turn, resize = (torch.rand(count, generator=generator) < p for p in (self.rotate[0], self.scale[0]))
        which = torch.nonzero(turn | resize).flatten()
        axes, thick = len(sides), thick_axis(sides)
        single = axes == 2 or thick is not None
        angles = _uniform(len(which), 1 if single else axes, -1, 1, generator)
        angles = angles * (_in_plane(self.plane, sides) if single else self.rotate[1])
        low, high = self.scale[1:]
        spread = _uniform(len(which), 1, low, high, generator).flatten()
        angles[~turn[which]] = 0
        spread[~resize[which]] = 1
        return which, _matrices(angles, spread, axes, thick)


def _in_plane(angle: float, sides: Sequence[int]) -> float:
    elongated = len(sides) == 2 and max(sides) > _ELONGATED * min(sides)
    return min(angle, _SMALL_TURN) if elongated else angle


def thick_axis(sides: Sequence[int]) -> int | None:
    """Return the axis of few thick slices; None: there is none."""
    if len(sides) != 3 or max(sides) <= _ANISOTROPIC * min(sides):
        return None
    return min(range(3), key=lambda axis: sides[axis])


def theta_of(matrices: Tensor, sides: Sequence[int], lengths: Sequence[int], centre: Sequence[float]) -> Tensor:
    """Return what ``affine_grid`` takes to sample patches from images.

    Args:
        matrices: from output to input in voxels, (n, axes, axes), last axis first.
        sides: of the patches in voxels.
        lengths: of the images in voxels.
        centre: of the patches in the images, in voxels; the middle of the first voxel is 0.

    Returns:
        (n, axes, axes + 1) float32.
    """
    side, length, place = (torch.tensor([*values][::-1], dtype=torch.float32) for values in (sides, lengths, centre))
    turned = matrices * (side[None, None, :] / length[None, :, None])
    shift = ((2 * place + 1) / length - 1)[None, :, None].expand(len(matrices), -1, 1)
    return torch.cat([turned, shift], dim=2)


def patch_at(
    maps: Mapping[str, Tensor],
    matrix: Tensor,
    sides: Sequence[int],
    corner: Sequence[int],
    outside: Mapping[str, float],
    device: torch.device | None = None,
) -> dict[str, Tensor]:
    """Return a turned and scaled patch of an image and of maps on its grid.

    Args:
        maps: each (channel, x, y[, z]); whole numbers are taken from the nearest voxel, others interpolated.
        matrix: from output to input in voxels, (axes, axes), last axis first.
        sides: of the patch in voxels.
        corner: of the patch before it is turned about its middle.
        outside: map -> value beyond the image; 0 of those that are not named.
        device: where the patch is computed; None: where the image is.

    Returns:
        Each (channel, x, y[, z]) of the patch's sides, in the map's dtype.
    """
    image = next(iter(maps.values()))
    centre = [at + (side - 1) / 2 for at, side in zip(corner, sides, strict=True)]
    reach = (matrix.abs() @ torch.tensor([side / 2 for side in sides][::-1])).tolist()[::-1]
    # Only what the patch reaches is read: whole numbers of a large image would be converted for nothing.
    box = [
        (max(math.floor(at - half) - 1, 0), min(math.ceil(at + half) + 2, length))
        for at, half, length in zip(centre, reach, image.shape[1:], strict=True)
    ]
    window = (slice(None), *(slice(low, high) for low, high in box))
    lengths = [high - low for low, high in box]
    theta = theta_of(matrix[None], sides, lengths, [at - low for at, (low, _) in zip(centre, box, strict=True)])
    place = device or image.device
    grid = functional.affine_grid(theta.to(place, non_blocking=True), [1, 1, *sides], align_corners=False)
    return {
        name: _sampled(values[window].to(place, non_blocking=True), grid, outside.get(name, 0.0))
        for name, values in maps.items()
    }


def _sampled(values: Tensor, grid: Tensor, outside: float) -> Tensor:
    mode = "bilinear" if values.is_floating_point() else "nearest"
    shifted = values[None].to(grid.dtype) - outside
    found = functional.grid_sample(shifted, grid, mode=mode, padding_mode="zeros", align_corners=False)[0]
    return (found + outside).to(values.dtype)


def _matrices(angles: Tensor, spread: Tensor, axes: int, thick: int | None) -> Tensor:
    """Return matrices from output to input, last axis first.

    Args:
        angles: (n, 3), or (n, 1) in one plane, in radians.
        spread: (n,), distance between the voxels that are read.
        axes: of the images.
        thick: axis that is left alone; None: none.
    """
    turn = torch.eye(axes).expand(len(angles), axes, axes).clone()
    for column, (first, second) in enumerate(_planes(axes, thick)):
        plane = torch.eye(axes).expand(len(angles), axes, axes).clone()
        cos, sin = angles[:, column].cos(), angles[:, column].sin()
        plane[:, first, first], plane[:, second, second] = cos, cos
        plane[:, first, second], plane[:, second, first] = -sin, sin
        turn = turn @ plane
    along = spread[:, None].expand(len(angles), axes).clone()
    if thick is not None:
        along[:, axes - 1 - thick] = 1
    return turn * along[:, None, :]


def _planes(axes: int, thick: int | None) -> list[tuple[int, int]]:
    if axes == 2:
        return [(0, 1)]
    if thick is None:
        return [(1, 2), (0, 2), (0, 1)]
    first, second = (axis for axis in range(3) if axis != 2 - thick)
    return [(first, second)]


def _uniform(count: int, columns: int, low: float, high: float, generator: Generator) -> Tensor:
    return torch.rand(count, columns, generator=generator) * (high - low) + low
