"""FedProx (Li et al., MLSys 2020)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from oncofed.algorithms.base import Algorithm
from oncofed.algorithms.registry import register_algorithm
from oncofed.algorithms.settings import AlgorithmSettings
from oncofed.models.weights import Weights
from oncofed.training.gradient_hook import PersonalHook, copies_on_device, reached_parameters


class FedProxSettings(AlgorithmSettings):
    """A proximal term holds sites near the global model.

    Li et al., MLSys 2020.
    """

    name: Literal["fedprox"]
    mu: float = Field(0.01, ge=0, le=100, description="weight of half the squared distance to the global model")


@register_algorithm("fedprox")
class FedProx(Algorithm[FedProxSettings]):
    """Clients are held near the global model; the server averages."""

    Settings = FedProxSettings
    needs_only_sums = True

    def gradient_hook(self) -> Proximal:
        """Return the proximal term."""
        return Proximal(self.settings.mu)


class Proximal(PersonalHook):
    """The proximal term's gradient.

    The term is ``mu / 2`` times the squared distance to the round's initial weights.

    Args:
        mu: the weight.
    """

    def __init__(self, mu: float) -> None:
        self._mu = mu
        self._centre: Weights = {}

    def start(self, network: nn.Module, from_server: Weights) -> None:
        """Hold near the round's initial weights."""
        super().start(network, from_server)
        self._centre = self._initial

    def hold_near(self, weights: Weights) -> None:
        """Hold near these weights until the next ``start``."""
        self._centre = copies_on_device(list(self._initial.items()), weights)

    @torch.no_grad()
    def apply(self, network: nn.Module) -> None:
        """Pull each weight back to the centre."""
        names, values, gradients = reached_parameters(network)
        if gradients:
            distances = torch._foreach_sub(values, [self._centre[name] for name in names])
            torch._foreach_add_(gradients, distances, alpha=self._mu)
