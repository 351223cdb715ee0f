"""Agreement: quadratic weighted kappa and Lin's concordance correlation.

With squared distances as weights both are the same: twice the covariance by the sum of the variances and the squared
difference of the means (Cohen, 1968; Lin, Biometrics 1989; Fleiss and Cohen, 1973). Means, variances and the covariance
follow from sums over patients, and sums of several sites add up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Moments:
    """Sums over pairs of a stated and a predicted number.

    Attributes:
        count: pairs.
        x: sum of the stated numbers.
        y: of the predicted ones.
        xx: of the stated ones' squares.
        yy: of the predicted ones' squares.
        xy: of the products.
    """

    count: float
    x: float
    y: float
    xx: float
    yy: float
    xy: float

    @classmethod
    def of(
        cls, stated: NDArray[np.float64], predicted: NDArray[np.float64], weights: NDArray[np.float64] | None = None
    ) -> Moments:
        """Return the sums of pairs, each counted by its weight."""
        w = np.ones(len(stated)) if weights is None else weights
        parts = (w, w * stated, w * predicted, w * stated**2, w * predicted**2, w * stated * predicted)
        return cls(*(float(part.sum()) for part in parts))

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(a + b for a, b in zip(self.parts, other.parts, strict=True)))

    @property
    def parts(self) -> tuple[float, ...]:
        """The sums in the order of the attributes."""
        return (self.count, self.x, self.y, self.xx, self.yy, self.xy)

    @property
    def agreement(self) -> float | None:
        """Quadratic weighted kappa, or Lin's concordance; None without variance."""
        mean_x, mean_y = self.x / self.count, self.y / self.count
        spread = self.xx / self.count - mean_x**2 + self.yy / self.count - mean_y**2 + (mean_x - mean_y) ** 2
        if spread < 1e-12:
            return None
        return max(min(2 * (self.xy / self.count - mean_x * mean_y) / spread, 1.0), -1.0)

    @property
    def squared_error(self) -> float:
        """Mean squared difference."""
        return max((self.xx + self.yy - 2 * self.xy) / self.count, 0.0)

    @property
    def bias(self) -> float:
        """Mean of predicted less stated."""
        return (self.y - self.x) / self.count

    @property
    def spread_of_difference(self) -> float:
        """Sample standard deviation of predicted less stated."""
        if self.count < 2:
            return math.nan
        return math.sqrt(max(self.squared_error - self.bias**2, 0.0) * self.count / (self.count - 1))

    @property
    def explained(self) -> float | None:
        """R², the explained share of variance; None without variance."""
        variance = self.xx / self.count - (self.x / self.count) ** 2
        return 1 - self.squared_error / variance if variance > 1e-12 else None
