"""Counts behind which few patients stand, and how they are hidden."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Fewest patients behind any number that tells of a site's data and leaves it, whatever a job asks for.
LEAST_PATIENTS = 5


def without_small(counts: NDArray[np.int64], least: int = LEAST_PATIENTS) -> NDArray[np.int64]:
    """Return a histogram in which each bin of too few patients is zero.

    Where the total would give the hidden count away, the next smallest bin becomes zero too (complementary suppression;
    Statistics Netherlands, mu-Argus). Negative counts, which noise makes, become zero.

    Args:
        counts: of each bin, (bins,).
        least: fewest patients of a bin that stays.
    """
    hidden = (counts > 0) & (counts < least)
    if 0 < counts[hidden].sum() < least or hidden.sum() == 1:
        visible = np.flatnonzero(counts >= least)
        if len(visible):
            hidden[visible[np.argmin(counts[visible])]] = True
    shown: NDArray[np.int64] = np.where(hidden | (counts < 0), 0, counts)
    return shown
