"""How each tensor enters the sum."""

from __future__ import annotations

import math
from collections.abc import Mapping

from oncofed.privacy.secure_aggregation.failures import ProtocolError
from oncofed.privacy.secure_aggregation.ring import Scale, scale_of


class Summands:
    """Factors and scales of tensors; the same at all sites and the server.

    Args:
        factors: prefix of names -> factor in place of a site's share of the mean.
        bounds: name -> largest absolute value, for tensors of 16-bit words.
        bits: 32 allows no bounds.

    Raises:
        ProtocolError: a factor or a bound is not above zero, or there are bounds although words have 32 bits.
    """

    def __init__(self, factors: Mapping[str, float], bounds: Mapping[str, float], bits: int) -> None:
        if bounds and bits == 32:
            raise ProtocolError("bits", "found bounds of 16-bit words, expected 32 bits alone")
        wrong = [name for name, value in {**bounds, **factors}.items() if not (math.isfinite(value) and value > 0)]
        if wrong:
            raise ProtocolError("factor", f"the factor or bound of {wrong[0]} is not above zero")
        self.factors, self.bounds = dict(factors), dict(bounds)

    def is_factored(self, name: str) -> bool:
        """Return whether a tensor has a factor of its own."""
        return any(name.startswith(prefix) for prefix in self.factors)

    def factor(self, name: str, share: float) -> float:
        """Return a site's factor of a tensor.

        Args:
            name: of the tensor.
            share: the site's, of the mean.
        """
        return next((factor for prefix, factor in self.factors.items() if name.startswith(prefix)), share)

    def scale(self, name: str, shares: Mapping[str, float]) -> Scale:
        """Return a tensor's scale.

        Args:
            name: of the tensor.
            shares: of the mean, of all sites of the roster.
        """
        return scale_of(name, self.bounds, sum(self.factor(name, share) for share in shares.values()))
