"""Sizes of known bodies, however their voxels lie."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from oncofed.prediction.outputs.measurements import SegmentMeasurements, measure


def turned(spacing: tuple[float, float, float], degrees: float = 0.0) -> np.ndarray:
    """An affine with voxel size, rotation and offset.

    Rotated about the left-right axis.
    """
    angle = math.radians(degrees)
    turn = np.array([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ np.diag(spacing), (-30, 12, 7)
    return affine


def ellipsoid(radii: tuple[float, float, float], spacing: tuple[float, float, float]) -> np.ndarray:
    """Voxels whose centres are within an ellipsoid.

    Half axes in mm, along the voxels' axes.
    """
    shape = [int(2 * radius / side) + 5 for radius, side in zip(radii, spacing, strict=True)]
    places = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in shape], indexing="ij"))
    scaled = places * np.reshape(spacing, (3, 1, 1, 1)) / np.reshape(radii, (3, 1, 1, 1))
    return ((scaled**2).sum(axis=0) <= 1).astype(np.uint8)


def one(labels: np.ndarray, affine: np.ndarray, calibrated: bool = True) -> SegmentMeasurements:
    (found,) = measure(labels, affine, {1: "thing"}, calibrated)
    return found


@pytest.mark.parametrize("degrees", [0, 25])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 0.5, 1.5), (0.7, 1.1, 0.9)])
def test_an_ellipsoid_has_its_volume_and_its_axes(spacing: tuple[float, float, float], degrees: float) -> None:
    found = one(ellipsoid((12, 8, 18), spacing), turned(spacing, degrees))
    half = max(spacing)
    assert found.volume_ml == pytest.approx(4 / 3 * math.pi * 12 * 8 * 18 / 1000, rel=0.02)
    assert found.longest_mm == pytest.approx(24, abs=half)
    assert found.short_mm == pytest.approx(16, abs=half)
    assert found.longest_3d_mm == pytest.approx(36, abs=half)
    assert found.pieces == 1


def test_a_box_is_measured_on_the_surface_of_its_voxels() -> None:
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[4, 4, 4] = 1
    found = one(labels, turned((1.0, 1.0, 1.0)))
    assert (found.voxels, found.volume_ml, found.longest_mm, found.longest_3d_mm) == (1, 0.001, 1.0, 1.0)
    labels[1:8, 4, 4] = 1
    found = one(labels, turned((1.0, 1.0, 1.0)))
    assert (found.longest_mm, found.short_mm, found.longest_3d_mm) == pytest.approx((7, 1, 7))


def test_the_longest_diameter_is_in_the_most_axial_plane() -> None:
    long = ellipsoid((6, 10, 20), (1.0, 1.0, 1.0))
    upright = one(long, turned((1.0, 1.0, 1.0)))
    # The same body, stored with its axis from feet to head first.
    swapped = turned((1.0, 1.0, 1.0))[:, [2, 0, 1, 3]]
    turned_over = one(np.moveaxis(long, 2, 0), swapped)
    assert upright.longest_mm == pytest.approx(20, abs=1)
    for name in ("volume_ml", "longest_mm", "short_mm", "longest_3d_mm"):
        assert getattr(turned_over, name) == pytest.approx(getattr(upright, name))
    assert turned_over.plane == upright.plane


def test_a_diameters_ends_have_its_distance_and_plane() -> None:
    affine = turned((0.8, 0.9, 2.5), 20)
    found = one(ellipsoid((15, 9, 12), (0.8, 0.9, 2.5)), affine)
    assert found.ends is not None
    begins, ends = map(np.array, found.ends)
    assert np.linalg.norm(ends - begins) == pytest.approx(found.longest_mm)
    voxels = np.linalg.inv(affine) @ np.array([[*begins, 1], [*ends, 1]]).T
    assert voxels[2] == pytest.approx([found.plane, found.plane])


def test_two_lesions_are_not_measured_across() -> None:
    labels = np.zeros((40, 40, 5), np.uint8)
    labels[2:8, 2:4, 1:4] = 1
    labels[30:34, 30:33, 1:4] = 1
    found = one(labels, turned((1.0, 1.0, 1.0)))
    assert found.pieces == 2
    assert found.longest_mm == pytest.approx(math.hypot(5, 2), abs=1)
    assert found.longest_3d_mm < 10


def test_classes_are_measured_apart_and_one_that_is_nowhere_has_no_length() -> None:
    labels = np.zeros((10, 10, 10), np.int16)
    labels[1:3, 1:3, 1:3] = 3
    found = {size.name: size for size in measure(labels, turned((2.0, 2.0, 2.0)), {1: "a", 3: "c"})}
    assert found["a"] == SegmentMeasurements(1, "a", 0, 0, volume_ml=0.0)
    assert found["c"].voxels == 8
    assert found["c"].volume_ml == pytest.approx(0.064)


def test_a_flat_image_has_areas_and_one_without_pixel_size_has_pixels() -> None:
    labels = np.zeros((30, 40), np.uint8)
    labels[5:15, 10:30] = 1
    found = one(labels, np.diag([0.5, 0.5, 1, 1]))
    assert (found.area_mm2, found.volume_ml, found.longest_3d_mm, found.plane) == (50.0, None, None, None)
    assert found.longest_mm == pytest.approx(math.hypot(10, 4.75), abs=0.3)
    pixels = one(labels, np.eye(4), calibrated=False).figures()
    assert pixels["area_px"] == 200
    assert not {"area_mm2", "longest_mm", "short_mm"} & pixels.keys()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.tuples(*[st.floats(0.3, 4)] * 3), st.floats(-40, 40))
def test_diameters_are_those_of_all_pairs_of_points(seed: int, spacing: tuple[float, ...], degrees: float) -> None:
    rng = np.random.default_rng(seed)
    labels = np.zeros((7, 6, 5), np.uint8)
    labels[tuple(rng.integers(1, n - 1, 12) for n in labels.shape)] = 1
    labels[2:5, 2:4, 2] = 1
    affine = turned(spacing, degrees)  # type: ignore[arg-type]
    found = one(labels, affine)
    steps = 0.5 * np.concatenate([np.eye(3), -np.eye(3)])

    def longest(mask: np.ndarray, steps: np.ndarray) -> float:
        points = (np.argwhere(mask)[:, None] + steps[None]).reshape(-1, 3) @ affine[:3, :3].T
        return float(np.linalg.norm(points[:, None] - points[None], axis=-1).max())

    pieces, count = ndimage.label(labels, np.ones((3, 3, 3)))
    assert found.longest_3d_mm == pytest.approx(max(longest(pieces == n, steps) for n in range(1, count + 1)))
    flat = [ndimage.label(labels[..., z], np.ones((3, 3))) for z in range(5)]
    masks = []
    for z, (regions, several) in enumerate(flat):
        for number in range(1, several + 1):
            mask = np.zeros(labels.shape, bool)
            mask[..., z] = regions == number
            masks.append(mask)
    assert found.longest_mm == pytest.approx(max(longest(mask, steps[[0, 1, 3, 4]]) for mask in masks))
    assert 0 < found.short_mm <= found.longest_mm + 1e-9
