"""Which figures enough sites of a sum add.

A sum of one site's figure is this figure. So READY says which figures a site adds, and each site leaves out of the sum
what too few do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from oncofed.privacy.secure_aggregation.messages import Roster
from oncofed.privacy.secure_aggregation.rules import FEWEST_SITES, Rules, threshold


def bits_of(added: Iterable[int], figures: int) -> bytes:
    """Return ``Ready.figures``.

    Args:
        added: indices of the figures that a site adds.
        figures: of the job.

    Example:
        >>> bits_of([0, 9], 10).hex(), added_by(bits_of([0, 9], 10))
        ('0102', frozenset({0, 9}))
    """
    bits = bytearray((figures + 7) // 8)
    for index in added:
        bits[index // 8] |= 1 << index % 8
    return bytes(bits)


def added_by(bits: bytes) -> frozenset[int]:
    """Return the indices of the figures that a site adds."""
    return frozenset(8 * at + bit for at, byte in enumerate(bits) for bit in range(8) if byte >> bit & 1)


def figures_of_enough(roster: Roster, shared: Collection[str], rules: Rules) -> frozenset[int]:
    """Return the figures that at least three sites add, whichever sites are lost before the sum.

    Args:
        roster: with what each site adds.
        shared: sites that shared their keys.
        rules: of job and policy.
    """
    fewest_left = max(threshold(len(roster.readies)), rules.fewest_left)
    needed = FEWEST_SITES + max(len(shared) - fewest_left, 0)
    adding = [added_by(ready.figures) for ready in roster.readies if ready.site in shared]
    every = frozenset[int]().union(*adding)
    return frozenset(index for index in every if sum(index in of_site for of_site in adding) >= needed)
