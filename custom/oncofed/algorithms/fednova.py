"""FedNova (Wang et al., NeurIPS 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from oncofed.algorithms.base import Algorithm, Update
from oncofed.algorithms.registry import register_algorithm
from oncofed.algorithms.settings import AlgorithmSettings
from oncofed.models.weights import Weights


class FedNovaSettings(AlgorithmSettings):
    """Updates are divided by the steps behind them before they are averaged (Wang et al., NeurIPS 2020)."""

    name: Literal["fednova"]


@register_algorithm("fednova")
class FedNova(Algorithm[FedNovaSettings]):
    """Normalised averaging: a site that took more steps does not count for more."""

    Settings = FedNovaSettings

    def select(
        self, model: Weights, updates: Sequence[Update], shares: Sequence[float], sites: int
    ) -> tuple[Sequence[Update], Sequence[float]]:
        """Divide each share by its steps, and multiply by the mean number of steps."""
        effective = sum(share * update.steps for share, update in zip(shares, updates, strict=True))
        return updates, [
            share * effective / max(update.steps, 1) for share, update in zip(shares, updates, strict=True)
        ]
