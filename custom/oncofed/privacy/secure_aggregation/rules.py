"""The rules that a participant holds the server to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from oncofed.privacy.secure_aggregation.failures import ProtocolError
from oncofed.privacy.secure_aggregation.messages import MOST_SITES, KeyAdvertisement, Ready

# Of two sites each learns the other's update from the sum.
FEWEST_SITES = 3


@dataclass(frozen=True)
class VerifyKey:
    """A certified site's key.

    Attributes:
        fingerprint: of its certificate (SHA-256), ``AB:CD:...``.
        is_signed: whether a signature, its second argument, is of the first and by this key.
    """

    fingerprint: str
    is_signed: Callable[[bytes, bytes], bool]


# Gives the key of the site that an advertisement names, or raises ProtocolError: root, revocation and name are its
# business.
Verify = Callable[[KeyAdvertisement], VerifyKey]
# Gives each site's share of the mean, by name, from all signed READYs.
Weigh = Callable[[Mapping[str, Ready]], dict[str, float]]


@dataclass(frozen=True)
class Rules:
    """What the job and a site's policy demand of a sum.

    Attributes:
        minimum_sites: fewest sites in a sum, of the job.
        smallest_sum: fewest sites in a sum, of the site's policy.
        peers: fingerprints of certificates; at least ``smallest_sum - 1`` of the other sites in a sum must be of these.
            None: any site of the alliance.
        lost: sites of a roster that its sum may lack, so that it has fewer than ``minimum_sites``.
        bits: of a word: 32, or 16 for tensors with a bound.

    Raises:
        ValueError: a value is out of its range.
    """

    minimum_sites: int = FEWEST_SITES
    smallest_sum: int = FEWEST_SITES
    peers: frozenset[str] | None = None
    lost: int = 0
    bits: int = 32

    def __post_init__(self) -> None:
        if self.bits not in {16, 32}:
            raise ValueError(f"bits: found {self.bits}, expected 16 or 32")
        for name, value in (("minimum_sites", self.minimum_sites), ("smallest_sum", self.smallest_sum)):
            if not FEWEST_SITES <= value <= MOST_SITES:
                raise ValueError(f"{name}: found {value}, expected {FEWEST_SITES} to {MOST_SITES}")

    @property
    def fewest(self) -> int:
        """Fewest sites in a roster."""
        return max(self.minimum_sites, self.smallest_sum)

    @property
    def fewest_left(self) -> int:
        """Fewest sites of a roster in its sum."""
        return max(self.minimum_sites - self.lost, self.smallest_sum, FEWEST_SITES)

    def check_sum(self, site: str, others: Mapping[str, str], what: str, fewest: int) -> None:
        """Refuse a set of sites that is too small or of strangers.

        Args:
            site: who asks.
            others: the fingerprints of the other sites in the set, by name.
            what: the set, for the message.
            fewest: sites in it.

        Raises:
            ProtocolError: says what is missing.
        """
        found = len(others) + 1
        if found < fewest:
            raise ProtocolError(
                "too few sites", f"{what} has {found} sites, expected at least {fewest} for {site} to take part"
            )
        if self.peers is None:
            return
        known = sum(fingerprint in self.peers for fingerprint in others.values())
        if known < self.smallest_sum - 1:
            raise ProtocolError(
                "unknown peers",
                f"{what} has {known} sites that the policy of {site} names as peers, expected at least "
                f"{self.smallest_sum - 1}",
            )


def threshold(sites: int) -> int:
    """Return t: shares that recover a secret, signatures that reveal.

    More than two thirds: a server that shows two sets of survivors to the sites needs two quorums, whose honest members
    overlap while fewer than ``2 t - n`` sites collude with it (Bonawitz et al., CCS 2017, section 6.2).
    """
    return 2 * sites // 3 + 1


def by_cases(readies: Mapping[str, Ready]) -> dict[str, float]:
    """Return shares proportional to training cases."""
    total = sum(ready.cases for ready in readies.values())
    return {site: ready.cases / total for site, ready in readies.items()}


def sorted_names(names: Collection[str]) -> tuple[str, ...]:
    """Return names in the order that all parties use."""
    return tuple(sorted(names))
