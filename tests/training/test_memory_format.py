"""Memory format on a GPU, and activations without copies."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from oncofed.data.cases import read_cases
from oncofed.job.spec import JobSpec
from oncofed.models import ModelSpec, NetworkRequest, build_network
from oncofed.training import Trainer
from oncofed.training.memory_format import memory_format, overwrite, overwriting_activations

LAST, LAST_3D, PLAIN = torch.channels_last, torch.channels_last_3d, torch.contiguous_format
CHANNELS = {"unet": (8, 16, 32), "dynunet": (8, 16, 32), "segresnet": (8, 16, 32)}


def _network(name: str, axes: int, norm: str | None = None, **arguments: Any) -> tuple[nn.Module, Tensor]:
    spec = ModelSpec(network=name, channels=CHANNELS.get(name), norm=norm, arguments=arguments)
    side = max(32, spec.divisor)
    request = NetworkRequest(spec, 1, 3, axes, (side,) * axes)
    return build_network(request, 1), torch.randn(2, 1, *request.patch)


@pytest.mark.parametrize(
    ("name", "axes", "norm", "expected"),
    [
        ("unet", 3, None, PLAIN),
        ("unet", 3, "batch", LAST_3D),
        ("dynunet", 3, None, PLAIN),
        ("dynunet", 2, None, PLAIN),
        ("dynunet", 3, "batch", LAST_3D),
        ("segresnet", 3, None, PLAIN),
        ("segresnet", 2, "batch", LAST),
        ("hovernet", 2, None, PLAIN),
        ("densenet121", 2, None, PLAIN),
        ("densenet121", 2, "batch", LAST),
        ("efficientnet-b0", 2, "batch", LAST),
        ("resnet18", 2, None, PLAIN),
        ("resnet18", 2, "batch", LAST),
        ("resnet18", 3, "batch", LAST_3D),
    ],
)
def test_channels_come_last_where_normalisation_is_by_batch(
    name: str, axes: int, norm: str | None, expected: torch.memory_format
) -> None:
    assert memory_format(_network(name, axes, norm)[0], axes) is expected


def test_a_network_without_convolution_is_left_as_it_is() -> None:
    assert memory_format(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 2)), 2) is PLAIN


@pytest.mark.parametrize(("name", "axes"), [("dynunet", 3), ("segresnet", 2), ("resnet18", 2)])
def test_every_convolution_is_given_the_format_that_was_chosen(name: str, axes: int) -> None:
    network, image = _network(name, axes, "batch")
    layout = memory_format(network, axes)
    network = network.to(memory_format=layout)  # type: ignore[call-overload]
    turned = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        turned.append(not inputs[0].is_contiguous(memory_format=layout))

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            module.register_forward_pre_hook(look)
    network(image.to(memory_format=layout))
    assert turned
    assert not any(turned)


class _Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def _copies(network: nn.Module, image: Tensor) -> int:
    """Return the copies of one backward pass."""
    output = network.to("meta").train()(image.to("meta"))
    with _Operations() as seen:
        output.backward(torch.empty_like(output))
    return sum(seen.counts[name] for name in ("copy_", "clone", "fill_"))


@pytest.mark.parametrize(("name", "norm"), [("dynunet", None), ("segresnet", "instance")])
def test_an_activation_after_normalisation_by_instance_costs_no_copy(name: str, norm: str | None) -> None:
    network, image = _network(name, 3, norm)
    activations = overwriting_activations(network)
    assert activations
    assert _copies(network, image) >= 4 * 5
    overwrite(activations, False)
    assert _copies(network, image) == 0


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "hovernet"])
def test_other_networks_keep_their_activations(name: str) -> None:
    network, _ = _network(name, 2)
    assert any(getattr(module, "inplace", False) for module in network.modules())
    assert overwriting_activations(network) == []


def test_values_gradients_and_names_are_the_same_to_the_last_bit() -> None:
    network, image = _network("dynunet", 3)
    activations = overwriting_activations(network)
    results = []
    for wanted in (True, False):
        overwrite(activations, wanted)
        network.zero_grad()
        output = network(image)
        output.square().mean().backward()
        gradients = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
        results.append((output.detach(), gradients))
    (first, gradients), (second, again) = results
    assert torch.equal(first, second)
    assert gradients.keys() == again.keys()
    assert all(torch.equal(gradients[name], value) for name, value in again.items())


def test_a_trainer_overwrites_only_where_nothing_is_learned(spec: JobSpec, site: Path) -> None:
    model = {"network": "dynunet", "channels": [8, 16, 32]}
    plan = spec.changed({"model": model, "training": {"steps_per_round": 2}}).plan()
    trainer = Trainer(plan, read_cases(site, plan.data.split, plan.seed), "site-1")
    layers = [module for module in trainer.network.modules() if isinstance(module, nn.LeakyReLU)]
    trainer.train(1)
    assert not any(layer.inplace for layer in layers)
    trainer.evaluate(trainer.cases.validation)
    assert all(layer.inplace for layer in layers)
    trainer.train(1)
    assert not any(layer.inplace for layer in layers)
