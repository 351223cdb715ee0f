"""How an algorithm changes a client's gradients.

The tensors of a round stay on the network's device from ``start`` on: a step copies nothing between GPU and CPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from oncofed.models.weights import Weights


class GradientHook(ABC):
    """Changes the gradients of each step.

    One object lives as long as its client's trainer. A round is ``start``, any number of ``apply``, ``finish``.
    """

    def start(self, network: nn.Module, from_server: Weights) -> None:
        """Begin a round.

        Args:
            network: with the weights that the round starts from.
            from_server: the extra tensors that came with the model (``Algorithm.for_clients``), by name.
        """
        self._initial = {name: value.detach().clone() for name, value in trained_parameters(network)}

    @torch.no_grad()
    @abstractmethod
    def apply(self, network: nn.Module) -> None:
        """Change the gradients in place, before they are clipped."""

    def finish(self, network: nn.Module) -> Weights:
        """End a round; return extra tensors for the server.

        They are those of ``Algorithm.from_clients``, on the CPU.
        """
        del network
        return {}

    @property
    def state(self) -> Weights:
        """State to keep between rounds: CPU tensors by name."""
        return {}

    def restore(self, state: Weights) -> None:
        """Resume from the state of an earlier process."""
        del state

    @property
    def round_state(self) -> Weights:
        """State to resume within a round, by name.

        In addition to what ``start`` receives.
        """
        return {}

    def restore_round(self, state: Weights) -> None:
        """Resume an earlier process's round, after ``start``."""
        del state


class PersonalHook(GradientHook):
    """Holds a client's personal model near the global one."""

    @abstractmethod
    def hold_near(self, weights: Weights) -> None:
        """Hold near these weights until the next ``start``.

        Args:
            weights: by name, on any device; those that are not trained may be among them.
        """


def trained_parameters(network: nn.Module) -> list[tuple[str, Tensor]]:
    """Return names and values of the parameters that are trained."""
    return [(name, value) for name, value in network.named_parameters() if value.requires_grad]


def reached_parameters(network: nn.Module) -> tuple[list[str], list[Tensor], list[Tensor]]:
    """Return the parameters with gradients.

    Names, values and gradients, as the last backward pass left them.
    """
    reached = [(name, value, value.grad) for name, value in trained_parameters(network) if value.grad is not None]
    return [n for n, _, _ in reached], [v for _, v, _ in reached], [g for _, _, g in reached]


def copies_on_device(parameters: list[tuple[str, Tensor]], values: Weights) -> Weights:
    """Copy parameters' values, keeping device and memory layout."""
    return {n: torch.empty_like(v, requires_grad=False).copy_(values[n]) for n, v in parameters if n in values}


def add_to_gradients(names: list[str], gradients: list[Tensor], values: Weights, sign: int = 1) -> None:
    """Add values to gradients of the same names, in place."""
    known = [(gradient, values[name]) for name, gradient in zip(names, gradients, strict=True) if name in values]
    if known:
        torch._foreach_add_([gradient for gradient, _ in known], [value for _, value in known], alpha=sign)
