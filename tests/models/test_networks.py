from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from oncofed.models import ModelSpec, build_network

SPECS = {
    "unet": ModelSpec(network="unet", channels=(4, 8, 16)),
    "dynunet": ModelSpec(network="dynunet", channels=(4, 8, 16)),
    "segresnet": ModelSpec(network="segresnet", channels=(8, 16, 32)),
}


@pytest.mark.parametrize("name", SPECS)
def test_each_network_maps_images_to_logits_and_learns(name: str) -> None:
    spec = SPECS[name]
    network = build_network(spec, 1, 3, seed=1)
    image = torch.randn(2, 1, *[2 * spec.divisor] * 3)
    logits = network(image)
    assert logits.shape == (2, 3, *image.shape[2:])
    logits.square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize("name", SPECS)
def test_no_network_keeps_batch_statistics(name: str) -> None:
    assert not [key for key in build_network(SPECS[name], 1, 3, 1).state_dict() if "running" in key]


def test_initial_weights_follow_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = build_network(SPECS["unet"], 1, 3, seed=5).state_dict()
    before = torch.random.get_rng_state()
    again = build_network(SPECS["unet"], 1, 3, seed=5).state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    other = build_network(SPECS["unet"], 1, 3, seed=6).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_segresnet_refuses_channels_that_do_not_double() -> None:
    with pytest.raises(ValidationError, match="doubles its channels"):
        ModelSpec(network="segresnet", channels=(8, 16, 20))
