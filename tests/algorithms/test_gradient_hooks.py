"""Gradient hooks: the papers' formulas, and their cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from oncofed.algorithms.feddyn import DynamicRegulariser
from oncofed.algorithms.fedprox import Proximal
from oncofed.algorithms.scaffold import ControlVariates
from oncofed.models.weights import Weights
from oncofed.training.gradient_hook import GradientHook

MAKERS: dict[str, Callable[[], GradientHook]] = {
    "fedprox": lambda: Proximal(0.1),
    "ditto": lambda: Proximal(0.1),
    "scaffold": ControlVariates,
    "feddyn": lambda: DynamicRegulariser(0.1),
}


class _Watch(TorchDispatchMode):
    """Counts operations, and copies between devices."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.between_devices = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations[func.overloadpacket.__name__] += 1
        sources = {v.device for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor) and v.ndim}
        results = {v.device for v in tree_leaves(result) if isinstance(v, Tensor) and v.ndim}
        self.between_devices += len(sources | results) > 1
        return result


def _network(device: str = "cpu") -> nn.Module:
    torch.manual_seed(3)
    layers = (nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.Flatten(), nn.Linear(16, 2))
    return nn.Sequential(*layers).to(device)


def _values(network: nn.Module, seed: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=generator) for name, value in network.named_parameters()}


def _set_gradients(network: nn.Module, values: Weights) -> None:
    for name, parameter in network.named_parameters():
        parameter.grad = values[name].clone().to(parameter.device)


def _begin(correction: GradientHook, network: nn.Module, name: str) -> None:
    """Begin a site's round after an earlier one."""
    own = _values(network, 5)
    correction.restore(own)
    correction.start(network, {f"control.{n}": v for n, v in _values(network, 6).items()})
    if name == "ditto":
        assert isinstance(correction, Proximal)
        correction.hold_near({**own, "of no weight": torch.zeros(1)})


@pytest.mark.parametrize("name", MAKERS)
def test_a_step_copies_nothing_between_devices(name: str) -> None:
    network, correction = _network("meta"), MAKERS[name]()
    _begin(correction, network, name)
    _set_gradients(network, _values(network, 1))
    for _ in range(2):  # the first costs no more than those that follow; reading a value of this device raises
        with _Watch() as watch:
            correction.apply(network)
        assert watch.operations
        assert watch.between_devices == 0


@pytest.mark.parametrize("name", MAKERS)
def test_a_step_matches_the_paper_to_the_bit(name: str) -> None:
    network, correction = _network(), MAKERS[name]()
    _begin(correction, network, name)
    start = {n: v.detach().clone() for n, v in network.named_parameters()}
    own, server, gradients = _values(network, 5), _values(network, 6), _values(network, 1)
    with torch.no_grad():
        for value in network.parameters():
            value.mul_(1.5)
    _set_gradients(network, gradients)
    correction.apply(network)
    for n, value in network.named_parameters():
        moved = {
            "fedprox": lambda g, v, n=n: g.add_(v - start[n], alpha=0.1),
            "ditto": lambda g, v, n=n: g.add_(v - own[n], alpha=0.1),
            "scaffold": lambda g, v, n=n: g.add_(server[n]).sub_(own[n]),
            "feddyn": lambda g, v, n=n: g.add_(v - start[n], alpha=0.1).sub_(own[n]),
        }[name]
        assert value.grad is not None
        assert torch.equal(value.grad, moved(gradients[n].clone(), value.detach()))


def test_a_weight_without_gradient_is_left_alone() -> None:
    for name, make in MAKERS.items():
        network, correction = _network(), make()
        _begin(correction, network, name)
        correction.apply(network)
        network[0].weight.grad = torch.ones_like(network[0].weight)  # type: ignore[index]
        correction.apply(network)
        assert [n for n, v in network.named_parameters() if v.grad is not None] == ["0.weight"]


def test_a_skipped_step_counts_as_zero_in_the_control() -> None:
    network, correction = _network(), ControlVariates()
    correction.start(network, {})
    _set_gradients(network, _values(network, 1))
    correction.apply(network)
    broken = _values(network, 2)
    broken["0.bias"][0] = torch.nan
    _set_gradients(network, broken)
    correction.apply(network)
    changes = correction.finish(network)
    expected = {f"control.{n}": value / 2 for n, value in _values(network, 1).items()}
    assert all(torch.equal(changes[n], value) for n, value in expected.items())


def test_a_round_resumed_after_a_restart_gives_the_same_control() -> None:
    network, whole, second = _network(), ControlVariates(), ControlVariates()
    whole.start(network, {})
    second.start(network, {})
    for seed in (1, 2):
        _set_gradients(network, _values(network, seed))
        whole.apply(network)
        if seed == 1:
            second.restore_round({n: v.clone() for n, v in whole.round_state.items()})
    _set_gradients(network, _values(network, 2))
    second.apply(network)
    first, again = whole.finish(network), second.finish(network)
    assert all(torch.equal(again[n], value) for n, value in first.items())
