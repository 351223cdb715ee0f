"""What a site adds to its gradients so that its model does not drift from the others'.

What a turn needs lies where the network is from ``start`` on: a step copies nothing between a GPU and the CPU.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from oncofed.models.weights import Weights


class GradientHook(ABC):
    """Changes the gradients of each step of a turn. One object lives as long as its site's trainer.

    A turn is ``start``, any number of ``apply``, ``finish``.
    """

    def start(self, network: nn.Module, given: Weights) -> None:
        """Begin a turn.

        Args:
            network: with the weights that the turn starts from.
            given: what the server sent beside the model, by name.
        """
        self._from = {name: value.detach().clone() for name, value in _trained(network)}

    @torch.no_grad()
    @abstractmethod
    def apply(self, network: nn.Module) -> None:
        """Change the gradients in place, before they are clipped."""

    def finish(self, network: nn.Module) -> Weights:
        """End a turn and return what the server is to know of it, by name, on the CPU."""
        del network
        return {}

    @property
    def state(self) -> Weights:
        """What a later process needs between turns, by name, on the CPU."""
        return {}

    def restore(self, state: Weights) -> None:
        """Go on from the state of an earlier process."""
        del state

    @property
    def turn(self) -> Weights:
        """What a later process needs within a turn, beside what ``start`` is given, by name."""
        return {}

    def restore_turn(self, turn: Weights) -> None:
        """Go on within the turn of an earlier process, after ``start``."""
        del turn


class Proximal(GradientHook):
    """The gradient of ``mu / 2`` times the squared distance to the turn's first weights (FedProx; Li et al., 2020).

    Args:
        mu: the weight.
    """

    def __init__(self, mu: float) -> None:
        self._mu = mu
        self._centre: Weights = {}

    def start(self, network: nn.Module, given: Weights) -> None:
        """Hold near the weights that the turn starts from."""
        super().start(network, given)
        self._centre = self._from

    def hold_near(self, weights: Weights) -> None:
        """Hold near these weights until the next ``start``; for a personal model (Ditto; Li et al., ICML 2021).

        Args:
            weights: by name, of any device; those that are not trained may be among them.
        """
        self._centre = _beside(list(self._from.items()), weights)

    @torch.no_grad()
    def apply(self, network: nn.Module) -> None:
        """Pull each weight back to the centre."""
        names, values, grads = _with_gradients(network)
        if grads:
            apart = torch._foreach_sub(values, [self._centre[name] for name in names])
            torch._foreach_add_(grads, apart, alpha=self._mu)


class ControlVariates(GradientHook):
    """SCAFFOLD's correction (Karimireddy et al., ICML 2020): the server's control less this site's own."""

    def __init__(self) -> None:
        self._own: Weights = {}
        self._subtracted: Weights = {}
        self._added: Weights = {}
        self._seen: Weights = {}
        self._steps = 0

    def start(self, network: nn.Module, given: Weights) -> None:
        """Take the server's control, zero at first."""
        trained = _trained(network)
        self._seen = {name: torch.zeros_like(value) for name, value in trained}
        server = {name: given[f"control.{name}"] for name, _ in trained if f"control.{name}" in given}
        self._added = _beside(trained, server)
        self._subtracted = _beside(trained, self._own)
        self._steps = 0

    @torch.no_grad()
    def apply(self, network: nn.Module) -> None:
        """Remember the gradient, and add to it what the other sites see and this one does not.

        A step with a gradient that is not finite, which changes no weight, is remembered as zero.
        """
        self._steps += 1
        names, _, grads = _with_gradients(network)
        if not grads:
            return
        largest = torch._foreach_norm([grad for grad in grads if grad.numel()], math.inf)
        finite = torch.isfinite(torch.stack(largest)).all()
        torch._foreach_add_([self._seen[name] for name in names], [torch.where(finite, grad, 0) for grad in grads])
        _add(names, grads, self._added)
        _add(names, grads, self._subtracted, -1)

    def finish(self, network: nn.Module) -> Weights:
        """Set this site's control to the mean gradient of the turn and return by how much it changed."""
        changes: Weights = {}
        for name, seen in self._seen.items():
            control = (seen / max(self._steps, 1)).cpu()
            changes[f"control.{name}"] = control - self._own[name] if name in self._own else control.clone()
            self._own[name] = control
        return changes

    @property
    def state(self) -> Weights:
        """This site's control."""
        return self._own

    def restore(self, state: Weights) -> None:
        """Take up this site's control."""
        self._own = dict(state)

    @property
    def turn(self) -> Weights:
        """The sum of the gradients so far, and of how many steps."""
        return {**{f"seen.{name}": value for name, value in self._seen.items()}, "steps": torch.tensor(self._steps)}

    def restore_turn(self, turn: Weights) -> None:
        """Take up the sum of the gradients."""
        self._seen = {name: turn[f"seen.{name}"].to(value.device) for name, value in self._seen.items()}
        self._steps = int(turn["steps"])


class DynamicRegulariser(GradientHook):
    """FedDyn's correction (Acar et al., ICLR 2021, algorithm 1); this site's half."""

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha
        self._bent: Weights = {}
        self._subtracted: Weights = {}

    def start(self, network: nn.Module, given: Weights) -> None:
        """Hold near the weights that the turn starts from."""
        super().start(network, given)
        self._subtracted = _beside(_trained(network), self._bent)

    @torch.no_grad()
    def apply(self, network: nn.Module) -> None:
        """Hold near the turn's first weights, less the linear term that earlier turns left."""
        names, values, grads = _with_gradients(network)
        if grads:
            apart = torch._foreach_sub(values, [self._from[name] for name in names])
            torch._foreach_add_(grads, apart, alpha=self._alpha)
            _add(names, grads, self._subtracted, -1)

    def finish(self, network: nn.Module) -> Weights:
        """Move the linear term by what this turn changed. The server can tell it from the update itself."""
        for name, value in _trained(network):
            moved = (value.detach() - self._from[name]).cpu() * -self._alpha
            self._bent[name] = self._bent[name] + moved if name in self._bent else moved
        return {}

    @property
    def state(self) -> Weights:
        """This site's linear term."""
        return self._bent

    def restore(self, state: Weights) -> None:
        """Take up this site's linear term."""
        self._bent = dict(state)


def _trained(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in network.named_parameters() if value.requires_grad]


def _with_gradients(network: nn.Module) -> tuple[list[str], list[Tensor], list[Tensor]]:
    """Return names, values and gradients of the weights that the last backward pass reached."""
    reached = [(name, value, value.grad) for name, value in _trained(network) if value.grad is not None]
    return [n for n, _, _ in reached], [v for _, v, _ in reached], [g for _, _, g in reached]


def _beside(trained: list[tuple[str, Tensor]], values: Weights) -> Weights:
    """Return copies of those of the values that there are, each on its weight's device and in its layout."""
    return {n: torch.empty_like(v, requires_grad=False).copy_(values[n]) for n, v in trained if n in values}


def _add(names: list[str], grads: list[Tensor], values: Weights, sign: int = 1) -> None:
    """Add to the gradients, in place, those of the values that there are."""
    known = [(grad, values[name]) for name, grad in zip(names, grads, strict=True) if name in values]
    if known:
        torch._foreach_add_([grad for grad, _ in known], [value for _, value in known], alpha=sign)
