"""FedNova (Wang et al., NeurIPS 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from oncofed.algorithms.base import Algorithm, Update
from oncofed.algorithms.registry import register_algorithm
from oncofed.algorithms.settings import AlgorithmSettings
from oncofed.models.weights import Weights


class FedNovaSettings(AlgorithmSettings):
    """Updates are normalised by their steps before averaging.

    Wang et al., NeurIPS 2020.
    """

    name: Literal["fednova"]


@register_algorithm("fednova")
class FedNova(Algorithm[FedNovaSettings]):
    """Normalised averaging: more steps do not count for more."""

    Settings = FedNovaSettings
    needs_only_sums = True

    def select(
        self, model: Weights, updates: Sequence[Update], shares: Sequence[float], sites: int
    ) -> tuple[Sequence[Update], Sequence[float]]:
        """Divide shares by steps, times the mean number of steps."""
        effective = sum(share * update.steps for share, update in zip(shares, updates, strict=True))
        return updates, [
            share * effective / max(update.steps, 1) for share, update in zip(shares, updates, strict=True)
        ]
