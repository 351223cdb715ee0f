"""Figures over the patients of several sites.

They come from counts and sums of at least five patients each.

A patient's probabilities stay at the site. The site sends counts of patients between fixed edges, which it coarsens:
from the highest bin down, each cell reaches as far as it needs to hold five patients. It also sends an exact number for
its patients: in how many pairs the one with the class is ranked first. The area under the ROC curve over all sites is
then known between bounds, which are reported with it.

How far the estimate is off, measured on normal log odds of which four tenths are positive: at three sites of 500 to
1200 patients at most 0.001; of 150 to 400, 0.002 on average and at most 0.004; of 30 to 110, 0.006 on average. Not the
bins but the five patients of a cell bound it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from oncofed.settings import StrictModel
from oncofed.suppression import LEAST_PATIENTS

# Key of the task's metric, next to a patient's figures by class.
MEAN = "mean"
BINS = 200
# In log odds, which resolve 0.999 to 1 as finely as 0.5 to 0.9.
_EDGES = np.linspace(-9.9, 9.9, BINS - 1)
_WIDTH, FURTHEST = 0.1, 10.0
_MIDDLES = np.linspace(-9.95, 9.95, BINS)
NORMAL = 1.959964  # of a 95 % interval
_RELIABILITY_BINS = 10

DIGITS_OF_ODDS = 2
# Thresholds are rounded to six digits.
_SAME = 1e-6

# [lowest bin, patients, sum of their log odds, sum of squares], from the highest bin down; a cell reaches up to the
# previous one.
Cells = list[list[Any]]


class Ranking(StrictModel):
    """Discrimination of one class against all others."""

    patients_with: int
    patients_without: int
    auroc: float = Field(description="log odds taken to be normal within a cell")
    bounds: tuple[float, float] = Field(description="between which it lies, wherever in its cell a patient lies")
    interval: tuple[float, float] = Field(description="95 % interval over patients (Newcombe, 2006)")
    average_precision: float
    curve: list[tuple[float, float, float, float]] = Field(
        description="probability from which the class is said, sensitivity, 1 - specificity, precision"
    )


class ReliabilityBin(StrictModel):
    """Patients with about equal confidence of a model."""

    patients: int
    confidence: float = Field(description="mean probability of the class that it says")
    right: float = Field(description="share of them of whom that is true")


class Reliability(StrictModel):
    """Agreement of a model's confidence with its accuracy."""

    calibration_error: float = Field(description="expected calibration error, up to ten bins of confidence")
    brier: float = Field(description="mean squared error of the probabilities, summed over classes (Brier, 1950)")
    log_loss: float = Field(description="mean negative log likelihood")
    bins: list[ReliabilityBin]


def bins_of(probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return each probability's bin of log odds, of ``BINS``."""
    return np.searchsorted(_EDGES, log_odds(probabilities), side="right").astype(np.int64)


def cells_of(probabilities: NDArray[np.float64], patients: Sequence[str], fewest: int = LEAST_PATIENTS) -> Cells:
    """Return counts and sums of cells with enough patients.

    No cells if all patients together are too few.

    Args:
        probabilities: of each image or group of images.
        patients: key of each one's patient.
        fewest: least number of patients in a cell.
    """
    bins, odds = bins_of(probabilities), log_odds(probabilities)
    order = np.argsort(-bins, kind="stable")
    found: Cells = []
    begun, people = 0, set[str]()
    for end, index in enumerate(order, 1):
        people.add(patients[index])
        ends = end == len(order) or bins[order[end]] != bins[index]
        if ends and (len(people) >= fewest or end == len(order)):
            inside = odds[order[begun:end]]
            sums = [round(float(part), DIGITS_OF_ODDS) for part in (inside.sum(), np.square(inside).sum())]
            found.append([int(bins[index]), len(inside), *sums])
            if len(people) < fewest:
                return _with_the_rest(found[:-1], found[-1])
            begun, people = end, set()
    return _with_the_rest(found, None)


def coarser(cells: Cells, fewest: int) -> Cells:
    """Merge cells until each holds enough patients.

    None are left if all patients together are too few.
    """
    found: Cells = []
    rest: list[Any] | None = None
    for cell in cells:
        rest = added(rest, cell) if rest else list(cell)
        if rest[1] >= fewest:
            found.append(rest)
            rest = None
    return _with_the_rest(found, rest)


def _with_the_rest(cells: Cells, rest: Sequence[Any] | None) -> Cells:
    """Merge the rest into the last cell.

    It then reaches down to the lowest bin, so that the lowest patient's bin stays at the site.
    """
    if cells:
        cells[-1] = [0, *(added(cells[-1], rest) if rest else cells[-1])[1:]]
    return cells


def added(one: Sequence[Any], lower: Sequence[Any]) -> list[Any]:
    """Return the union of two cells."""
    sums = (round(a + b, DIGITS_OF_ODDS) for a, b in zip(one[2:], lower[2:], strict=True))
    return [lower[0], one[1] + lower[1], *sums]


def coarser_rows(rows: Sequence[Sequence[float]], fewest: int) -> list[list[float]]:
    """Merge rows of sums until each counts enough patients."""
    found: list[list[float]] = []
    open_row: list[float] | None = None
    for row in rows:
        open_row = [a + b for a, b in zip(open_row, row, strict=True)] if open_row else list(row)
        if open_row[0] >= fewest:
            found.append(open_row)
            open_row = None
    if open_row and found:
        found[-1] = [a + b for a, b in zip(found[-1], open_row, strict=True)]
    return found


def ranking(of_sites: Sequence[Mapping[str, Any]]) -> Ranking | None:
    """Return a class's discrimination over all sites.

    None if one of the two groups is empty. Pairs of patients of one site are counted there; those of two sites follow
    from cells.

    Args:
        of_sites: of each site ``with`` and ``without``, the cells of patients with and without the class; ``pairs``,
            the number of pairs in which the one with the class is ranked first.
    """
    ill, well = (spans(site[kind] for site in of_sites) for kind in ("with", "without"))
    if not len(ill) or not len(well):
        return None
    counts = int(ill[:, 2].sum()), int(well[:, 2].sum())
    pairs = counts[0] * counts[1]
    hits, misses = np.zeros(BINS), np.zeros(BINS)
    area, certain, certainly_not = 0.0, _ahead(ill, well), _ahead(well, ill)
    for site in of_sites:
        own = [spans([site[kind]]) for kind in ("with", "without")]
        spread = [by_bin(site[kind]) for kind in ("with", "without")]
        hits, misses = hits + spread[0], misses + spread[1]
        all_own = int(own[0][:, 2].sum()) * int(own[1][:, 2].sum())
        area += site["pairs"] - _pairs(*spread)
        certain += site["pairs"] - _ahead(*own)
        certainly_not += all_own - site["pairs"] - _ahead(*reversed(own))
    low = certain / pairs
    high = max(1 - certainly_not / pairs, low)
    area = min(max((area + _pairs(hits, misses)) / pairs, low), high)
    curve, precision = _curve(hits, misses)
    return Ranking(
        patients_with=counts[0],
        patients_without=counts[1],
        auroc=area,
        bounds=(low, high),
        interval=area_interval(area, *counts),
        average_precision=precision,
        curve=curve,
    )


def log_odds(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return clipped log odds of probabilities.

    They are at most one bin beyond the outermost edges.
    """
    shares = np.clip(probabilities, 0.0, 1.0)
    with np.errstate(divide="ignore"):
        odds = np.log(shares) - np.log1p(-shares)
    bounded: NDArray[np.float64] = np.clip(odds, -FURTHEST, FURTHEST)
    return bounded


def spans(of_sites: Iterable[Cells]) -> NDArray[np.int64]:
    """Return (lowest bin, highest bin, patients) of all cells."""
    found = []
    for cells in of_sites:
        top = BINS - 1
        for first, count, *_ in cells:
            found.append((first, top, count))
            top = first - 1
    return np.array(found, dtype=np.int64).reshape(-1, 3)


def _ahead(some: NDArray[np.int64], others: NDArray[np.int64]) -> float:
    """Return the number of pairs certainly ranked first.

    The whole cell of ``some`` lies above that of ``others``.
    """
    in_bin = np.bincount(others[:, 1], weights=others[:, 2], minlength=BINS)
    below = np.concatenate([[0], np.cumsum(in_bin)])[some[:, 0]]
    return float((some[:, 2] * below).sum())


def _pairs(hits: NDArray[np.float64], misses: NDArray[np.float64]) -> float:
    """Return the number of pairs with the positive ranked first.

    From patients by bin; pairs within a bin count half.
    """
    return float((hits * (np.cumsum(misses) - misses / 2)).sum())


def by_bin(cells: Cells) -> NDArray[np.float64]:
    """Return patients by bin.

    Those of a cell are spread over its bins by a normal distribution of log odds, with mean and spread from the cell's
    sums.
    """
    found, top = np.zeros(BINS), BINS - 1
    for first, count, total, squares in cells:
        mean = total / count
        sd = max(math.sqrt(max(squares / count - mean**2, 0.0)), _WIDTH / 2)
        # Never zero, for any sums.
        density = np.exp(-0.5 * np.minimum(((_MIDDLES[first : top + 1] - mean) / sd) ** 2, 4 * FURTHEST))
        found[first : top + 1] += count * density / density.sum()
        top = first - 1
    return found


def _curve(
    hits: NDArray[np.float64], misses: NDArray[np.float64]
) -> tuple[list[tuple[float, float, float, float]], float]:
    """Return ROC and precision-recall curves, and average precision.

    From the highest threshold down. Within a bin the precision is that of its middle, with half of its patients
    counted as positive.
    """
    right, wrong = np.cumsum(hits[::-1]), np.cumsum(misses[::-1])
    sensitivity, missed = right / right[-1], wrong / wrong[-1]
    precision = right / np.maximum(right + wrong, 1e-12)
    thresholds = np.append(1 / (1 + np.exp(-_EDGES[::-1])), 0.0)
    points = [
        (round(float(t), 6), round(float(s), 6), round(float(m), 6), round(float(p), 6))
        for t, s, m, p, n in zip(thresholds, sensitivity, missed, precision, right + wrong, strict=True)
        if n >= 0.5  # nothing is defined before the first patient
    ]
    half_right, half_wrong = right - hits[::-1] / 2, wrong - misses[::-1] / 2
    middle = half_right / np.maximum(half_right + half_wrong, 1e-12)
    return points, float((np.diff(sensitivity, prepend=0.0) * middle).sum())


def best_threshold(ranking: Ranking) -> float:
    """Return the threshold with the highest F1, of the bins' edges."""
    return max(ranking.curve, key=lambda point: _f1(point[1], point[3]))[0]


def f1_at(ranking: Ranking, threshold: float) -> float:
    """Return the F1 at a threshold, by the nearest edge above it."""
    said = [point for point in ranking.curve if point[0] >= threshold - _SAME]
    return _f1(said[-1][1], said[-1][3]) if said else 0.0


def _f1(sensitivity: float, precision: float) -> float:
    return 2 * sensitivity * precision / max(sensitivity + precision, 1e-12)


def area_interval(area: float, with_it: int, without: int) -> tuple[float, float]:
    """Return the 95 % interval of an AUROC.

    Newcombe, Statistics in Medicine, 2006, method 5.

    It holds the areas whose distance from this one chance can explain, by the variance of Hanley and McNeil (1982);
    unlike theirs it also has a width for an area of one.

    Args:
        area: as found.
        with_it: number of patients with the class.
        without: number of patients without it.
    """
    other = (with_it + without) / 2 - 1

    def reach(true: float) -> float:
        spread = true * (1 - true) * (1 + other * (1 - true) / (2 - true) + other * true / (1 + true))
        return NORMAL * math.sqrt(max(spread, 0.0) / (with_it * without))

    low = _boundary(lambda true: true + reach(true) < area, 0.0, area)
    high = _boundary(lambda true: true - reach(true) <= area, area, 1.0)
    return low, high


def _boundary(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Return the upper limit of a condition, by bisection."""
    if holds(high):
        return high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return (low + high) / 2


def reliability(rows: Sequence[Sequence[float]], brier: float, log_loss: float) -> Reliability | None:
    """Return a model's reliability; None without patients.

    A row goes undivided to the bin of its mean confidence: the calibration error is that of these groups.

    Args:
        rows: [patients, correct ones, sum of confidence] of groups of patients with about equal confidence.
        brier: sum over patients.
        log_loss: sum over patients.
    """
    table = np.array(rows, dtype=np.float64).reshape(-1, 3)
    total = table[:, 0].sum()
    if not total:
        return None
    number = np.minimum((table[:, 2] / table[:, 0] * _RELIABILITY_BINS).astype(int), _RELIABILITY_BINS - 1)
    bins, gaps = [], 0.0
    for one in np.unique(number):
        count, right, sure = table[number == one].sum(axis=0)
        bins.append(ReliabilityBin(patients=int(count), confidence=sure / count, right=right / count))
        gaps += abs(right - sure)
    return Reliability(calibration_error=gaps / total, brier=brier / total, log_loss=log_loss / total, bins=bins)
