"""Which of several models a site keeps, by its validation patients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from oncofed.tasks.differences import Part


@dataclass(frozen=True)
class Compared:
    """One candidate beside the reference.

    Attributes:
        part: its difference from the reference over patients; None: too few patients to tell.
        bound: lower bound of the difference, which holds for all candidates at once; None likewise.
    """

    part: Part | None
    bound: float | None


def compared(parts: Mapping[str, Part | None], level: float) -> dict[str, Compared]:
    """Return each candidate with its lower bound, corrected for the number of candidates.

    Bonferroni's bounds hold together with probability ``level``, and so for whichever candidate is chosen by them.

    Args:
        parts: difference from the reference by candidate.
        level: of all bounds together.
    """
    tail = (1 - level) / max(len(parts), 1)
    return {name: Compared(part, part.lower_bound(tail) if part else None) for name, part in parts.items()}


def surest(candidates: Mapping[str, Compared]) -> str | None:
    """Return the candidate with the greatest lower bound; None: no bound is above zero, so the reference stays.

    What is kept is then never worse than a candidate by more than the reach of this candidate's own bound.

    Example:
        >>> parts = {"a": Part(9, 0.1, 1e-4), "b": Part(9, 0.2, 1.0), "c": None}
        >>> surest(compared(parts, 0.95))
        'a'
    """
    known = {name: one.bound for name, one in candidates.items() if one.bound is not None}
    best = max(known, key=lambda name: known[name], default=None)
    return best if best is not None and known[best] > 0 else None
