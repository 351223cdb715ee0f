"""FedAvg (McMahan et al., AISTATS 2017)."""

from __future__ import annotations

from typing import Literal

from oncofed.algorithms.base import Algorithm
from oncofed.algorithms.registry import register_algorithm
from oncofed.algorithms.settings import AlgorithmSettings


class FedAvgSettings(AlgorithmSettings):
    """Mean of the updates, weighted by training cases.

    McMahan et al., AISTATS 2017.
    """

    name: Literal["fedavg"] = "fedavg"


@register_algorithm("fedavg")
class FedAvg(Algorithm[FedAvgSettings]):
    """Mean of the updates, weighted by training cases.

    This is the default of ``Algorithm``.
    """

    Settings = FedAvgSettings
    needs_only_sums = True
