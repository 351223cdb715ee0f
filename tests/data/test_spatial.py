"""Turned patches: read from the whole image, and nothing invented at their edges."""

from __future__ import annotations

import math

import pytest
import torch

from oncofed.data.spatial import Moves, patch_at, thick_axis

_STILL = torch.eye(3)


def _image(*sides: int) -> torch.Tensor:
    return torch.rand(1, *sides, generator=torch.Generator().manual_seed(1))


def test_a_patch_that_does_not_move_is_the_window_itself() -> None:
    image, label = _image(20, 24, 18), torch.randint(3, (1, 20, 24, 18), dtype=torch.uint8)
    patch = patch_at({"image": image, "label": label}, _STILL, (8, 12, 6), (5, 3, 12), {})
    torch.testing.assert_close(patch["image"], image[:, 5:13, 3:15, 12:18], atol=1e-4, rtol=0)
    assert torch.equal(patch["label"], label[:, 5:13, 3:15, 12:18])
    assert patch["label"].dtype == torch.uint8


def test_a_quarter_turn_is_exact_on_a_patch_of_unequal_sides() -> None:
    image = _image(16, 16)
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    patch = patch_at({"image": image}, turn, (8, 4), (4, 6), {})["image"]
    torch.testing.assert_close(patch, torch.rot90(image[:, 6:10, 4:12], 1, (1, 2)), atol=1e-4, rtol=0)


def test_a_turned_patch_holds_what_the_whole_turned_image_holds_there() -> None:
    image = _image(30, 30, 30)
    (_,), (matrix,) = Moves((1.0, math.pi / 6), (1.0, 0.7, 1.4), 0.0).matrices(1, (10,) * 3, _generator())
    whole = patch_at({"image": image}, matrix, (30, 30, 30), (0, 0, 0), {})["image"]
    patch = patch_at({"image": image}, matrix, (10, 10, 10), (10, 10, 10), {})["image"]
    torch.testing.assert_close(patch, whole[:, 10:20, 10:20, 10:20], atol=1e-4, rtol=0)
    # Its corners show what lies beyond the window that was turned, not the window's edge again.
    window = patch_at({"image": image[:, 10:20, 10:20, 10:20]}, matrix, (10, 10, 10), (0, 0, 0), {})["image"]
    assert not torch.allclose(patch, window, atol=0.05)


def test_beyond_the_image_is_nothing_or_the_label_that_is_named() -> None:
    image, label = torch.ones(1, 12, 12, 12), torch.full((1, 12, 12, 12), 1, dtype=torch.uint8)
    wide = patch_at({"image": image, "label": label}, 2 * _STILL, (12, 12, 12), (0, 0, 0), {"label": 7.0})
    assert set(wide["label"].unique().tolist()) == {1, 7}
    assert wide["image"][0, 0, 0, 0] == 0
    assert wide["image"][0, 6, 6, 6] == 1


@pytest.mark.parametrize(
    ("sides", "axis"), [((64, 64, 20), 2), ((64, 64, 22), None), ((8, 40, 40), 0), ((64, 8), None)]
)
def test_few_thick_slices_are_turned_in_their_plane_alone(sides: tuple[int, ...], axis: int | None) -> None:
    assert thick_axis(sides) == axis
    if axis is None:
        return
    _, matrices = Moves((1.0, 0.5), (1.0, 0.7, 1.4), math.pi).matrices(16, sides, _generator())
    own = 2 - axis  # last axis first
    still = torch.eye(3)[own].expand(16, 3)
    torch.testing.assert_close(matrices[:, own], still)
    torch.testing.assert_close(matrices[:, :, own], still)
    assert matrices.det().min() < 0.8 < 1.2 < matrices.det().max()


@pytest.mark.parametrize(("sides", "largest"), [((64, 40), 15), ((60, 40), 180), ((40, 64), 15), ((64, 64, 20), 180)])
def test_long_flat_patches_are_turned_a_little(sides: tuple[int, ...], largest: float) -> None:
    _, matrices = Moves((1.0, 0.5), (0.0, 1.0, 1.0), math.pi).matrices(200, sides, _generator())
    angles = torch.rad2deg(torch.atan2(matrices[:, -1, -2], matrices[:, -1, -1]).abs())
    assert 0.9 * largest < angles.max() <= largest + 1e-3


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)
