"""Numbers of one column that fall into two groups, as those of two units do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

# How many times as large the middle of the larger numbers is: smallest, largest, and what units that would be.
Jump = tuple[float, float, str]
_LEAST_SHARE = 0.1


def find_jump(numbers: Mapping[int, float], jumps: Sequence[Jump], least_gap: float) -> tuple[str, int, int] | None:
    """Return the units that a column seems to mix, and the lines on both sides of the gap; None: one unit.

    Each group is a tenth of the numbers above zero at least, and two.

    Args:
        numbers: by line.
        jumps: between the groups' medians.
        least_gap: how many times as large the smallest of the larger group is as the largest of the other.
    """
    known = sorted((number, line) for line, number in numbers.items() if number > 0)
    least = max(2, int(np.ceil(_LEAST_SHARE * len(known))))
    for place in range(least, len(known) - least + 1):
        below, above = known[place - 1], known[place]
        if above[0] < least_gap * below[0]:
            continue
        low, high = (float(np.median([number for number, _ in part])) for part in (known[:place], known[place:]))
        for smallest, largest, units in jumps:
            if smallest <= high / low <= largest:
                return units, below[1], above[1]
    return None
