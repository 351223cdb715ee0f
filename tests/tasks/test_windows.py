"""Sliding windows: as in MONAI, with a slab in memory."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from oncofed.data.spec import DataSpec
from oncofed.tasks.grids import FileGrid
from oncofed.tasks.windows import Windows
from peak import TensorPeak

_CPU = torch.device("cpu")


def whole_output(network: nn.Module, image: Tensor, patch: tuple[int, ...], overlap: float, mirror: bool) -> Tensor:
    """Return MONAI's output, optionally averaged over mirrorings."""
    axes = range(2, image.ndim + 1)
    flips = [f for n in range(image.ndim) for f in itertools.combinations(axes, n)] if mirror else [()]
    outputs = [
        sliding_window_inference(image[None].flip(f), patch, 4, network, overlap, mode="gaussian").flip(f)
        for f in flips
    ]
    return torch.stack(outputs).mean(0)[0]


def small_network(dimensions: int, channels: int, out: int) -> nn.Module:
    """Return a convolution that sees which side is which."""
    torch.manual_seed(out)
    kind = nn.Conv3d if dimensions == 3 else nn.Conv2d
    return kind(channels, out, 3, padding=1).eval()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 3]), st.sampled_from([0, 0.25, 0.5, 0.7]), st.booleans())
@torch.no_grad()
def test_slabs_combine_to_monais_output(seed: int, dimensions: int, overlap: float, mirror: bool) -> None:
    rng = np.random.default_rng(seed)
    patch = tuple(int(n) for n in rng.integers(16, 20, dimensions))
    image = torch.from_numpy(rng.normal(size=(2, *rng.integers(5, 50, dimensions))).astype(np.float32))
    network = small_network(dimensions, 2, 3)
    ours = Windows(DataSpec(dataset="any", patch=patch), overlap, mirror)(network, image, _CPU)
    torch.testing.assert_close(ours, whole_output(network, image, patch, overlap, mirror), atol=5e-6, rtol=1e-5)


def test_planes_come_along_the_axis_of_the_smallest_slab() -> None:
    windows = Windows(DataSpec(dataset="any", patch=(16, 16, 32)), 0.25, mirror=False)
    assert windows.axis((64, 64, 64)) == 0
    assert windows.axis((40, 64, 64)) == 1
    assert windows.axis((40, 40, 400)) == 2


def _peak(classes: int, file_shape: tuple[int, ...], scale: float = 1.0) -> float:
    """Return the extra bytes for scoring 512×512×400 voxels.

    Besides the image and the network's memory.
    """
    shape, meta = (512, 512, 400), torch.device("meta")
    windows = Windows(DataSpec(dataset="any", patch=(96, 96, 96)), 0.25, False, classes)
    network, image = nn.Conv3d(1, classes, 1).to(meta), torch.empty(1, *shape, device=meta)
    grid = FileGrid(np.eye(4), shape, np.diag([scale] * 3 + [1]), file_shape, windows.axis(shape))
    with torch.no_grad(), TensorPeak() as peak:
        labels = torch.empty(1, *file_shape, dtype=torch.uint8, device=meta)
        planes = windows.slabs(network, image, meta, weighed=not grid.whole)
        if not grid.whole:
            planes = ((first, values.softmax(0)) for first, values in planes)
        grid.fill(planes, labels, lambda values: values.max(0, keepdim=True).indices)
    return peak.most


def test_fourteen_classes_take_little_more_than_one_slab() -> None:
    slab = 14 * 96 * 512 * 400 * 4
    assert slab < _peak(14, (512, 512, 400)) < 1.3 * slab


def test_a_hundred_and_five_classes_take_less_than_twelve_gigabytes() -> None:
    assert _peak(106, (512, 512, 400)) < 12e9


class _Crowded(nn.Module):
    """Has memory for one window at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.failed = 0

    def forward(self, windows: Tensor) -> Tensor:
        if len(windows) > 1:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.cat([windows, -windows], 1)


@torch.no_grad()
def test_large_outputs_are_assembled_in_main_memory(caplog: pytest.LogCaptureFixture) -> None:
    windows, network = Windows(DataSpec(dataset="any", patch=(16, 16, 16)), 0.25, mirror=False), _Crowded()
    image = torch.randn(1, 40, 30, 20)

    def infer(spare: bool) -> list[Tensor]:
        return [values.clone() for _, values in windows.slabs(network, image, _CPU, spare=spare)]

    parts = windows.within_memory(infer, 24_000)
    torch.testing.assert_close(torch.cat(parts, 1), torch.cat([image, -image]))
    assert len(caplog.messages) == 1
    windows.within_memory(infer, 25_000)  # of the same size: not tried again
    assert (network.failed, len(caplog.messages)) == (1, 1)
    windows.within_memory(infer, 10)
    assert (network.failed, len(caplog.messages)) == (2, 1)
    with pytest.raises(torch.OutOfMemoryError):
        windows.within_memory(lambda spare: network(image.expand(2, 1, -1, -1, -1)), 9)
