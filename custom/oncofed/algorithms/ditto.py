"""Ditto (Li et al., ICML 2021)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from oncofed.algorithms.base import Algorithm
from oncofed.algorithms.fedprox import Proximal
from oncofed.algorithms.registry import register_algorithm
from oncofed.algorithms.settings import AlgorithmSettings


class DittoSettings(AlgorithmSettings):
    """Each site also trains a personal model.

    It is held near the global one (Li et al., ICML 2021).
    """

    name: Literal["ditto"]
    mu: float = Field(0.1, ge=0, le=100, description="weight of half the squared distance to the global model")


@register_algorithm("ditto")
class Ditto(Algorithm[DittoSettings]):
    """The server averages; each client also trains a personal model."""

    Settings = DittoSettings
    needs_only_sums = True

    def personal_hook(self) -> Proximal:
        """Return the proximal term of the personal model."""
        return Proximal(self.settings.mu)
