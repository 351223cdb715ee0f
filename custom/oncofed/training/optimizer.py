"""Optimizers, and a gradient scaler that skips non-finite steps."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from oncofed.training.settings import TrainingSpec

_FIRST_SCALE, _STEPS_BETWEEN_GROWTHS = 2.0**16, 2000
# Below it float16 keeps none of a usual gradient, and from 2 ** -128 on the inverse is infinite.
_LEAST_SCALE = 2.0**-16


class _WithoutCompiler(torch.optim.Optimizer):
    """Does what torch's optimizers do, without torch's compiler.

    They import it to keep it from compiling them. That takes as long as all else of torch, and nothing of ours compiles
    an optimizer.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


class _SGD(_WithoutCompiler, torch.optim.SGD):
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class _AdamW(_WithoutCompiler, torch.optim.AdamW):
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def build_optimizer(spec: TrainingSpec, network: nn.Module) -> torch.optim.Optimizer:
    """Return the job's optimizer, its state initialised to zero.

    With the memory layout of the weights.

    Torch would create it in the first step. If memory runs out then, the step is half taken; and if that step is left
    out, SGD's momentum holds uninitialised memory.
    """
    parameters = list(network.parameters())
    rate, decay = spec.learning_rate, spec.weight_decay
    optimizer: torch.optim.Optimizer
    names: tuple[str, ...]
    if spec.optimizer == "sgd":
        momentum = spec.momentum
        optimizer = _SGD(parameters, rate, momentum, nesterov=momentum > 0, weight_decay=decay, fused=True)
        names = ("momentum_buffer",) if momentum else ()
    else:
        optimizer = _AdamW(parameters, rate, weight_decay=decay, fused=True)
        names = ("exp_avg", "exp_avg_sq")
    for parameter in parameters:
        if parameter.requires_grad:
            state: dict[str, Tensor] = {name: torch.zeros_like(parameter) for name in names}
            if spec.optimizer == "adamw":
                state["step"] = torch.zeros((), device=parameter.device)
            optimizer.state[parameter] = state
    return optimizer


def reset_state(optimizer: torch.optim.Optimizer) -> None:
    """Set an optimizer's state to that of its first step, in place."""
    for state in optimizer.state.values():
        for value in state.values():
            value.zero_()


class StepScaler(torch.amp.GradScaler):
    """Skips steps with non-finite gradients without the host waiting.

    It scales the loss only in float16.

    Each step that is left out halves the scale. In float16 it stays above zero; otherwise it is one always, as a scale
    that nothing raises again would vanish over a long run, and its inverse would write NaN into the weights.

    Args:
        device: "cuda" or "cpu".
        precision: in which the network runs.
    """

    def __init__(self, device: str, precision: torch.dtype) -> None:
        self._scales = precision is torch.float16
        scale, interval = (_FIRST_SCALE, _STEPS_BETWEEN_GROWTHS) if self._scales else (1.0, 2**31 - 1)
        super().__init__(device, init_scale=scale, growth_interval=interval)

    def update(self, new_scale: float | Tensor | None = None) -> None:
        """Choose the next step's scale."""
        super().update(new_scale if self._scales else 1.0)
        if self._scales and self._scale is not None:
            self._scale.clamp_(min=_LEAST_SCALE)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state, if it is of the same precision.

        One of another precision is left alone, as on a GPU of another kind.
        """
        if self._scales and state_dict.get("growth_interval") == _STEPS_BETWEEN_GROWTHS:
            super().load_state_dict({**state_dict, "scale": max(state_dict["scale"], _LEAST_SCALE)})


def learning_rate(spec: TrainingSpec, step: int, total: int) -> float:
    """Return the learning rate of ``step`` out of ``total``.

    Steps count from 0.
    """
    if step < spec.warmup_steps:
        return spec.learning_rate * (step + 1) / spec.warmup_steps
    done = (step - spec.warmup_steps) / max(total - spec.warmup_steps, 1)
    done = min(done, 1.0)
    if spec.schedule == "cosine":
        return spec.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))
    if spec.schedule == "polynomial":
        return float(spec.learning_rate * max(1 - done, 0.0) ** 0.9)
    return spec.learning_rate
