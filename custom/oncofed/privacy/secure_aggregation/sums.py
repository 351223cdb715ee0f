"""What is summed, and the sum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from oncofed.privacy.secure_aggregation import ring
from oncofed.privacy.secure_aggregation.failures import AggregationFailed
from oncofed.privacy.secure_aggregation.messages import Roster
from oncofed.privacy.secure_aggregation.summands import Summands

_NORM_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Layout:
    """What is summed; the same at the server and at all sites.

    Attributes:
        shapes: of the tensors by name.
        factors: prefix of names -> factor in place of a site's share of the mean.
        bounds: name -> largest absolute value, for tensors of 16-bit words.
    """

    shapes: Mapping[str, tuple[int, ...]]
    factors: Mapping[str, float] = field(default_factory=dict)
    bounds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sum:
    """The result of an attempt.

    Attributes:
        tensors: sum of the survivors' tensors by name (float32), each times its site's share or its own factor.
        sites: whose updates are in it, sorted.
        lost: sites of the roster whose updates are not, sorted.
        weights: shares of the mean of the sites in it; they add up to less than 1 where sites were lost.
        threshold: shares that were needed to unmask it.
        digests: of the masked inputs by site, hexadecimal, for the provenance.
        factored: names of the tensors that have a factor of their own.
    """

    tensors: dict[str, Tensor]
    sites: tuple[str, ...]
    lost: tuple[str, ...]
    weights: dict[str, float]
    threshold: int
    digests: dict[str, str]
    factored: frozenset[str] = frozenset()

    def mean(self) -> dict[str, Tensor]:
        """Return the tensors, divided by the survivors' shares in place.

        Those that have a factor of their own are left as they are. Call it once.
        """
        total = sum(self.weights.values())
        for name, value in self.tensors.items():
            if name not in self.factored:
                value.div_(total)
        return self.tensors


def check_sum_norm(result: Sum, roster: Roster, summands: Summands) -> None:
    """Refuse a sum that is longer than the declared norms allow.

    A sum whose masks were not all removed is uniform, and thus far too long. A site that declares a norm larger than it
    has may add as much as it declares: this finds mistakes, not liars.

    Args:
        result: the sum.
        roster: with the norms that sites declared.
        summands: factors and scales.

    Raises:
        AggregationFailed: it is too long.
    """
    weighed = {name: value for name, value in result.tensors.items() if name not in result.factored}
    declared = {ready.site: ready.norm for ready in roster.readies}
    most = sum(result.weights[site] * declared[site] for site in result.sites)
    # Each site rounds each value by half a step at most.
    half_steps = [summands.scale(name, roster.weights).step / 2 for name in weighed]
    counts = [value.numel() for value in weighed.values()]
    rounding = len(result.sites) * math.sqrt(sum(count * h**2 for count, h in zip(counts, half_steps, strict=True)))
    found = ring.norm_of(weighed)
    if found > most * (1 + _NORM_TOLERANCE) + rounding:
        raise AggregationFailed(
            "Unmasking",
            f"the sum is longer ({found:g}) than the norms that its sites declared allow ({most:g}): a site masked "
            "another update than it declared, or with other keys",
            result.sites,
            revealed=True,
        )
