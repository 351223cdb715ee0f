"""SCAFFOLD (Karimireddy et al., ICML 2020, algorithm 1).

``c`` is the server's control variate, ``c_i`` a client's. A client's control is the mean gradient of its round, which
is the paper's option II for plain SGD, and works for any other optimizer too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from oncofed.algorithms.base import Algorithm, Update, weighted_sum
from oncofed.algorithms.registry import register_algorithm
from oncofed.algorithms.settings import AlgorithmSettings
from oncofed.models.weights import WeightLayout, Weights
from oncofed.training.gradient_hook import (
    GradientHook,
    add_to_gradients,
    copies_on_device,
    reached_parameters,
    trained_parameters,
)

_PREFIX = "control."


class ScaffoldSettings(AlgorithmSettings):
    """Control variates correct client drift (Karimireddy et al., 2020)."""

    name: Literal["scaffold"]
    learning_rate: float = Field(1.0, gt=0, le=10, description="of the server")


@register_algorithm("scaffold")
class Scaffold(Algorithm[ScaffoldSettings]):
    """The server's half: moves ``c`` by the controls' mean change."""

    Settings = ScaffoldSettings
    needs_only_sums = True

    def from_clients(self, layout: WeightLayout) -> Weights:
        """Return the shapes of a client's change of control.

        There is one tensor for each trained weight.
        """
        return {_PREFIX + name: layout.weights[name] for name in layout.trained}

    def for_clients(self) -> Weights:
        """Return ``c``; empty in the first round, when zero."""
        return {_PREFIX + name: value for name, value in self.state.items()}

    def for_clients_layout(self, layout: WeightLayout) -> Weights:
        """Return the shapes of ``c``."""
        return self.from_clients(layout)

    def gradient_hook(self) -> ControlVariates:
        """Return the client's half."""
        return ControlVariates()

    def select(
        self, model: Weights, updates: Sequence[Update], shares: Sequence[float], sites: int
    ) -> tuple[Sequence[Update], Sequence[float]]:
        """Move ``c``; sites that did not train count as unchanged."""
        for name, value in model.items():
            if name not in self._parameters:
                continue
            changes = [update.extra[_PREFIX + name] for update in updates if _PREFIX + name in update.extra]
            if changes:
                mean = weighted_sum(changes, [1 / max(sites, len(changes))] * len(changes))
                self._state[name] = self.state_tensor(name, value) + mean
        return updates, shares

    def update_tensor(self, name: str, value: Tensor, deltas: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Step along the mean update."""
        return value + self.settings.learning_rate * weighted_sum(deltas, shares)


class ControlVariates(GradientHook):
    """The client's half: adds ``c - c_i`` to each gradient."""

    def __init__(self) -> None:
        self._local_c: Weights = {}
        self._server_c_on_device: Weights = {}
        self._local_c_on_device: Weights = {}
        self._gradient_sum: Weights = {}
        self._steps = 0

    def start(self, network: nn.Module, from_server: Weights) -> None:
        """Take the server's control, initially zero."""
        trained = trained_parameters(network)
        self._gradient_sum = {name: torch.zeros_like(value) for name, value in trained}
        server_c = {name: from_server[_PREFIX + name] for name, _ in trained if _PREFIX + name in from_server}
        self._server_c_on_device = copies_on_device(trained, server_c)
        self._local_c_on_device = copies_on_device(trained, self._local_c)
        self._steps = 0

    @torch.no_grad()
    def apply(self, network: nn.Module) -> None:
        """Sum up the gradient and correct it.

        A step whose gradient is not finite changes no weight, and counts as zero in the sum.
        """
        self._steps += 1
        names, _, gradients = reached_parameters(network)
        if not gradients:
            return
        largest = torch._foreach_norm([gradient for gradient in gradients if gradient.numel()], math.inf)
        finite = torch.isfinite(torch.stack(largest)).all()
        usable = [torch.where(finite, gradient, 0) for gradient in gradients]
        torch._foreach_add_([self._gradient_sum[name] for name in names], usable)
        add_to_gradients(names, gradients, self._server_c_on_device)
        add_to_gradients(names, gradients, self._local_c_on_device, -1)

    def finish(self, network: nn.Module) -> Weights:
        """Set ``c_i`` to the round's mean gradient; return the change."""
        changes: Weights = {}
        for name, gradient_sum in self._gradient_sum.items():
            control = (gradient_sum / max(self._steps, 1)).cpu()
            changes[_PREFIX + name] = control - self._local_c[name] if name in self._local_c else control.clone()
            self._local_c[name] = control
        return changes

    @property
    def state(self) -> Weights:
        """The client's control."""
        return self._local_c

    def restore(self, state: Weights) -> None:
        """Restore the client's control."""
        self._local_c = dict(state)

    @property
    def round_state(self) -> Weights:
        """The sum of gradients so far, and its step count."""
        sums = {f"seen.{name}": value for name, value in self._gradient_sum.items()}
        return {**sums, "steps": torch.tensor(self._steps)}

    def restore_round(self, state: Weights) -> None:
        """Restore the sum of gradients."""
        self._gradient_sum = {n: state[f"seen.{n}"].to(value.device) for n, value in self._gradient_sum.items()}
        self._steps = int(state["steps"])
