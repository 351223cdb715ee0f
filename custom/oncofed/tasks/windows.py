"""Sliding-window inference in slabs.

Only the part of the output that current windows cover is held.

Windows, their places and their Gaussian weights are those of MONAI's ``sliding_window_inference``. They proceed along
one axis of the image, so that planes beyond the reach of later windows are finished and passed on.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from monai.data.utils import compute_importance_map
from torch import Tensor, nn
from torch.nn import functional

from oncofed.data.spec import DataSpec
from oncofed.devices import free_memory, inference_type, is_out_of_memory

_LOG = logging.getLogger(__name__)
# Limits of the windows that go through the network at once, by number and by bytes of output: on a CPU as much as its
# caches may still hold when the output is weighted.
_WINDOWS_AT_ONCE, _BYTES_AT_ONCE, _BYTES_AT_ONCE_GPU = 4, 1 << 24, 1 << 26
# Values of finished planes that are passed on at once: on a CPU as many as its caches hold.
_VALUES_AT_ONCE, _VALUES_AT_ONCE_GPU = 1 << 20, 1 << 25

# The first plane's number, and values (out, planes, other axes), whose memory the next planes overwrite.
Planes = tuple[int, Tensor]
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Window:
    """One window of one mirroring.

    Attributes:
        first: its first plane.
        corner: its start in the mirrored image, the slabs' axis first.
        flips: mirrored axes; 0 is the slabs' axis.
    """

    first: int
    corner: tuple[int, ...]
    flips: tuple[int, ...]


class Windows:
    """Sliding-window inference with Gaussian weights.

    Optionally the mean over mirrorings.

    Args:
        data: of the job; windows have the size of patches.
        overlap: share by which windows overlap.
        mirror: average over all mirrorings.
        out_channels: the network's values per voxel.
    """

    def __init__(self, data: DataSpec, overlap: float, mirror: bool, out_channels: int = 1) -> None:
        self._patch, self._overlap = data.patch, overlap
        self._bytes = 4 * out_channels * math.prod(data.patch)
        axes = range(data.dimensions)
        sets = (itertools.combinations(axes, n) for n in range(data.dimensions + 1)) if mirror else [[()]]
        self._mirrorings = [flips for group in sets for flips in group]
        self._weights: dict[torch.device, Tensor] = {}
        self._too_large: int | None = None

    def __call__(self, network: nn.Module, image: Tensor, device: torch.device) -> Tensor:
        """Return the network's output (out, x, y[, z]) float32.

        For an image (channel, x, y[, z]).
        """
        total: Tensor | None = None
        axis = self.axis(image.shape[1:])
        for first, planes in self.slabs(network, image, device):
            if total is None:
                total = planes.new_empty(len(planes), image.shape[1 + axis], *planes.shape[2:])
            total[:, first : first + planes.shape[1]] = planes
        assert total is not None
        return total.movedim(1, 1 + axis).contiguous()

    def axis(self, shape: Sequence[int]) -> int:
        """Return the axis of the smallest slabs."""
        padded = [max(side, patch) for side, patch in zip(shape, self._patch, strict=True)]
        sizes = [math.prod(padded) // side * patch for side, patch in zip(padded, self._patch, strict=True)]
        return sizes.index(min(sizes))

    def slabs(
        self,
        network: nn.Module,
        image: Tensor,
        device: torch.device,
        change: Callable[[Tensor], Tensor] | None = None,
        weighed: bool = True,
        spare: bool = False,
    ) -> Iterator[Planes]:
        """Yield the network's output by planes along ``axis``.

        First to last, (out, planes, other axes) float32.

        Args:
            network: from (batch, channels, x, y[, z]) to (batch, out, x, y[, z]), on ``device``, in evaluation mode.
            image: (channel, x, y[, z]).
            device: where the network is, and by default the slab.
            change: applied to a window's output (out, …) float32 before weighting, possibly in place.
            weighed: divide by the windows' weights, which is not needed to compare values of the same voxel.
            spare: use little of the device's memory: image and slab stay on the CPU, windows are processed one by one.
        """
        place = torch.device("cpu") if spare else device
        axis = self.axis(image.shape[1:])
        image = image.to(place).movedim(1 + axis, 1)
        patch = (self._patch[axis], *(side for n, side in enumerate(self._patch) if n != axis))
        shape = tuple(image.shape[1:])
        layout = _Layout(shape, patch, self._overlap, self._weights_on(place).movedim(axis, 0))
        if any(layout.before):
            image = functional.pad(image, [pad for side in layout.before[::-1] for pad in (side, side)])
        flips = [tuple(0 if n == axis else n + (n < axis) for n in group) for group in self._mirrorings]
        windows = layout.windows(flips)
        slab = _Slab(layout, windows[0].first)
        at_once = 1 if spare else self._at_once(device)
        batch = image.new_empty(at_once, len(image), *self._patch, device=device)
        for begun in range(0, len(windows), at_once):
            few = windows[begun : begun + at_once]
            for n, window in enumerate(few):
                batch[n].movedim(1 + axis, 1).copy_(_mirrored(image[layout.inside(window)], window.flips))
            with torch.autocast("cuda", inference_type(device), enabled=device.type == "cuda"):
                output = network(batch[: len(few)])
            for window, values in zip(few, output, strict=True):
                yield from slab.finished(window.first, weighed and len(flips) == 1)
                found = values.float()
                found = change(found) if change else found
                slab.add(window, found.to(place).movedim(1 + axis, 1), len(flips))
            del output, values, found  # free them before the network computes the next ones
        yield from slab.finished(layout.shape[0], weighed and len(flips) == 1)

    def within_memory(self, infer: Callable[[bool], Result], voxels: int) -> Result:
        """Return ``infer(spare)``, with ``spare`` if memory runs out.

        Args:
            infer: uses ``slabs``.
            voxels: of the image. Images at least as large as one that did not fit start with ``spare``.

        Raises:
            torch.OutOfMemoryError: memory is too short even then.
        """
        if self._too_large is None or voxels < self._too_large:
            try:
                return infer(False)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the except block, because the error's traceback holds the failed pass's memory.
            free_memory()
            if self._too_large is None:
                _LOG.warning(
                    "a case of %d voxels does not fit into the device's memory: what the network says of it is put "
                    "together in main memory, which is slower",
                    voxels,
                )
            self._too_large = voxels
        return infer(True)

    def _at_once(self, device: torch.device) -> int:
        limit = _BYTES_AT_ONCE_GPU if device.type == "cuda" else _BYTES_AT_ONCE
        return max(1, min(_WINDOWS_AT_ONCE, limit // self._bytes))

    def _weights_on(self, device: torch.device) -> Tensor:
        if device not in self._weights:
            self._weights[device] = compute_importance_map(self._patch, mode="gaussian").to(device)
        return self._weights[device]


class _Layout:
    """Places of windows, the slabs' axis first.

    Args:
        image: the image's shape.
        patch: of a window.
        overlap: share by which windows overlap.
        weights: of a window, as large as it.

    Attributes:
        before: padding before the image along each axis, so that a window fits.
        shape: of the padded image.
    """

    def __init__(self, image: tuple[int, ...], patch: tuple[int, ...], overlap: float, weights: Tensor) -> None:
        self.image, self.patch, self.weights = image, patch, weights
        missing = [max(side - length, 0) for length, side in zip(image, patch, strict=True)]
        # The same on both sides, so that a mirrored image has the same padding.
        self.before = [(number + 1) // 2 for number in missing]
        self.shape = tuple(length + 2 * side for length, side in zip(image, self.before, strict=True))
        self._starts = [
            [number % 2] if number else window_starts(length, side, overlap)
            for number, length, side in zip(missing, image, patch, strict=True)
        ]
        self._across: Tensor | None = None

    def windows(self, mirrorings: Sequence[tuple[int, ...]]) -> list[_Window]:
        """Return the windows of all mirrorings by first plane.

        Those of one mirroring come together.
        """
        found = [
            _Window(self._first(corner[0], 0 in flips), corner, flips)
            for flips in mirrorings
            for corner in itertools.product(*self._starts)
        ]
        return sorted(found, key=lambda window: window.first)

    def _first(self, start: int, flipped: bool) -> int:
        return self.shape[0] - self.patch[0] - start if flipped else start

    def inside(self, window: _Window) -> tuple[slice, ...]:
        """Return a window's slices in the image, with channels."""
        ends = zip(self.shape, self.patch, window.corner, strict=True)
        starts = [length - side - at if n in window.flips else at for n, (length, side, at) in enumerate(ends)]
        return (slice(None), *(slice(at, at + side) for at, side in zip(starts, self.patch, strict=True)))

    def coverage(self, first: int, stop: int) -> Tensor:
        """Return the sum of windows' weights, without mirroring.

        Shape (planes, other axes).
        """
        if self._across is None:
            # Places of windows are a product over axes: windows with the same first plane cover the other axes alike.
            self._across = self.weights.new_zeros(self.patch[0], *self.shape[1:])
            for corner in itertools.product(*self._starts[1:]):
                self._across[_box(corner, self.patch[1:])] += self.weights
        total = self.weights.new_zeros(stop - first, *self.shape[1:])
        for start in self._starts[0]:
            low, high = max(start, first), min(start + self.patch[0], stop)
            if low < high:
                total[low - first : high - first] += self._across[low - start : high - start]
        return total


class _Slab:
    """A ring buffer of the planes that windows cover.

    Finished planes make room for the next ones.

    Args:
        layout: of the windows.
        first: first plane of the first window.
    """

    def __init__(self, layout: _Layout, first: int) -> None:
        self._layout, self._depth = layout, layout.patch[0]
        planes, *self._others = (
            slice(side, side + length) for side, length in zip(layout.before, layout.image, strict=True)
        )
        self._begins, self._ends = planes.start, planes.stop
        self._values: Tensor | None = None
        self._next = first
        self._row: tuple[int, Tensor] | None = None

    def add(self, window: _Window, values: Tensor, mirrorings: int) -> None:
        """Add a window's mirrored output (out, window)."""
        layout = self._layout
        if self._values is None:
            self._values = values.new_zeros(len(values), self._depth, *layout.shape[1:])
        weights, box = layout.weights, _box(window.corner[1:], layout.patch[1:])
        if mirrorings > 1:
            # Mirrorings have equal weight, although their windows lie elsewhere.
            weights = weights / (self._coverage(window.corner[0])[box] * mirrorings)
        values, weights = (_mirrored(part, window.flips) for part in (values, weights[None]))
        at = window.first % self._depth
        place = layout.inside(window)[2:]
        for ring, part in ((slice(at, None), slice(self._depth - at)), (slice(at), slice(self._depth - at, None))):
            if ring.stop != 0:
                inside = (slice(None), ring, *place)
                self._values[inside].addcmul_(values[:, part], weights[:, part])

    def finished(self, stop: int, weighed: bool) -> Iterator[Planes]:
        """Yield further planes before ``stop``, and make room."""
        while self._next < stop:
            assert self._values is not None
            at = self._next % self._depth
            each = self._values[:, 0].numel()
            limit = _VALUES_AT_ONCE_GPU if self._values.is_cuda else _VALUES_AT_ONCE
            count = min(stop - self._next, self._depth - at, max(1, limit // each))
            planes = self._values[:, at : at + count]
            low, high = max(self._next, self._begins), min(self._next + count, self._ends)
            if low < high:
                if weighed:
                    planes /= self._layout.coverage(self._next, self._next + count)
                inside = (slice(None), slice(low - self._next, high - self._next), *self._others)
                yield low - self._begins, planes[inside]
            planes.zero_()
            self._next += count

    def _coverage(self, first: int) -> Tensor:
        if self._row is None or self._row[0] != first:
            self._row = first, self._layout.coverage(first, first + self._depth)
        return self._row[1]


def window_starts(length: int, side: int, overlap: float) -> list[int]:
    """Return windows' starts along an axis, as in MONAI."""
    step = side if length == side else max(int(side * (1 - overlap)), 1)
    return [min(n * step, length - side) for n in range(math.ceil((length - side) / step) + 1)]


def _box(corner: Sequence[int], sides: Sequence[int]) -> tuple[slice, ...]:
    return (slice(None), *(slice(at, at + side) for at, side in zip(corner, sides, strict=True)))


def _mirrored(values: Tensor, flips: tuple[int, ...]) -> Tensor:
    """Return values (channel, axes) with some axes flipped."""
    return values.flip([1 + axis for axis in flips]) if flips else values
