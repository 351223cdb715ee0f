"""What a site adds to its gradients so that its model does not drift from the others'."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from oncofed.models.weights import Weights


class Correction(ABC):
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


class Proximal(Correction):
    """The gradient of ``mu / 2`` times the squared distance to the turn's first weights (FedProx; Li et al., 2020).

    Args:
        mu: the weight.
        towards: hold near these weights, not the turn's first; for a personal model (Ditto; Li et al., ICML 2021).
    """

    def __init__(self, mu: float) -> None:
        self._mu = mu
        self.towards: Weights | None = None

    @torch.no_grad()
    def apply(self, network: nn.Module) -> None:
        """Pull each weight back to where it started, or towards the weights that were set."""
        for name, value in _trained(network):
            if value.grad is not None:
                centre = self._from[name] if self.towards is None else self.towards[name].to(value.device)
                value.grad.add_(value - centre, alpha=self._mu)


class ControlVariates(Correction):
    """SCAFFOLD's correction (Karimireddy et al., ICML 2020): the server's control less this site's own."""

    def __init__(self) -> None:
        self._own: Weights = {}
        self._server: Weights = {}
        self._seen: Weights = {}
        self._steps = 0

    def start(self, network: nn.Module, given: Weights) -> None:
        """Take the server's control, zero at first."""
        self._seen = {name: torch.zeros_like(value) for name, value in _trained(network)}
        self._server = {
            name: given[f"control.{name}"].to(value.device)
            for name, value in _trained(network)
            if f"control.{name}" in given
        }
        self._steps = 0

    @torch.no_grad()
    def apply(self, network: nn.Module) -> None:
        """Remember the gradient, and add to it what the other sites see and this one does not."""
        self._steps += 1
        for name, value in _trained(network):
            if value.grad is None:
                continue
            finite = torch.isfinite(value.grad).all()
            self._seen[name].add_(torch.where(finite, value.grad, 0))
            if name in self._server:
                value.grad.add_(self._server[name])
            if name in self._own:
                value.grad.sub_(self._own[name].to(value.device))

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


class DynamicRegulariser(Correction):
    """FedDyn's correction (Acar et al., ICLR 2021, algorithm 1); this site's half."""

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha
        self._bent: Weights = {}

    @torch.no_grad()
    def apply(self, network: nn.Module) -> None:
        """Hold near the turn's first weights, less the linear term that earlier turns left."""
        for name, value in _trained(network):
            if value.grad is not None:
                value.grad.add_(value - self._from[name], alpha=self._alpha)
                if name in self._bent:
                    value.grad.sub_(self._bent[name].to(value.device))

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
