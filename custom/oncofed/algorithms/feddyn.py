"""FedDyn (Acar et al., ICLR 2021, algorithm 1).

``h`` is the linear term of a client's loss; on the server, their mean.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from oncofed.algorithms.base import Algorithm, Update, weighted_sum
from oncofed.algorithms.registry import register_algorithm
from oncofed.algorithms.settings import AlgorithmSettings
from oncofed.models.weights import Weights
from oncofed.training.gradient_hook import (
    GradientHook,
    add_to_gradients,
    copies_on_device,
    reached_parameters,
    trained_parameters,
)

_SUMMED = "summed."


class FedDynSettings(AlgorithmSettings):
    """A dynamic regulariser aligns sites (Acar et al., ICLR 2021).

    It makes local minima agree with the global one.
    """

    name: Literal["feddyn"]
    alpha: float = Field(0.01, gt=0, le=10, description="strength of the regulariser")


@register_algorithm("feddyn")
class FedDyn(Algorithm[FedDynSettings]):
    """The server's half: the mean model minus ``h / alpha``."""

    Settings = FedDynSettings
    needs_only_sums = True
    follows_last_step = True
    _sites = 1
    _summed: Mapping[str, Tensor] = MappingProxyType({})

    def gradient_hook(self) -> DynamicRegulariser:
        """Return the client's half."""
        return DynamicRegulariser(self.settings.alpha)

    def select(
        self, model: Weights, updates: Sequence[Update], shares: Sequence[float], sites: int
    ) -> tuple[Sequence[Update], Sequence[float]]:
        """Store the number of sites.

        Those that did not train count as unchanged.
        """
        self._sites = max(sites, len(updates))
        # A sum over the sites, in place of their updates.
        self._summed = updates[0].extra
        return updates, shares

    def summands(self, delta: Weights, extra: Weights, trained: Collection[str]) -> Weights:
        """Return the update itself, since the linear term weighs all sites alike."""
        return {_SUMMED + name: delta[name] for name in sorted(trained)}

    def update_tensor(self, name: str, value: Tensor, deltas: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Return the mean model minus the linear terms."""
        h = self.state_tensor(f"bent.{name}", value)
        summed = self._summed.get(_SUMMED + name)
        mean = weighted_sum(deltas, [1 / self._sites] * len(deltas)) if summed is None else summed / self._sites
        h.sub_(mean, alpha=self.settings.alpha)
        return value + weighted_sum(deltas, shares) - h / self.settings.alpha


class DynamicRegulariser(GradientHook):
    """The client's half: a proximal and a linear term.

    Args:
        alpha: strength of the regulariser.
    """

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha
        self._h: Weights = {}
        self._h_on_device: Weights = {}

    def start(self, network: nn.Module, from_server: Weights) -> None:
        """Hold near the round's initial weights."""
        super().start(network, from_server)
        self._h_on_device = copies_on_device(trained_parameters(network), self._h)

    @torch.no_grad()
    def apply(self, network: nn.Module) -> None:
        """Pull weights to the round's initial ones, and subtract ``h``."""
        names, values, gradients = reached_parameters(network)
        if gradients:
            distances = torch._foreach_sub(values, [self._initial[name] for name in names])
            torch._foreach_add_(gradients, distances, alpha=self._alpha)
            add_to_gradients(names, gradients, self._h_on_device, -1)

    def finish(self, network: nn.Module) -> Weights:
        """Update ``h`` by the round's change.

        The server derives the same change from the update itself.
        """
        for name, value in trained_parameters(network):
            change = (value.detach() - self._initial[name]).cpu() * -self._alpha
            self._h[name] = self._h[name] + change if name in self._h else change
        return {}

    @property
    def state(self) -> Weights:
        """The client's linear term."""
        return self._h

    def restore(self, state: Weights) -> None:
        """Restore the client's linear term."""
        self._h = dict(state)
