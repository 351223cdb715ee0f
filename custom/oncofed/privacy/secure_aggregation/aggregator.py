"""The server's half of the protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from oncofed.privacy.secure_aggregation.messages import (
    Confirmation,
    Confirmations,
    ForwardedShares,
    KeyAdvertisement,
    KeyShares,
    MaskedInput,
    Ready,
    Reveal,
    Roster,
    Survivors,
)
from oncofed.privacy.secure_aggregation.rules import Rules, Verify, Weigh, by_cases


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
        factored: prefixes of names that have a factor of their own.
    """

    tensors: dict[str, Tensor]
    sites: tuple[str, ...]
    lost: tuple[str, ...]
    weights: dict[str, float]
    threshold: int
    digests: dict[str, str]
    factored: tuple[str, ...] = ()

    def mean(self) -> dict[str, Tensor]:
        """Return the tensors, divided by the survivors' shares in place.

        Those that have a factor of their own are left as they are.
        """
        raise NotImplementedError


class Aggregator:
    """The server in the sums of one job.

    It holds one sum, whatever the number of sites. Sites whose messages break the protocol are left out
    (``refused``); an attempt fails only where too few are left.

    Args:
        job: its identifier.
        plan_digest: of what the job's sites run.
        rules: of the job; the peers of sites' policies are their own.
        verify: gives the key of the site that an advertisement names, or raises ProtocolError.
        weigh: each site's share of the mean from all READYs; the same function as at all sites.

    Attributes:
        refused: why a site was left out of this attempt, by its name.
    """

    def __init__(self, job: str, plan_digest: str, rules: Rules, *, verify: Verify, weigh: Weigh = by_cases) -> None:
        self._job, self._plan_digest, self._rules = job, plan_digest, rules
        self._verify, self._weigh = verify, weigh
        self.refused: dict[str, str] = {}

    def peers(self, advertisements: Sequence[KeyAdvertisement]) -> tuple[KeyAdvertisement, ...]:
        """Return the advertisements to relay to all sites.

        May be called again between rounds.
        """
        raise NotImplementedError

    def begin(self, round: int, attempt: int, base_digest: str, layout: Layout) -> None:  # noqa: A002
        """Begin an attempt at a round's sum.

        Args:
            round: number.
            attempt: number, from 1; higher than any before in this round.
            base_digest: as sites should state it in READY.
            layout: what is summed.

        Raises:
            AggregationFailed: shares of this round may have been revealed, so that a new attempt is not allowed.
        """
        raise NotImplementedError

    def roster(self, readies: Sequence[Ready]) -> Roster:
        """Return who takes part, for all of them."""
        raise NotImplementedError

    def forward(self, shares: Sequence[KeyShares]) -> dict[str, ForwardedShares]:
        """Return the sealed shares for each site."""
        raise NotImplementedError

    def add(self, masked: MaskedInput) -> None:
        """Add a site's masked update.

        Raises:
            ProtocolError: it does not fit; the sum is unchanged, the site is left out.
        """
        raise NotImplementedError

    def survivors(self) -> Survivors:
        """Return whose updates came; nothing is added any more.

        From here on ``state`` can be kept.
        """
        raise NotImplementedError

    def confirmations(self, confirmations: Sequence[Confirmation]) -> Confirmations:
        """Return the valid signatures, for all survivors."""
        raise NotImplementedError

    def unmask(self, reveals: Sequence[Reveal]) -> Sum:
        """Remove the masks, and check the sum."""
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Return the attempt: plain values and tensors, no secrets.

        Raises:
            AggregationFailed: the survivors are not known yet; a restarted server begins a new attempt instead.
        """
        raise NotImplementedError

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with an earlier process's attempt: same survivors only.

        ``survivors``, ``confirmations`` and ``unmask`` follow as before.
        """
        raise NotImplementedError
