"""How each tensor enters the sum."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from oncofed.privacy.secure_aggregation.failures import ProtocolError
from oncofed.privacy.secure_aggregation.ring import Scale, check_fit, norm_of, scale_of


class Summands:
    """Factors and scales of tensors; the same at all sites and the server.

    Args:
        factors: prefix of names -> factor in place of a site's share of the mean.
        bounds: name -> largest absolute value, for tensors of 16-bit words.
        bits: 32 allows no bounds.

    Raises:
        ProtocolError: a factor or a bound is not above zero, a tensor has both, or there are bounds although words have
            32 bits.
    """

    def __init__(self, factors: Mapping[str, float], bounds: Mapping[str, float], bits: int) -> None:
        if bounds and bits == 32:
            raise ProtocolError("bits", "found bounds of 16-bit words, expected 32 bits alone")
        wrong = [name for name, value in {**bounds, **factors}.items() if not (math.isfinite(value) and value > 0)]
        if wrong:
            raise ProtocolError("factor", f"the factor or bound of {wrong[0]} is not above zero")
        self.factors, self.bounds = dict(factors), dict(bounds)
        if both := [name for name in bounds if self.is_factored(name)]:
            raise ProtocolError("bits", f"{both[0]} has a bound, expected bounds of tensors in the mean alone")

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

    def check_fit(self, tensors: Mapping[str, Tensor], shares: Mapping[str, float]) -> None:
        """Refuse bounds that do not fit a site's update.

        Args:
            tensors: of the update by name, floating-point, on the CPU.
            shares: of the mean, of all sites of the roster; empty before it is known.

        Raises:
            ProtocolError: as ``ring.check_fit``, or a bound is of no tensor of the update.
        """
        if not self.bounds:
            return
        if unknown := sorted(self.bounds.keys() - tensors.keys()):
            raise ProtocolError("bits", f"{unknown[0]} has a bound, expected bounds of tensors in the mean alone")
        norm = norm_of({name: value for name, value in tensors.items() if not self.is_factored(name)})
        for name in self.bounds:
            check_fit(name, tensors[name], self.scale(name, shares), norm)
