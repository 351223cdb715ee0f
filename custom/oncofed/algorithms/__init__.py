"""Strategies: how a global model follows from what the sites changed. One small class each, its paper named."""

from __future__ import annotations

import inspect
from typing import Any

from oncofed.algorithms.base import Strategy, Update
from oncofed.algorithms.optimizers import FedAdam, FedAvgM, FedBuff, FedDyn, FedNova, FedYogi, Scaffold
from oncofed.algorithms.robust import ClippedMean, Krum, Median, TrimmedMean
from oncofed.federation_plan import StrategySpec

__all__ = ["STRATEGIES", "Strategy", "Update", "build_strategy"]

# These differ from averaging in what sites do, not in how their updates are put together: FedProx, FedBN, Ditto, cyclic
# and swarm.
STRATEGIES: dict[str, type[Strategy]] = {
    "fedavg": Strategy,
    "fedprox": Strategy,
    "fedbn": Strategy,
    "ditto": Strategy,
    "cyclic": Strategy,
    "swarm": Strategy,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "scaffold": Scaffold,
    "fednova": FedNova,
    "feddyn": FedDyn,
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "krum": Krum,
    "clipped_mean": ClippedMean,
    "fedbuff": FedBuff,
}


def build_strategy(spec: StrategySpec, parameters: frozenset[str]) -> Strategy:
    """Return the server's half of a strategy.

    Args:
        spec: its name and settings.
        parameters: names of the weights that are trained.
    """
    strategy = STRATEGIES[spec.name]
    known = inspect.signature(strategy).parameters
    # A setting that the class does not take is for the sites.
    settings: dict[str, Any] = {k: v for k, v in spec.model_dump().items() if k in known and v is not None}
    return strategy(parameters, **settings)
