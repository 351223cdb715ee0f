"""Suppression of small counts in histograms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oncofed.suppression import LEAST_PATIENTS

# Largest share of patients in isolated bins that counts as exceptions.
_MOST_APART = 0.2


def suppress_small_counts(counts: NDArray[np.int64], least: int = LEAST_PATIENTS) -> NDArray[np.int64]:
    """Return a histogram without bins of too few patients.

    If the total would reveal the hidden count, the next smallest bin becomes zero too (complementary suppression;
    Statistics Netherlands, mu-Argus). Negative counts, which noise causes, become zero.

    Args:
        counts: of each bin, (bins,).
        least: fewest patients of a released bin.
    """
    hidden = (counts > 0) & (counts < least)
    if 0 < counts[hidden].sum() < least or hidden.sum() == 1:
        visible = np.flatnonzero(counts >= least)
        if len(visible):
            hidden[visible[np.argmin(counts[visible])]] = True
    shown: NDArray[np.int64] = np.where(hidden | (counts < 0), 0, counts)
    return shown


def merge_small_bins(counts: NDArray[np.int64], least: int = LEAST_PATIENTS, ordered: bool = True) -> NDArray[np.int64]:
    """Merge bins of too few patients into others.

    So fewer bins need suppression.

    A small bin is added to its fuller neighbour. An isolated one is added to the nearest bin with enough patients, as
    long as such patients are at most ``_MOST_APART`` of all (exceptions). The added number cannot be inferred.

    Args:
        counts: of each bin, (bins,).
        least: fewest patients of a bin that is kept.
        ordered: bins of a scale; else of names, which merge into the fullest.
    """
    found: NDArray[np.int64] = counts.copy()
    while ordered:
        padded = np.pad(found, 1)
        few: list[int] = np.flatnonzero((found > 0) & (found < least)).tolist()
        small = [n for n in few if padded[n] or padded[n + 2]]
        if not small:
            break
        smallest = min(small, key=lambda n: int(found[n]))
        _move(found, smallest, smallest - 1 if padded[smallest] >= padded[smallest + 2] else smallest + 1)
    apart, full = np.flatnonzero((found > 0) & (found < least)), np.flatnonzero(found >= least)
    if len(full) and found[apart].sum() <= _MOST_APART * found.sum():
        for number in apart.tolist():
            distances = np.abs(full - number) if ordered else -found[full]
            _move(found, number, int(full[np.argmin(distances)]))
    return found


def _move(counts: NDArray[np.int64], source: int, target: int) -> None:
    counts[target] += counts[source]
    counts[source] = 0
