"""From planes on the working grid to the label's grid."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.meta_tensor import MetaTensor
from monai.transforms import SpatialResample

from oncofed.data.grids import align, resampled
from oncofed.tasks.grids import FileGrid


def turned(angle: float) -> np.ndarray:
    """Return a turn about the third axis, (4, 4)."""
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return turn


def _grids(rng: np.random.Generator, dimensions: int, oblique: bool) -> tuple[np.ndarray, np.ndarray]:
    source = np.diag([*rng.uniform(0.5, 2, 3), 1])
    source[:3, 3] = rng.normal(size=3) * 5
    step = np.zeros((4, 4))
    step[3, 3] = 1
    for n, axis in enumerate([*rng.permutation(dimensions), 2][:3]):
        step[n, axis] = rng.choice([-1, 1]) * rng.choice([1, rng.uniform(0.5, 2)])
    step[:3, 3] = rng.integers(-1, 12, 3) if rng.random() < 0.5 else rng.normal(size=3) * 3
    return source, source @ step @ turned(0.3 if oblique else 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 3]), st.booleans())
def test_values_are_those_of_monais_resampling(seed: int, dimensions: int, oblique: bool) -> None:
    rng = np.random.default_rng(seed)
    source, target = _grids(rng, dimensions, oblique)
    shape, file_shape = (tuple(int(n) for n in rng.integers(3, 20, dimensions)) for _ in range(2))
    values = torch.from_numpy(rng.random((3, *shape), np.float32))
    resample = SpatialResample(mode="bilinear", padding_mode="border", dtype=torch.float64)
    placed = MetaTensor(values.double(), affine=torch.from_numpy(source))
    expected = resample(placed, torch.from_numpy(target), list(file_shape)).as_tensor().float()
    torch.testing.assert_close(resampled(values, source, target, file_shape), expected, atol=3e-5, rtol=0)
    axis = int(rng.integers(dimensions))
    grid, into = FileGrid(source, shape, target, file_shape, axis), torch.full((3, *file_shape), torch.nan)
    planes = values.movedim(1 + axis, 1)
    cuts = sorted({0, shape[axis], *rng.integers(0, shape[axis], 2).tolist()})
    grid.fill(((low, planes[:, low:high]) for low, high in pairwise(cuts)), into, lambda v: v)
    torch.testing.assert_close(into, expected, atol=3e-5, rtol=0)


def test_a_turned_grid_needs_no_interpolation() -> None:
    flip = np.diag([-1.0, -1, 1, 1])
    flip[:2, 3] = 7, 8
    assert FileGrid(np.eye(4), (8, 9, 5), flip, (8, 9, 5), 0).whole
    assert not FileGrid(np.eye(4), (8, 9, 5), flip @ np.diag([0.5, 1, 1, 1]), (16, 9, 5), 0).whole
    oblique = FileGrid(np.eye(4), (8, 9, 5), turned(0.2), (8, 9, 5), 0)
    assert not oblique.whole
    axes = align(np.eye(4), (8, 9, 5), flip, (8, 9, 5))
    assert axes is not None
    assert [axis.turned for axis in axes] == [True, True, False]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_labels_of_a_turned_grid_are_the_same_voxels(axis: int) -> None:
    labels = torch.randint(0, 5, (4, 5, 6))
    target = np.array([[0, 0, -1.0, 3], [1, 0, 0, 0], [0, -1, 0, 5], [0, 0, 0, 1]])
    grid = FileGrid(np.eye(4), (4, 5, 6), target, (5, 6, 4), axis)
    into = torch.zeros(1, 5, 6, 4, dtype=torch.uint8)
    planes = labels[None].movedim(1 + axis, 1)
    grid.fill(((n, planes[:, n : n + 1]) for n in range(planes.shape[1])), into, lambda values: values)
    assert torch.equal(into[0].long(), labels.flip(0, 2).permute(1, 2, 0))
