"""Whose scores are in a sum, and which figures.

Of two sums over different sites the server has the difference, and a sum of one site's figure is this figure. So the
roster names the sites whose scores are in the sum: all of them sign it, and none of them may be lost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from oncofed.privacy.secure_aggregation.messages import Ready, Roster


def bits_of(added: Iterable[int], figures: int) -> bytes:
    """Return ``Ready.figures``.

    Args:
        added: indices of the figures that a site has.
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
    """Return the indices of the figures that a site has."""
    return frozenset(8 * at + bit for at, byte in enumerate(bits) for bit in range(8) if byte >> bit & 1)


def sites_scored(readies: Sequence[Ready], over: Collection[str] | None, fewest: int) -> tuple[str, ...]:
    """Return the sites whose scores a sum can have, sorted; empty: it has none.

    Args:
        readies: of the roster.
        over: those of the job's earlier sums; None: there was none.
        fewest: sites in a sum.
    """
    having = {ready.site for ready in readies if any(ready.figures)}
    scored = having if over is None else set(over)
    return tuple(sorted(scored)) if scored <= having and len(scored) >= fewest else ()


def figures_summed(roster: Roster, alone: frozenset[int]) -> frozenset[int]:
    """Return the figures in a sum: all that its sites have, if they have the same ones.

    Otherwise a site's own would follow from the differences between the figures.

    Args:
        roster: with the figures that each site has.
        alone: figures in the sum otherwise.
    """
    found = {ready.figures for ready in roster.readies if ready.site in roster.scored}
    return added_by(found.pop()) if len(found) == 1 else alone
