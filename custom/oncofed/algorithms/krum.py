"""Krum and Multi-Krum (Blanchard et al., NeurIPS 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field

from oncofed.algorithms.base import Algorithm, Update
from oncofed.algorithms.order_statistics import BLOCK
from oncofed.algorithms.registry import register_algorithm
from oncofed.algorithms.settings import AlgorithmSettings
from oncofed.errors import FederationError
from oncofed.models.weights import Weights


class KrumSettings(AlgorithmSettings):
    """Mean of the updates nearest to the others.

    Blanchard et al., NeurIPS 2017.
    """

    name: Literal["krum"]
    poisoned: int = Field(1, ge=0, le=500, description="sites that may be bad")
    keep: int | None = Field(None, ge=1, le=1000, description="updates to average; null: all but the bad; 1: Krum")


@register_algorithm("krum")
class Krum(Algorithm[KrumSettings]):
    """Mean of the updates nearest to the others."""

    Settings = KrumSettings

    @property
    def fewest_updates(self) -> int:
        """2 f + 3, where f sites may be bad."""
        return 2 * self.settings.poisoned + 3

    def select(
        self, model: Weights, updates: Sequence[Update], shares: Sequence[float], sites: int
    ) -> tuple[Sequence[Update], Sequence[float]]:
        """Choose the updates with the nearest neighbours.

        Each is scored by its n - f - 2 nearest ones.
        """
        count, poisoned = len(updates), self.settings.poisoned
        if count < self.fewest_updates:
            raise FederationError(
                f"krum with {poisoned} bad sites needs {self.fewest_updates} updates, found {count}. Ask more sites, "
                "or set strategy.poisoned lower, or take strategy: median"
            )
        squared = self._squared_distances(updates)
        nearest = squared.sort(dim=1).values[:, 1 : count - poisoned - 1]
        order = nearest.sum(dim=1).argsort(stable=True).tolist()
        kept = sorted(order[: self.settings.keep or count - poisoned])
        total = sum(shares[index] for index in kept)
        return [updates[index] for index in kept], [shares[index] / total for index in kept]

    def _squared_distances(self, updates: Sequence[Update]) -> torch.Tensor:
        """Return pairwise squared distances, ``(update, update)`` float64."""
        products = torch.zeros(len(updates), len(updates), dtype=torch.float64)
        for name in sorted(self._parameters):
            flat = [update.delta[name].flatten() for update in updates]
            for first in range(0, flat[0].numel(), BLOCK):
                block = torch.stack([values[first : first + BLOCK] for values in flat]).double()
                products += block @ block.T
        squares = products.diagonal()
        return (squares[:, None] + squares - 2 * products).clamp_(min=0).fill_diagonal_(0)
