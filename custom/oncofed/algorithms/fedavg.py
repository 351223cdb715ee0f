"""FedAvg (McMahan et al., AISTATS 2017)."""

from __future__ import annotations

from typing import Literal

from oncofed.algorithms.base import Algorithm
from oncofed.algorithms.registry import register_algorithm
from oncofed.algorithms.settings import AlgorithmSettings


class FedAvgSettings(AlgorithmSettings):
    """The mean of the updates, weighted by training cases (McMahan et al., AISTATS 2017)."""

    name: Literal["fedavg"] = "fedavg"


@register_algorithm("fedavg")
class FedAvg(Algorithm[FedAvgSettings]):
    """The mean of the updates, weighted by training cases: what ``Algorithm`` does by itself."""

    Settings = FedAvgSettings
