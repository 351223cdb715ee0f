"""Augmentation: maps follow the image, seeds repeat it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from oncofed.data.augment import Augment, Strength, strength
from synthetic import make_volume


def _batch(count: int = 4, flat: bool = False) -> dict[str, torch.Tensor]:
    labels = [torch.from_numpy(make_volume(seed, 24)[1]) for seed in range(count)]
    label = torch.stack([volume[:, :, 12] if flat else volume for volume in labels])[:, None]
    return {"image": label.float() + 0.01 * torch.rand(label.shape), "label": label}


def _change(strength_: Strength, batch: dict[str, torch.Tensor], seed: int = 1) -> dict[str, torch.Tensor]:
    copies = {name: values.clone() for name, values in batch.items()}
    return Augment(strength_, torch.Generator().manual_seed(seed))(copies)


@pytest.mark.parametrize("flat", [False, True])
def test_image_and_label_move_together(flat: bool) -> None:
    batch = _batch(6, flat)
    moved = _change(Strength(rotate=(1.0, 0.6), scale=(1.0, 0.8, 1.2), mirror=0.5), batch)
    assert moved["label"].dtype == torch.uint8
    assert set(moved["label"].unique().tolist()) <= {0, 1, 2}
    assert not torch.equal(moved["label"], batch["label"])
    # Interpolation blurs edges; elsewhere image and label agree.
    assert ((moved["image"].round() == moved["label"]).float().mean()) > 0.93


@pytest.mark.parametrize("augmentation", ["none", "light", "full"])
@pytest.mark.parametrize("modality", ["mri", "ct", "xray", "microscopy"])
def test_a_seed_repeats_the_changes_and_values_stay_finite(augmentation: str, modality: str) -> None:
    batch = _batch(3, flat=modality in {"xray", "microscopy"})
    chosen = strength(augmentation, modality)  # type: ignore[arg-type]
    first, again, other = (_change(chosen, batch, seed) for seed in (1, 1, 2))
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["label"], again["label"])
    assert torch.equal(first["image"], other["image"]) == (augmentation == "none")
    assert torch.isfinite(first["image"]).all()
    assert first["image"].shape == batch["image"].shape


ALONE = {
    "noise": (0.5, 1.0),
    "blur": (0.5, 0.5, 1.0),
    "brightness": (0.5, 0.5, 0.6),
    "contrast": (0.5, 0.5, 0.6),
    "coarse": (0.5, 0.5),
    "gamma": (0.5, 0.5, 0.6),
    "inverted_gamma": (0.5, 0.5, 0.6),
    "tint": (0.5, 0.3),
}


@pytest.mark.parametrize("name", ALONE)
def test_each_change_touches_only_the_chosen_samples(name: str) -> None:
    batch = _batch(16)
    changed = _change(replace(Strength(), **{name: ALONE[name]}), batch)  # type: ignore[arg-type]
    same = [torch.equal(a, b) for a, b in zip(changed["image"], batch["image"], strict=True)]
    assert 2 <= sum(same) <= 14
    assert torch.equal(changed["label"], batch["label"])


@pytest.mark.parametrize("name", ["blur", "coarse"])
def test_channels_are_chosen_one_by_one(name: str) -> None:
    image = torch.rand(8, 4, 12, 12, 12)
    changed = _change(replace(Strength(), **{name: ALONE[name]}), {"image": image})["image"]  # type: ignore[arg-type]
    same = (changed == image).flatten(2).all(2)
    assert (same.any(1) & ~same.all(1)).any()


def test_a_coarser_image_stays_where_it_was() -> None:
    # A slope: whatever is moved along it changes its values, away from the edges, on average.
    slope = torch.arange(24.0).expand(64, 1, 24, 24, 24)
    changed = _change(Strength(coarse=(1.0, 0.5)), {"image": slope.contiguous()})["image"]
    assert (changed - slope)[..., 6:-6].mean().abs() < 0.1


def test_channels_of_a_colour_change_alike_and_others_each_by_itself() -> None:
    image = torch.ones(8, 3, 6, 6)
    for together in (True, False):
        s = Strength(brightness=(1.0, 0.75, 1.25), together=together)
        factors = _change(s, {"image": image})["image"][:, :, 0, 0]
        assert bool((factors == factors[:, :1]).all()) == together
        assert 0.75 <= factors.min() < 1 < factors.max() <= 1.25


def test_gamma_keeps_mean_and_spread_and_blur_reduces_noise() -> None:
    image = torch.rand(4, 1, 16, 16, 16)
    bent = _change(Strength(gamma=(1.0, 0.5, 0.6)), {"image": image})["image"]
    torch.testing.assert_close(bent.mean((2, 3, 4)), image.mean((2, 3, 4)), atol=1e-4, rtol=0)
    torch.testing.assert_close(bent.std((2, 3, 4)), image.std((2, 3, 4)), atol=1e-4, rtol=0)
    blurred = _change(Strength(blur=(1.0, 0.8, 1.0)), {"image": image})["image"]
    assert (blurred.std((2, 3, 4)) < 0.5 * image.std((2, 3, 4))).all()
    torch.testing.assert_close(blurred.mean((2, 3, 4)), image.mean((2, 3, 4)), atol=0.02, rtol=0)
