"""Other stains at random: seeded, plausible, without harm to glass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.color import hed2rgb, rgb2hed

from oncofed.data.inputs import WholeImages
from oncofed.data.spec import DataSpec
from oncofed.data.stain.augment import changed, with_other_amounts, with_other_colours
from oncofed.data.stain.colours import to_lab
from oncofed.data.stain.columns import LAB, Template
from oncofed.data.stain.spec import StainSpec
from stained_made import USUAL, field


def _seen(*seeds: int) -> torch.Tensor:
    """Return fields as a network sees them."""
    fields = [torch.from_numpy(field(seed, USUAL)).float().movedim(-1, 0) for seed in seeds]
    return torch.stack(fields) / 127.5 - 1


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("how", ["hed", "randstainna"])
def test_the_seed_decides(how: str) -> None:
    spec, batch = StainSpec(augment=how), _seen(1, 2, 3, 4)
    first, again = (changed(batch, spec, None, _generator(5)) for _ in range(2))
    other = changed(batch, spec, None, _generator(6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.min() >= -1
    assert first.max() <= 1
    # Half of them, by chance: those that are not chosen are the same bits.
    same = [torch.equal(a, b) for a, b in zip(first, batch, strict=True)]
    assert 0 < sum(same) < 4


@pytest.mark.parametrize("how", ["hed", "randstainna"])
def test_tissue_changes_and_glass_does_not(how: str) -> None:
    spec = StainSpec(augment=how, probability=1)
    batch = _seen(1, 2, 3, 4)
    batch[:, :, :40, :40] = 242 / 127.5 - 1
    found = changed(batch, spec, None, _generator())
    assert (found[:, :, :40, :40] - batch[:, :, :40, :40]).abs().max() < 0.06
    assert ((found - batch)[:, :, 60:, 60:].abs().mean((1, 2, 3)) > 0.02).all()


def test_amounts_change_as_by_scikit_image() -> None:
    """Its haematoxylin, eosin and DAB, unmixed, multiplied, and mixed again."""
    pixels = field(1, USUAL, glass=False)
    batch = torch.from_numpy(pixels).float().movedim(-1, 0)[None]

    generator = _generator(3)
    factors, shifts = ((torch.rand(2, 1, 3, generator=generator) * 2 - 1) * 0.2).unbind(0)
    found = with_other_amounts(batch, 0.2, _generator(3))[0].movedim(0, -1).numpy()
    # In its units a density is a share of -log(1e-6); its vectors are the same, not of unit length.
    lengths = np.linalg.norm([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], axis=1)
    stains = rgb2hed(np.clip((pixels + 1) / 240, 1e-6, 1))
    shift = shifts[0].numpy() / lengths / -np.log(1e-6)
    expected = hed2rgb(stains * (1 + factors[0].numpy()) + shift) * 240 - 1
    inside = (stains > 0).all(axis=-1)  # it has no amount below zero
    assert inside.sum() > 500
    assert np.abs(found.clip(max=239) - expected)[inside].max() < 1


def test_colours_are_those_of_the_sites_slides() -> None:
    """Drawn about the template's mean, with its spread."""
    template = Template.of(LAB, {"stain light mean": (60.0, 6.0), "stain a mean": (20.0, 4.0)})
    batch = (_seen(1)[:, :, 100:160, 100:160].expand(64, 3, 60, 60) + 1) * 127.5
    looks = to_lab(with_other_colours(batch, template, 1.0, _generator())).mean((2, 3))
    assert looks[:, 0].mean() == pytest.approx(60, abs=3)
    assert looks[:, 0].std() == pytest.approx(6, abs=2.5)
    assert looks[:, 1].mean() == pytest.approx(20, abs=3)


@pytest.mark.parametrize("how", ["hed", "randstainna"])
def test_white_black_and_nearly_empty_images_stay_finite(how: str) -> None:
    batch = torch.stack([torch.full((3, 32, 32), value) for value in (1.0, -1.0, 0.96)])
    batch[2, :, :2, :2] = torch.tensor([0.2, -0.4, 0.3])[:, None, None]
    found = changed(batch, StainSpec(augment=how, probability=1, strength=3), None, _generator())
    assert torch.isfinite(found).all()
    assert (found[0] - batch[0]).abs().max() < 0.06


def test_a_job_changes_its_batches_so() -> None:
    """Only where it says so, by the generator of its batches."""
    batch = _seen(1, 2, 3, 4)
    data = {"dataset": "tiles", "modality": "microscopy", "channels": ["red", "green", "blue"], "patch": [256, 256]}
    plain = WholeImages(DataSpec.model_validate(data), "none")
    assert torch.equal(plain.change({"image": batch.clone()}, _generator())["image"], batch)
    stained = WholeImages(DataSpec.model_validate({**data, "stain": {"augment": "hed", "probability": 1}}), "none")
    first = stained.change({"image": batch.clone()}, _generator(1))["image"]
    assert torch.equal(first, stained.change({"image": batch.clone()}, _generator(1))["image"])
    assert not torch.equal(first, batch)


@pytest.mark.gpu
@pytest.mark.parametrize("how", ["hed", "randstainna"])
def test_a_gpu_gives_the_same(how: str) -> None:
    spec, batch = StainSpec(augment=how), _seen(1, 2, 3, 4)
    here = changed(batch, spec, None, _generator(5))
    there = changed(batch.cuda(), spec, None, _generator(5)).cpu()
    assert (here - there).abs().max() < 0.001
