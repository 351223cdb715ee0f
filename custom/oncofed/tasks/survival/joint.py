"""Figures from cells of all sites.

Pairs of one site were counted there, where the cells tell who was first. All others follow from cells: within one, log
odds of the risk are taken to be normal with the mean and spread that its sums tell, and times to be even over its
intervals. By how much that errs the counted pairs tell, of which both is known, and the others are put right by it.
Where cells do not overlap, the order is certain; the bounds of the concordance hold whatever the order of the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtr, ndtri

from oncofed.tasks.pooled import BINS
from oncofed.tasks.survival.cells import KINDS, certain_pairs
from oncofed.tasks.survival.follow_up import Floats
from oncofed.tasks.survival.life_table import LifeTable

# Of a normal distribution: points of equal weight, whose spread is one.
_POINTS = ndtri((np.arange(15) + 0.5) / 15)
_POINTS /= _POINTS.std()
# The same in three points, with their weights (Gauss and Hermite).
_NODES, _WEIGHTS = np.array([-(3**0.5), 0.0, 3**0.5]), np.array([1, 4, 1]) / 6
_NORMAL = 1.959964  # of a 95 % interval
# Rows of a matrix of pairs at once: sites of many patients have many cells.
_ROWS = 256


@dataclass(frozen=True)
class Estimate:
    """A figure over sites.

    Attributes:
        value: as cells tell it.
        interval: 95 % interval over patients; None where it cannot be told.
        bounds: between which it certainly lies; None: not known.
    """

    value: float
    interval: tuple[float, float] | None
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True)
class JointCells:
    """Cells of all sites.

    Each array has one value a cell.

    Attributes:
        ends: of the job's intervals, (interval,).
        pairs: counted at each site [ordered alike, all, ordered alike and all with one who reached the horizon].
        counts: whether a site counted pairs, (site,).
        site: number of the site.
        event: whether its patients had the event by the horizon.
        first, last: intervals; the number of intervals stands for those who reached the horizon.
        lowest, highest: bins of risk.
        count: patients.
        mean, spread: of the log odds of their risk.
    """

    ends: Floats
    pairs: Floats
    counts: NDArray[np.bool_]
    site: NDArray[np.int64]
    event: NDArray[np.bool_]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    lowest: NDArray[np.int64]
    highest: NDArray[np.int64]
    count: Floats
    mean: Floats
    spread: Floats

    @classmethod
    def of_sites(cls, of_sites: Sequence[Mapping[str, Any]], ends: Sequence[float]) -> JointCells:
        """Return the cells of sites' sums; see ``cells.survival_sums``."""
        rows = []
        for number, sums in enumerate(of_sites):
            for kind in KINDS:
                for first, last, cells in sums[kind]:
                    top = BINS - 1
                    for lowest, count, total, squares in cells:
                        mean = total / count
                        spread = max(squares / count - mean**2, 0.0) ** 0.5
                        rows.append([number, kind == "events", first, last, lowest, top, count, mean, spread])
                        top = lowest - 1
        columns = np.array(rows, np.float64).reshape(-1, 9).T
        whole = [part.astype(np.int64) for part in columns[[0, 2, 3, 4, 5]]]
        pairs = np.zeros((len(of_sites), 4))
        counts = np.array([bool(sums["pairs"]) for sums in of_sites], dtype=bool)
        for own, sums in zip(pairs, of_sites, strict=True):
            if sums["pairs"]:
                own[::2], own[1::2] = sums["pairs"], certain_pairs(sums, len(ends))
        return cls(np.array(ends), pairs, counts, whole[0], columns[1] > 0, *whole[1:], *columns[6:])

    @property
    def is_free(self) -> NDArray[np.bool_]:
        """Whether a cell's patients reached the horizon without event."""
        return np.asarray(~self.event & (self.first == len(self.ends)))

    def weights(self) -> Floats:
        """Return inverse weights of censoring, (cell,).

        When a cell's events came, or at the horizon.
        """
        shares = self._shares()
        left = np.maximum(self.table(np.ones(len(self.count))).uncensored, 1e-9)
        return np.asarray(shares @ (1 / left))

    def risks(self) -> Floats:
        """Return risks that stand for a cell's patients, (cell, points)."""
        return np.asarray(expit(self.odds()))

    def odds(self) -> Floats:
        """Return log odds that stand for a cell's patients.

        They have their mean and spread, (cell, points).
        """
        return np.asarray(self.mean[:, None] + self.spread[:, None] * _POINTS)

    def groups(self, number: int) -> Floats:
        """Return cells' shares in each risk group, (group, cell).

        From the lowest risk up.

        The groups are of equal size.
        """
        return np.asarray(self._grouped(number).mean(axis=2))

    def mean_risks(self, number: int) -> Floats:
        """Return the mean predicted risk in each of ``groups``, (group,)."""
        weights = self._grouped(number) * self.count[:, None]
        found: Floats = (weights * self.risks()).sum(axis=(1, 2)) / weights.sum(axis=(1, 2))
        return found

    def _grouped(self, number: int) -> Floats:
        """Return which points are in which group, (group, cell, point)."""
        odds = self.odds()
        order = np.argsort(odds, axis=None, kind="stable")
        each = np.repeat(self.count, len(_POINTS))[order]
        group = np.empty(odds.size, np.int64)
        group[order] = np.minimum((np.cumsum(each) - each / 2) / each.sum() * number, number - 1).astype(np.int64)
        return np.asarray(group.reshape(odds.shape) == np.arange(number)[:, None, None], np.float64)

    def concordance(self) -> Estimate | None:
        """Return Harrell's concordance of events by the horizon.

        None without a comparable pair.
        """
        found = np.zeros((2, 2))  # of counted pairs and of others: ordered alike, and comparable ones
        sure, unsure = np.zeros(2), np.zeros(2)  # of others: ordered alike, and unlike
        of_cell = np.zeros((len(_NODES) + 1, len(self.count)))
        for rows in self._blocks():
            # Nobody makes a pair with themselves.
            pairs = self.count[rows, None] * (self.count - (rows[:, None] == np.arange(len(self.count))))
            before = pairs * self._before(rows)
            alike = before * self._ahead(rows)
            surely_before = self.last[rows, None] < self.first
            other = ~(self._counted(rows) & surely_before)
            found += _parted(alike, before, other)
            self._add(of_cell, before, rows)
            open_ = ~surely_before & (self.first[rows, None] <= self.last)
            # Of two events in one interval either may be the first; the pair is met twice.
            share = np.where(self.event, 0.5, 1.0) * open_
            sides = self._sides(rows)
            for part, (ahead, behind) in enumerate((sides, sides[::-1])):
                either = surely_before * ~(ahead | behind) + share * (self.event | ~behind)
                sure[part] += (pairs * other * surely_before * ahead).sum()
                unsure[part] += (pairs * other * either).sum()
        own = self.pairs.sum(axis=0)[:2]
        if not own[1] + found[1, 1]:
            return None
        alike, unlike = own[0] + sure[0], own[1] - own[0] + sure[1]
        value = (own[0] + found[1, 0] + _off(own, found) * found[1, 1]) / (own[1] + found[1, 1])
        low = alike / max(alike + unlike + unsure[1], 1e-9)
        high = (alike + unsure[0]) / max(alike + unsure[0] + unlike, 1e-9)
        if not alike + unlike:
            # Of no pair it is certain that it is comparable: nothing bounds the share.
            low, high = 0.0, 1.0
        interval = self._interval(value, of_cell)
        return Estimate(float(min(max(value, low), high)), interval, (float(low), float(high)))

    def auc(self) -> Estimate | None:
        """Return the time-dependent AUC at the horizon.

        Of events by then against patients without.
        """
        if not self.event.any() or not self.is_free.any():
            return None
        weights, found, weighted = self.weights(), np.zeros((2, 2)), np.zeros(2)
        of_cell = np.zeros((len(_NODES) + 1, len(self.count)))
        for rows in self._blocks():
            pairs = self.count[rows, None] * (self.count * self.is_free)
            alike = pairs * self._ahead(rows)
            found += _parted(alike, pairs, ~self._counted(rows))
            weighted += [(weights[rows] @ part).sum() for part in (alike, pairs)]
            self._add(of_cell, pairs * weights[rows, None], rows)
        value = float(min(max(weighted[0] / weighted[1] + _off(self.pairs.sum(axis=0)[2:], found), 0.0), 1.0))
        return Estimate(value, self._interval(value, of_cell))

    def brier(self) -> float | None:
        """Return the Brier score at the horizon."""
        told = (self.event | self.is_free) * self.count * self.weights()
        errors = ((self.event[:, None] - self.risks()) ** 2).mean(axis=1)
        return float((told * errors).sum() / told.sum()) if self.is_free.any() else None

    def table(self, parts: Floats) -> LifeTable:
        """Return the life table of a group.

        Args:
            parts: share of each cell's patients, (cell,).
        """
        counts = self._shares() * (parts * self.count)[:, None]
        events, others = (counts[kind].sum(axis=0)[:-1] for kind in (self.event, ~self.event))
        return LifeTable(float((parts * self.count).sum()), events, others)

    def _interval(self, value: float, of_cell: Floats) -> tuple[float, float] | None:
        """Return a share's 95 % interval over patients.

        On the scale of log odds.

        By the influence of each patient on a ratio of U-statistics (Sen, Calcutta Statistical Association Bulletin,
        1960).

        Args:
            value: the share.
            of_cell: see ``_add``.
        """
        if not 0 < value < 1:
            return None
        pairs = of_cell[-1]
        share = (_WEIGHTS @ of_cell[:-1]).sum() / pairs.sum()
        influence = 2 * (of_cell[:-1] - share * pairs) / pairs.sum() / self.count
        reach = _NORMAL * float(np.sqrt((self.count * (_WEIGHTS @ influence**2)).sum())) / (value * (1 - value))
        low, high = expit(logit(value) + np.array([-reach, reach]))
        return float(low), float(high)

    def _shares(self) -> Floats:
        """Return how a cell's patients are spread over intervals.

        By their lengths; the last is the horizon.
        """
        lengths = self._edges[1:] - self._edges[:-1]
        numbers = np.arange(len(lengths))
        inside = ((numbers >= self.first[:, None]) & (numbers <= self.last[:, None])) * lengths
        found: Floats = inside / inside.sum(axis=1, keepdims=True)
        return found

    @property
    def _edges(self) -> Floats:
        """Times between the intervals.

        The horizon is taken to be as long as the interval before it.
        """
        edges = np.append(0.0, self.ends)
        return np.append(edges, 2 * edges[-1] - edges[-2])

    def _before(self, rows: NDArray[np.int64]) -> Floats:
        """Return how probably some cells' events come first, (row, cell)."""
        begin, end = (self._edges[part][rows, None] for part in (self.first, self.last + 1))

        def area(time: Floats) -> Floats:
            """Return the integral of the share whose event came."""
            within = np.clip(time - begin, 0, end - begin)
            return within**2 / (2 * (end - begin)) + np.maximum(time - end, 0)

        others_begin, others_end = (self._edges[part] for part in (self.first, self.last + 1))
        found: Floats = (area(others_end) - area(others_begin)) / (others_end - others_begin)
        return found

    def _add(self, of_cell: Floats, pairs: Floats, rows: NDArray[np.int64]) -> None:
        """Add pairs of some cells with all, in place.

        Args:
            of_cell: pairs ordered alike if a cell's patients all had one risk, at each node of the cell's distribution;
                and pairs at all, (nodes + 1, cell).
            pairs: that are comparable, (row, cell).
            rows: the cells.
        """
        for number, node in enumerate(_NODES):
            of_cell[number, rows] += (pairs * self._ahead(rows, row_at=node)).sum(axis=1)
            of_cell[number] += (pairs * self._ahead(rows, other_at=node)).sum(axis=0)
        of_cell[-1, rows] += pairs.sum(axis=1)
        of_cell[-1] += pairs.sum(axis=0)

    def _ahead(self, rows: NDArray[np.int64], row_at: float | None = None, other_at: float | None = None) -> Floats:
        """Return how probably some cells' risk is larger, (row, cell).

        Args:
            rows: the cells.
            row_at: how many spreads from the mean their risk is; None: anywhere in its distribution.
            other_at: the same of the others.
        """
        means = self.mean[rows] + self.spread[rows] * (row_at or 0.0), self.mean + self.spread * (other_at or 0.0)
        spreads = self.spread[rows] * (row_at is None), self.spread * (other_at is None)
        spread = np.sqrt(spreads[0][:, None] ** 2 + spreads[1] ** 2)
        found = ndtr((means[0][:, None] - means[1]) / np.maximum(spread, 1e-6))
        ahead, behind = self._sides(rows)
        return np.where(ahead, 1.0, np.where(behind, 0.0, found))

    def _sides(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return whose risk is certainly larger, and smaller, (row, cell)."""
        return self.lowest[rows, None] > self.highest, self.highest[rows, None] < self.lowest

    def _counted(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether pairs are of one site that counted them, (row, cell)."""
        return np.asarray((self.site[rows, None] == self.site) & self.counts[self.site])

    def _blocks(self) -> Iterator[NDArray[np.int64]]:
        """Yield some cells of events after the others."""
        events = np.flatnonzero(self.event)
        for begin in range(0, len(events), _ROWS):
            yield events[begin : begin + _ROWS]


def _parted(alike: Floats, pairs: Floats, other: NDArray[np.bool_]) -> Floats:
    """Return sums of counted pairs, and of others.

    [ordered alike, all] of each.
    """
    return np.array([[part[chosen].sum() for part in (alike, pairs)] for chosen in (~other, other)])


def _off(own: Floats, found: Floats) -> float:
    """Return by how much cells tell too small a share.

    Of pairs ordered alike, by those that were counted.

    Args:
        own: [ordered alike, all] of pairs of one site, as counted.
        found: the same as cells tell it, of counted pairs and of others.
    """
    return float(own[0] / own[1] - found[0, 0] / found[0, 1]) if own[1] and found[0, 1] else 0.0
