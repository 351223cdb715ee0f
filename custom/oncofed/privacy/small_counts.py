"""Counts behind which few patients stand, and how they are hidden."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from oncofed.suppression import LEAST_PATIENTS

# Patients whose bins have none beside them: more of them are no exceptions.
_MOST_APART = 0.2


def suppress_small_counts(counts: NDArray[np.int64], least: int = LEAST_PATIENTS) -> NDArray[np.int64]:
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


def merge_small_bins(counts: NDArray[np.int64], least: int = LEAST_PATIENTS, ordered: bool = True) -> NDArray[np.int64]:
    """Return a histogram in which bins of too few patients are counted with others, so that few need to be hidden.

    Such a bin is counted with the fuller one beside it. One that has none beside it is counted with the nearest that
    has enough, as long as such patients are at most ``_MOST_APART`` of all: they are exceptions. Nobody can tell how
    many a bin took in.

    Args:
        counts: of each bin, (bins,).
        least: fewest patients of a bin that keeps its own.
        ordered: bins are of a scale; else of names, of which the fullest is as near as any.
    """
    found: NDArray[np.int64] = counts.copy()
    while ordered:
        beside = np.pad(found, 1)
        few: list[int] = np.flatnonzero((found > 0) & (found < least)).tolist()
        small = [n for n in few if beside[n] or beside[n + 2]]
        if not small:
            break
        smallest = min(small, key=lambda n: int(found[n]))
        _move(found, smallest, smallest - 1 if beside[smallest] >= beside[smallest + 2] else smallest + 1)
    apart, full = np.flatnonzero((found > 0) & (found < least)), np.flatnonzero(found >= least)
    if len(full) and found[apart].sum() <= _MOST_APART * found.sum():
        for number in apart.tolist():
            distances = np.abs(full - number) if ordered else -found[full]
            _move(found, number, int(full[np.argmin(distances)]))
    return found


def _move(counts: NDArray[np.int64], source: int, target: int) -> None:
    counts[target] += counts[source]
    counts[source] = 0
