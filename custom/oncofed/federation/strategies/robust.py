"""Strategies that bad updates cannot pull away."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from oncofed.errors import FederationError
from oncofed.federation.strategies.base import Strategy, Update
from oncofed.models.weights import Weights


class Median(Strategy):
    """The median of each weight (Yin et al., ICML 2018). It holds while fewer than half of the sites are bad."""

    def move(self, name: str, value: Tensor, deltas: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Move by the median change; of an even number, by the mean of the middle two."""
        ordered = torch.stack(list(deltas)).sort(dim=0).values
        middle = len(deltas) // 2
        return value + (ordered[middle] + ordered[-middle - 1]) / 2


class TrimmedMean(Strategy):
    """The mean of each weight without the largest and the smallest (Yin et al., ICML 2018)."""

    def __init__(self, parameters: frozenset[str], trim: float = 0.25) -> None:
        super().__init__(parameters)
        self._trim = trim

    def move(self, name: str, value: Tensor, deltas: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Move by the mean change of those that are left; at least one is left out at each end of three."""
        count = len(deltas)
        cut = min(max(math.floor(self._trim * count), 1), (count - 1) // 2)
        ordered = torch.stack(list(deltas)).sort(dim=0).values
        return value + ordered[cut : count - cut].mean(dim=0)


class Krum(Strategy):
    """Multi-Krum: the mean of the updates that lie nearest to the others (Blanchard et al., NeurIPS 2017).

    Args:
        parameters: see ``Strategy``.
        poisoned: sites that may be bad, f.
        keep: updates to average; None: all but f. One is the paper's Krum.
    """

    def __init__(self, parameters: frozenset[str], poisoned: int = 1, keep: int | None = None) -> None:
        super().__init__(parameters)
        self._poisoned, self._keep = poisoned, keep

    def begin(
        self, model: Weights, updates: Sequence[Update], shares: Sequence[float], sites: int
    ) -> tuple[Sequence[Update], Sequence[float]]:
        """Choose the updates whose nearest n - f - 2 neighbours are nearest."""
        count, poisoned = len(updates), self._poisoned
        if count < 2 * poisoned + 3:
            raise FederationError(
                f"krum with {poisoned} bad sites needs {2 * poisoned + 3} updates, found {count}. Ask more sites, or "
                "set strategy.poisoned lower, or take strategy: median"
            )
        apart = torch.zeros(count, count, dtype=torch.float64)
        for name in sorted(self._parameters):
            flat = torch.stack([update.delta[name].flatten().double() for update in updates])
            apart += torch.cdist(flat, flat).square()
        nearest = apart.sort(dim=1).values[:, 1 : count - poisoned - 1]
        order = nearest.sum(dim=1).argsort(stable=True).tolist()
        kept = sorted(order[: self._keep or count - poisoned])
        total = sum(shares[index] for index in kept)
        return [updates[index] for index in kept], [shares[index] / total for index in kept]


class ClippedMean(Strategy):
    """Updates longer than the median one are shortened to it (norm clipping; Sun et al., 2019, arXiv:1911.07963)."""

    def begin(
        self, model: Weights, updates: Sequence[Update], shares: Sequence[float], sites: int
    ) -> tuple[Sequence[Update], Sequence[float]]:
        """Find each update's length, and shorten by its share: a share less weighs like an update shorter."""
        lengths = [length(update, self._parameters) for update in updates]
        usual = statistics.median(lengths)
        return updates, [
            share * min(1.0, usual / max(norm, 1e-30)) for share, norm in zip(shares, lengths, strict=True)
        ]


def length(update: Update, parameters: frozenset[str]) -> float:
    """Return the Euclidean norm of an update over all trained weights."""
    return math.sqrt(sum(float(update.delta[name].double().square().sum()) for name in sorted(parameters)))
