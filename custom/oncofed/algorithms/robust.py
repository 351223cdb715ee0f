"""Strategies that bad updates cannot pull away."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from oncofed.algorithms.base import Strategy, Update, weighted_sum
from oncofed.errors import FederationError
from oncofed.models.weights import Weights, sum_of_squares

# Weights that are looked at together: small enough for a core's cache, too small for torch to start threads.
_BLOCK = 1 << 14


class Median(Strategy):
    """The median of each weight (Yin et al., ICML 2018). It holds while fewer than half of the sites are bad."""

    def move(self, name: str, value: Tensor, deltas: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Move by the median change; of an even number, by the mean of the middle two."""
        middle = len(deltas) // 2
        return in_order(deltas, lambda ordered: (ordered[middle] + ordered[-middle - 1]) / 2).add_(value)


class TrimmedMean(Strategy):
    """The mean of each weight without the largest and the smallest (Yin et al., ICML 2018)."""

    def __init__(self, parameters: frozenset[str], trim: float = 0.25) -> None:
        super().__init__(parameters)
        self._trim = trim

    def move(self, name: str, value: Tensor, deltas: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Move by the mean change of those that are left; at least one is left out at each end of three."""
        count = len(deltas)
        cut = min(max(math.floor(self._trim * count), 1), (count - 1) // 2)
        share = 1 / (count - 2 * cut)
        middle = [share] * (count - 2 * cut)
        return in_order(deltas, lambda ordered: weighted_sum(ordered[cut : count - cut], middle)).add_(value)


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
        products = torch.zeros(count, count, dtype=torch.float64)
        for name in sorted(self._parameters):
            flat = [update.delta[name].flatten() for update in updates]
            for first in range(0, flat[0].numel(), _BLOCK):
                block = torch.stack([values[first : first + _BLOCK] for values in flat]).double()
                products += block @ block.T
        squares = products.diagonal()
        apart = (squares[:, None] + squares - 2 * products).clamp_(min=0).fill_diagonal_(0)
        nearest = apart.sort(dim=1).values[:, 1 : count - poisoned - 1]
        order = nearest.sum(dim=1).argsort(stable=True).tolist()
        kept = sorted(order[: self._keep or count - poisoned])
        total = sum(shares[index] for index in kept)
        return [updates[index] for index in kept], [shares[index] / total for index in kept]


def in_order(deltas: Sequence[Tensor], combine: Callable[[list[Tensor]], Tensor]) -> Tensor:
    """Sort each weight over the updates, and return what ``combine`` makes of them, smallest first.

    Updates are few and weights are many: a sorting network (Batcher, AFIPS 1968) compares whole blocks of weights at a
    time, that fit into a core's cache.

    Args:
        deltas: tensors of one shape.
        combine: from the sorted values of a block, one tensor for each update, to one tensor.
    """
    flat = [values.flatten() for values in deltas]
    result = torch.empty_like(flat[0])
    pairs = _network(len(flat))
    for first in range(0, len(result), _BLOCK):
        rows = [values[first : first + _BLOCK] for values in flat]
        for low, high in pairs:
            rows[low], rows[high] = torch.minimum(rows[low], rows[high]), torch.maximum(rows[low], rows[high])
        result[first : first + _BLOCK] = combine(rows)
    return result.view_as(deltas[0])


@lru_cache
def _network(count: int) -> list[tuple[int, int]]:
    """Return the pairs that Batcher's odd-even merge sort compares, for any number of values."""
    pairs: list[tuple[int, int]] = []
    size = 1
    while size < count:
        step = size
        while step:
            for first in range(step % size, count - step, 2 * step):
                ends = range(first, min(first + step, count - step))
                # Only within what two sorted runs of this size make together.
                pairs += [(low, low + step) for low in ends if low // (2 * size) == (low + step) // (2 * size)]
            step //= 2
        size *= 2
    return pairs


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
    known = update.squares
    return math.sqrt(
        sum(known[name] if name in known else sum_of_squares(update.delta[name]) for name in sorted(parameters))
    )
