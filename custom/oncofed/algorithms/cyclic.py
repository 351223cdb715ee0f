"""Cyclic weight transfer (Chang et al., JAMIA 2018)."""

from __future__ import annotations

from typing import Literal

from oncofed.algorithms.base import Algorithm
from oncofed.algorithms.registry import register_algorithm
from oncofed.algorithms.schedule import Sequential
from oncofed.algorithms.settings import AlgorithmSettings


class CyclicSettings(AlgorithmSettings):
    """Sites train one model in turn (Chang et al., 2018)."""

    name: Literal["cyclic"]


@register_algorithm("cyclic")
class Cyclic(Algorithm[CyclicSettings]):
    """One site after the other trains the model further."""

    Settings = CyclicSettings

    @property
    def schedule(self) -> Sequential:
        """One site after the other."""
        return Sequential()
