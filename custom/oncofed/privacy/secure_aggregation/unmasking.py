"""From shares to the masks that are left in a sum."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

from oncofed.privacy.secure_aggregation import keys, shamir
from oncofed.privacy.secure_aggregation.failures import AggregationFailed
from oncofed.privacy.secure_aggregation.masks import Mask, pair_sign
from oncofed.privacy.secure_aggregation.messages import Reveal, Roster
from oncofed.privacy.secure_aggregation.rules import threshold

STEP = "Unmasking"
# Sets of t shares that are tried while the secret is not the one that its owner published: one wrong share is found
# among any number of sites, as long as there are more than t.
_MOST_TRIED = 256


def masks_left(
    job: str,
    roster: Roster,
    shared: Sequence[str],
    survivors: Sequence[str],
    commitments: Mapping[str, bytes],
    reveals: Sequence[Reveal],
) -> list[Mask]:
    """Return what to add to the sum of masked updates.

    The masks of pairs of survivors have cancelled out. What is left are the survivors' own masks, and those that they
    shared with lost sites.

    Args:
        job: its identifier.
        roster: of the attempt.
        shared: sites that shared their keys, U2.
        survivors: sites in the sum.
        commitments: to the sites' seeds, by name.
        reveals: at least t, each with shares of all of U2.

    Raises:
        AggregationFailed: the shares do not give the secret that a site published.
    """
    points = {ready.site: point for point, ready in enumerate(roster.readies, 1)}
    public = {ready.site: ready.public_key for ready in roster.readies}
    needed, there = threshold(len(points)), set(survivors)
    masks = []
    for site in sorted(there):
        shares = {points[reveal.site]: reveal.seeds[site] for reveal in reveals}
        seed = _joined(shares, needed, site, commitments[site], _commitment(job, roster.round, site))
        masks.append(Mask(keys.own_key(seed, job, roster.round, site), -1))
    for site in sorted(set(shared) - there):
        shares = {points[reveal.site]: reveal.keys[site] for reveal in reveals}
        private = _joined(shares, needed, site, public[site], keys.public_key)
        for other in sorted(there):
            key = keys.pair_key(private, public[other], job, roster.round, (site, other))
            masks.append(Mask(key, -pair_sign(other, site)))
    return masks


def _commitment(job: str, number: int, site: str) -> Callable[[bytes], bytes]:
    return lambda seed: keys.commitment(seed, job, number, site)


def _joined(
    shares: Mapping[int, bytes], needed: int, site: str, published: bytes, publish: Callable[[bytes], bytes]
) -> bytes:
    """Return the secret of which its owner published what ``publish`` makes of it."""
    for points in itertools.islice(itertools.combinations(sorted(shares), needed), _MOST_TRIED):
        try:
            secret = shamir.join({point: shares[point] for point in points})
        except ValueError:
            continue
        if publish(secret) == published:
            return secret
    raise AggregationFailed(
        STEP,
        f"the shares of {site} do not give the key that it announced: one who revealed a share, or {site} itself, does "
        "not follow the protocol",
        [site],
        revealed=True,
    )
