"""Swarm learning (Warnat-Herresthal et al., Nature 2021)."""

from __future__ import annotations

from typing import Literal

from oncofed.algorithms.base import Algorithm
from oncofed.algorithms.registry import register_algorithm
from oncofed.algorithms.schedule import PeerAveraged
from oncofed.algorithms.settings import AlgorithmSettings


class SwarmSettings(AlgorithmSettings):
    """A drawn site averages the others' updates each round.

    Warnat-Herresthal et al., Nature 2021. The server leads the rounds and keeps the mean model; it sees no
    site's update.
    """

    name: Literal["swarm"]


@register_algorithm("swarm")
class Swarm(Algorithm[SwarmSettings]):
    """In each round one of the sites averages the updates."""

    Settings = SwarmSettings

    @property
    def schedule(self) -> PeerAveraged:
        """A site averages."""
        return PeerAveraged()
