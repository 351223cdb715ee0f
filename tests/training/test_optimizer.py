from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from oncofed.training.checkpoint import (
    optimizer_tensors,
    read_checkpoint,
    restore_optimizer,
    without_prefix,
    write_checkpoint,
)
from oncofed.training.optimizer import StepScaler, build_optimizer
from oncofed.training.settings import TrainingSpec

_OPTIMIZERS = ("sgd", "adamw")


def _network(layout: torch.memory_format = torch.contiguous_format) -> nn.Module:
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2, 2)
    )
    return network.to(memory_format=layout)  # type: ignore[call-overload, no-any-return]


def _steps(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for number in range(first, first + steps):
        generator = torch.Generator().manual_seed(number)
        optimizer.zero_grad()
        network(torch.randn(2, 3, 8, 8, generator=generator)).square().mean().backward()
        optimizer.step()


def _fused_on_cuda_takes(*lists: Sequence[Tensor]) -> bool:
    """Check the precondition of CUDA's fused steps.

    Equal strides along sides longer than one.
    """
    for tensors in zip(*lists, strict=True):
        first, *others = tensors
        for other in others:
            sides = zip(first.shape, first.stride(), other.stride(), strict=True)
            if first.shape != other.shape or any(side != 1 and a != b for side, a, b in sides):
                return False
    return True


@pytest.mark.parametrize("name", _OPTIMIZERS)
@pytest.mark.parametrize("before", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("after", [torch.contiguous_format, torch.channels_last])
def test_restored_state_has_the_parameters_memory_layout(
    tmp_path: Path, name: str, before: torch.memory_format, after: torch.memory_format
) -> None:
    spec = TrainingSpec.model_validate({"optimizer": name})
    network = _network(before)
    optimizer = build_optimizer(spec, network)
    _steps(network, optimizer, 2)
    write_checkpoint(tmp_path / "state", {f"o.{k}": v for k, v in optimizer_tensors(optimizer).items()}, {})
    kept, _ = read_checkpoint(tmp_path / "state")

    again = _network(after)
    again.load_state_dict(network.state_dict())
    restored = build_optimizer(spec, again)
    restore_optimizer(restored, without_prefix(kept, "o"))
    _steps(network, optimizer, 1, first=2)
    _steps(again, restored, 1, first=2)
    parameters = list(again.parameters())
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for key in ("momentum_buffer",) if name == "sgd" else ("exp_avg", "exp_avg_sq"):
        assert _fused_on_cuda_takes(parameters, gradients, [restored.state[p][key] for p in parameters])
    expected = optimizer_tensors(optimizer)
    for key, value in optimizer_tensors(restored).items():
        torch.testing.assert_close(value, expected[key])
    if before == after:
        assert all(torch.equal(a, b) for a, b in zip(parameters, network.parameters(), strict=True))


@pytest.mark.parametrize("name", _OPTIMIZERS)
def test_steps_are_those_of_torchs_own_optimizer_to_the_bit(name: str) -> None:
    spec = TrainingSpec.model_validate({"optimizer": name})
    ours, theirs = _network(), _network()
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(theirs.parameters(), 1e-3, weight_decay=1e-4, fused=True)
    if name == "sgd":
        optimizer = torch.optim.SGD(
            theirs.parameters(), 1e-3, momentum=0.99, nesterov=True, weight_decay=1e-4, fused=True
        )
    _steps(ours, build_optimizer(spec, ours), 8)
    _steps(theirs, optimizer, 8)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("name", _OPTIMIZERS)
def test_torchs_compiler_is_not_imported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)  # whoever imports it fails
    network = _network()
    optimizer = build_optimizer(TrainingSpec.model_validate({"optimizer": name}), network)
    _steps(network, optimizer, 2)
    optimizer.load_state_dict(optimizer.state_dict())
    with pytest.raises(ImportError):
        torch.optim.SGD(network.parameters()).step()


class _Made(TorchDispatchMode):
    """Counts tensors as large as a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.made: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.numel() > 1:
            self.made[str(func)] += 1
        return result


@pytest.mark.parametrize("name", _OPTIMIZERS)
def test_no_step_takes_memory_not_even_the_first(name: str) -> None:
    network = _network()
    optimizer = build_optimizer(TrainingSpec.model_validate({"optimizer": name}), network)
    network(torch.randn(2, 3, 8, 8)).mean().backward()
    with _Made() as log:
        optimizer.step()
    assert not log.made


def test_frozen_weights_have_no_state() -> None:
    network = _network()
    first = next(network.parameters()).requires_grad_(False)
    optimizer = build_optimizer(TrainingSpec(), network)
    assert first not in optimizer.state
    assert len(optimizer.state) == len(list(network.parameters())) - 1


@pytest.mark.parametrize("name", _OPTIMIZERS)
def test_a_skipped_first_step_leaves_no_state(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Memory that nobody wrote to is not finite then, as on a GPU that has been in use.
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.set_deterministic_debug_mode("warn")
    try:
        network = _network()
        optimizer = build_optimizer(TrainingSpec.model_validate({"optimizer": name}), network)
        scaler = StepScaler("cpu", torch.float32)
        for number in range(3):
            optimizer.zero_grad()
            loss = network(torch.randn(2, 3, 8, 8)).mean() * (float("nan") if number == 0 else 1.0)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        assert all(torch.isfinite(parameter).all() for parameter in network.parameters())
    finally:
        torch.set_deterministic_debug_mode("default")


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_many_skipped_steps_do_not_affect_later_ones(precision: torch.dtype) -> None:
    weight = nn.Parameter(torch.ones(4))
    optimizer = build_optimizer(TrainingSpec(), nn.ParameterList([weight]))
    scaler = StepScaler("cpu", precision)
    for number in range(152):
        optimizer.zero_grad()
        loss = (weight * (float("nan") if number < 151 else 1.0)).sum()
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() > 0
    assert torch.isfinite(weight).all()
    assert (weight < 1).all()
    if precision is not torch.float16:
        assert scaler.get_scale() == 1.0


def test_the_loss_scale_survives_a_restart_in_float16_and_is_one_otherwise() -> None:
    def after_one_bad_step(scaler: StepScaler) -> dict[str, Any]:
        weight = nn.Parameter(torch.ones(4))
        optimizer = torch.optim.SGD([weight], fused=True)
        scaler.scale((weight * float("nan")).sum()).backward()  # type: ignore[no-untyped-call]
        scaler.step(optimizer)
        scaler.update()
        return scaler.state_dict()

    half = after_one_bad_step(StepScaler("cpu", torch.float16))
    assert half["scale"] == 2.0**15
    for precision, state, scale in [
        (torch.float16, half, 2.0**15),
        (torch.float16, {**half, "scale": 2.0**-140}, 2.0**-16),
        (torch.bfloat16, half, 1.0),
        # A run that goes on from a GPU with bfloat16 on one without it.
        (torch.float16, StepScaler("cpu", torch.bfloat16).state_dict(), 2.0**16),
        # What a run without a floor left behind.
        (torch.float32, {**StepScaler("cpu", torch.float32).state_dict(), "scale": 2.0**-140}, 1.0),
    ]:
        scaler = StepScaler("cpu", precision)
        scaler.load_state_dict(state)
        assert scaler.get_scale() == scale
