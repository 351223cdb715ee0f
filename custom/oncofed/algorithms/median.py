"""Coordinate-wise median and trimmed mean (Yin et al., ICML 2018)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from oncofed.algorithms.base import Algorithm, weighted_sum
from oncofed.algorithms.order_statistics import in_order
from oncofed.algorithms.registry import register_algorithm
from oncofed.algorithms.settings import AlgorithmSettings


class MedianSettings(AlgorithmSettings):
    """Coordinate-wise median (Yin et al., ICML 2018)."""

    name: Literal["median"]


@register_algorithm("median")
class Median(Algorithm[MedianSettings]):
    """Coordinate-wise median.

    It is robust while fewer than half of the sites are bad.
    """

    Settings = MedianSettings

    def update_tensor(self, name: str, value: Tensor, deltas: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Add the median change.

        For an even number, this is the mean of the middle two.
        """
        middle = len(deltas) // 2
        return in_order(deltas, lambda ordered: (ordered[middle] + ordered[-middle - 1]) / 2).add_(value)


class TrimmedMeanSettings(AlgorithmSettings):
    """Coordinate-wise trimmed mean (Yin et al., ICML 2018)."""

    name: Literal["trimmed_mean"]
    trim: float = Field(0.25, gt=0, lt=0.5, description="share of the sites that is left out at each end")


@register_algorithm("trimmed_mean")
class TrimmedMean(Algorithm[TrimmedMeanSettings]):
    """Mean of each weight without the extremes."""

    Settings = TrimmedMeanSettings

    def update_tensor(self, name: str, value: Tensor, deltas: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Add the mean of the remaining changes.

        From three updates on, at least one is left out at each end.
        """
        count = len(deltas)
        cut = min(max(math.floor(self.settings.trim * count), 1), (count - 1) // 2)
        share = 1 / (count - 2 * cut)
        middle = [share] * (count - 2 * cut)
        return in_order(deltas, lambda ordered: weighted_sum(ordered[cut : count - cut], middle)).add_(value)
