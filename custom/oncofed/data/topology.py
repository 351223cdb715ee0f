"""Patch, resolutions and batch of a U-Net, from spacing, size and number of images.

The rules are those of nnU-Net's planner (Isensee et al., *nnU-Net: a self-configuring method for deep learning-based
biomedical image segmentation*, Nature Methods 2021, supplementary note 2; numbers as in its release 2.8):

- the patch has the shape of a typical image in mm, and as many voxels as the memory allows;
- an axis is halved as long as it keeps four voxels, and its spacing is less than twice that of the finest axis that can
  still be halved; kernels reach across an axis (3 instead of 1) once its spacing is less than twice the finest;
- memory is estimated by the number of values that the network's layers put out.

Those of residual encoders are of its presets M, L and XL, for 8, 24 and 40 GiB (Isensee et al., MICCAI 2024).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

_SHORTEST_SIDE, _SHORTEST_PATCH = 4, 8
_SIMILAR = 2.0
_CONVOLUTIONS = 2
# Of each resolution beside residual blocks, finest first; coarser ones have as many as the last. And convolutions up.
_BLOCKS, _CONVOLUTIONS_UP = (1, 3, 4, 6), 1
# MONAI's DynUNet needs one between the finest and the coarsest.
_FEWEST_RESOLUTIONS = 3
_SMALLEST_BATCH = 2
_SHARE_OF_DATA, _SHARE_OF_DATA_RESIDUAL = 0.05, 1.0


@dataclass(frozen=True)
class _Reference:
    """A network whose memory is known.

    Attributes:
        values: that its layers put out for a patch.
        batch: of such patches.
        gib: of GPU memory that hold them.
        voxels: of the patch from which the search starts.
        features: most feature maps of a resolution.
        residual: its encoder has residual blocks.
    """

    values: float
    batch: int
    gib: float
    voxels: int
    features: int
    residual: bool = False


_REFERENCES = {3: _Reference(560e6, 2, 8.0, 256**3, 320), 2: _Reference(85e6, 12, 8.0, 2048**2, 512)}
# Axes -> values that the layers of residual presets put out, by GiB.
_RESIDUAL_VALUES = {3: {8.0: 680e6, 24.0: 2100e6, 40.0: 3600e6}, 2: {8.0: 135e6, 24.0: 380e6, 40.0: 560e6}}
_FIRST_FEATURES = 32


@dataclass(frozen=True)
class Resolutions:
    """The resolutions of a U-Net for a patch.

    Attributes:
        patch: sides in voxels, padded to what the strides divide.
        strides: of each resolution, by axis, finest first; the first are 1.
        kernels: sides of the convolutions of each resolution, by axis.
    """

    patch: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]

    @property
    def divisors(self) -> tuple[int, ...]:
        """What divides each side of a patch."""
        return tuple(math.prod(axis) for axis in zip(*self.strides, strict=True))


@dataclass(frozen=True)
class Topology:
    """A U-Net with its patch and batch.

    Attributes:
        resolutions: patch, strides and kernels.
        channels: feature maps of each resolution.
        batch: patches in a step.
        blocks: residual ones of each resolution; empty: the encoder has none.
    """

    resolutions: Resolutions
    channels: tuple[int, ...]
    batch: int
    blocks: tuple[int, ...] = ()


def plan_topology(
    spacing: Sequence[float],
    shape: Sequence[float],
    images: int,
    classes: int,
    gib: float = 8.0,
    residual: bool = False,
) -> Topology:
    """Return the network for images of a kind.

    Args:
        spacing: of the working grid along each axis, in mm (or any unit that all axes share).
        shape: of a typical image on that grid, in voxels.
        images: for training, of all sites together.
        classes: that the network tells apart, with background.
        gib: GPU memory in GiB.
        residual: the encoder has residual blocks.
    """
    # Where two axes could be shortened alike, nnU-Net's order decides: files' axes backwards, the coarsest first.
    order = sorted(range(len(spacing)), reverse=True)
    if len(order) == 3:
        coarsest = max(order, key=lambda axis: spacing[axis])
        order = [coarsest, *(axis for axis in order if axis != coarsest)]
    reference = _reference(len(order), gib, residual)
    found = _fitted([spacing[axis] for axis in order], [shape[axis] for axis in order], images, classes, gib, reference)
    back = [order.index(axis) for axis in range(len(order))]
    resolutions = Resolutions(
        _reordered(found.resolutions.patch, back),
        tuple(_reordered(stride, back) for stride in found.resolutions.strides),
        tuple(_reordered(kernel, back) for kernel in found.resolutions.kernels),
    )
    return replace(found, resolutions=resolutions)


def blocks_of(levels: int) -> list[int]:
    """Return the residual blocks of each of some resolutions, finest first."""
    return [_BLOCKS[min(level, len(_BLOCKS) - 1)] for level in range(levels)]


def _reference(axes: int, gib: float, residual: bool) -> _Reference:
    plain = _REFERENCES[axes]
    if not residual:
        return plain
    presets = _RESIDUAL_VALUES[axes]
    nearest = max((size for size in presets if size <= gib), default=min(presets))
    return replace(plain, values=presets[nearest], gib=nearest, residual=True)


def _reordered(values: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    return tuple(values[axis] for axis in order)


def resolutions_of(spacing: Sequence[float], patch: Sequence[int]) -> Resolutions:
    """Return the resolutions for a patch, which is padded to fit them.

    Args:
        spacing: of each axis, in mm.
        patch: sides in voxels.
    """
    spacings, sides = list(spacing), [float(side) for side in patch]
    strides, kernels = [(1,) * len(sides)], []
    kernel = [1] * len(sides)
    while True:
        halved = _halved(spacings, sides)
        if not halved:
            break
        finest = min(spacings)
        kernel = [3 if side == 3 or own < _SIMILAR * finest else 1 for side, own in zip(kernel, spacings, strict=True)]
        kernels.append(tuple(kernel))
        strides.append(tuple(2 if axis in halved else 1 for axis in range(len(sides))))
        for axis in halved:
            spacings[axis] *= 2
            sides[axis] = math.ceil(sides[axis] / 2)
    while len(strides) < _FEWEST_RESOLUTIONS:
        # However small the patch is.
        strides.append(tuple(2 if side >= _SHORTEST_SIDE else 1 for side in sides))
        sides = [math.ceil(side / step) for side, step in zip(sides, strides[-1], strict=True)]
        kernels.append((3,) * len(sides))
    kernels.append((3,) * len(sides))
    divisors = [math.prod(axis) for axis in zip(*strides, strict=True)]
    padded = tuple(math.ceil(side / divisor) * divisor for side, divisor in zip(patch, divisors, strict=True))
    return Resolutions(padded, tuple(strides), tuple(kernels))


def _halved(spacings: Sequence[float], sides: Sequence[float]) -> list[int]:
    """Return the axes that the next resolution halves."""
    long = [axis for axis, side in enumerate(sides) if side >= 2 * _SHORTEST_SIDE]
    if not long:
        return []
    finest = min(spacings[axis] for axis in long)
    halved = [axis for axis in long if spacings[axis] < _SIMILAR * finest]
    if len(halved) == 1 and sides[halved[0]] < 3 * _SHORTEST_SIDE:
        return []
    return halved


def _fitted(
    spacing: Sequence[float], shape: Sequence[float], images: int, classes: int, gib: float, reference: _Reference
) -> Topology:
    budget = reference.values * gib / reference.gib
    found = resolutions_of(spacing, _first_patch(spacing, shape, reference.voxels))
    # Residual presets shorten the patch until the reference's batch fits.
    fitting = reference.batch if reference.residual else _SMALLEST_BATCH
    while _values(found, classes, reference) / reference.batch * fitting > budget:
        shorter = _shortened(spacing, found, shape)
        if shorter is None:
            break
        found = resolutions_of(spacing, shorter)
    batch = round(budget / _values(found, classes, reference) * reference.batch)
    # No more than a twentieth of all voxels in a step, against overfitting; residual presets take all of them.
    share = _SHARE_OF_DATA_RESIDUAL if reference.residual else _SHARE_OF_DATA
    most = round(math.prod(shape) * images * share / math.prod(found.patch))
    levels = len(found.strides)
    blocks = tuple(blocks_of(levels)) if reference.residual else ()
    return Topology(found, _channels(levels, reference), max(min(batch, most), _SMALLEST_BATCH), blocks)


def _first_patch(spacing: Sequence[float], shape: Sequence[float], voxels: int) -> list[int]:
    edge = (voxels * math.prod(spacing)) ** (1 / len(spacing))
    return [int(min(round(edge / own), size)) for own, size in zip(spacing, shape, strict=True)]


def _shortened(spacing: Sequence[float], found: Resolutions, shape: Sequence[float]) -> list[int] | None:
    """Return a patch with less of the axis of which it holds most; None where each is as short as can be.

    By the divisor which that side has after the step, so that no valid side is passed over.
    """
    by_share = sorted(range(len(shape)), key=lambda axis: (found.patch[axis] / shape[axis], axis), reverse=True)
    for axis in by_share:
        tried = list(found.patch)
        tried[axis] -= found.divisors[axis]
        if tried[axis] < _SHORTEST_PATCH:
            continue
        patch = list(found.patch)
        patch[axis] -= resolutions_of(spacing, tried).divisors[axis]
        return patch
    return None


def _channels(levels: int, reference: _Reference) -> tuple[int, ...]:
    return tuple(min(_FIRST_FEATURES * 2**level, reference.features) for level in range(levels))


def _values(found: Resolutions, classes: int, reference: _Reference) -> int:
    """Return how many values the layers put out: convolutions both ways, upsampling, the map of classes."""
    levels = len(found.strides)
    channels, blocks = _channels(levels, reference), blocks_of(levels)
    sides, total = list(found.patch), 0
    for level, stride in enumerate(found.strides):
        sides = [side // step for side, step in zip(sides, stride, strict=True)]
        if reference.residual:
            # Two of each block, and one of the stem before the finest, or of the skip that goes down.
            encoded, decoded = 2 * blocks[level] + 1, _CONVOLUTIONS_UP
        else:
            encoded, decoded = _CONVOLUTIONS, _CONVOLUTIONS
        upsampled = 0 if level == levels - 1 else decoded + 1
        total += (encoded + upsampled) * channels[level] * math.prod(sides)
    return total + classes * math.prod(found.patch)
