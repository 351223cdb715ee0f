"""Sorted values of many updates, weight by weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

# Weights that are processed together: fits into a core's cache, too few for torch to start threads.
BLOCK = 1 << 14


def in_order(deltas: Sequence[Tensor], combine: Callable[[list[Tensor]], Tensor]) -> Tensor:
    """Sort each weight over the updates, and combine.

    Updates are few and weights are many: a sorting network (Batcher, AFIPS 1968) compares whole blocks of weights that
    fit into a core's cache.

    Args:
        deltas: tensors of one shape.
        combine: from the sorted values of a block, one tensor for each update, to one tensor.
    """
    flat = [values.flatten() for values in deltas]
    result = torch.empty_like(flat[0])
    pairs = _network(len(flat))
    for first in range(0, len(result), BLOCK):
        rows = [values[first : first + BLOCK] for values in flat]
        for low, high in pairs:
            rows[low], rows[high] = torch.minimum(rows[low], rows[high]), torch.maximum(rows[low], rows[high])
        result[first : first + BLOCK] = combine(rows)
    return result.view_as(deltas[0])


@lru_cache
def _network(count: int) -> list[tuple[int, int]]:
    """Return the comparisons of Batcher's odd-even merge sort.

    It works for any number of values.
    """
    pairs: list[tuple[int, int]] = []
    size = 1
    while size < count:
        step = size
        while step:
            for first in range(step % size, count - step, 2 * step):
                ends = range(first, min(first + step, count - step))
                # Only within the pair of sorted runs of this size that are merged.
                pairs += [(low, low + step) for low in ends if low // (2 * size) == (low + step) // (2 * size)]
            step //= 2
        size *= 2
    return pairs
