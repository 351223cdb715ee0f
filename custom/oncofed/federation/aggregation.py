"""Combining the sites' weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from oncofed.errors import FederationError
from oncofed.federation.exchange import Weights


@dataclass(frozen=True)
class Contribution:
    """One site's weights after its turn, and the number of training cases behind them."""

    site: str
    weights: Weights
    cases: int


def weighted_mean(contributions: Sequence[Contribution]) -> Weights:
    """Return the mean of the sites' weights, weighted by training cases (FedAvg; McMahan et al., AISTATS 2017).

    The sum runs in order of the sites' names: floating-point addition is not associative, and the order in which
    updates arrive must not change the model. Integer tensors (counters) are taken from the first site.

    Raises:
        FederationError: there is no contribution, or none with a case.
    """
    ordered = sorted(contributions, key=lambda c: c.site)
    total = sum(c.cases for c in ordered)
    if total <= 0:
        raise FederationError(f"nothing to average: {len(ordered)} contributions with {total} cases in all")
    mean: Weights = {}
    for name, first in ordered[0].weights.items():
        if not first.is_floating_point():
            mean[name] = first.clone()
            continue
        accumulated = first * (ordered[0].cases / total)
        for contribution in ordered[1:]:
            accumulated.add_(contribution.weights[name], alpha=contribution.cases / total)
        mean[name] = accumulated
    return mean
