"""Actuarial life tables, and their comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from oncofed.tasks.survival.follow_up import Floats


@dataclass(frozen=True)
class LifeTable:
    """Counts of a group of patients by interval.

    Who is censored within one is taken to be at risk for half of it.

    Cutler and Ederer, Journal of Chronic Diseases, 1958.

    Attributes:
        patients: in all.
        events: of each interval, (interval,); of cells of several intervals, shares.
        censored: of each interval, (interval,).
    """

    patients: float
    events: Floats
    censored: Floats

    @property
    def at_risk(self) -> Floats:
        """Patients at the start of each interval.

        And at the end of the last, (interval + 1,).
        """
        gone = np.append(0.0, np.cumsum(self.events + self.censored))
        left: Floats = np.maximum(self.patients - gone, 0.0)
        return left

    @property
    def exposed(self) -> Floats:
        """Patients at risk within each interval, (interval,)."""
        return self.at_risk[:-1] - self.censored / 2

    @property
    def survival(self) -> Floats:
        """Share without event at each interval's end, (interval,).

        NaN from where nobody was at risk.
        """
        exposed = self.exposed
        with np.errstate(divide="ignore", invalid="ignore"):
            left = np.clip(1 - self.events / exposed, 0, 1)
        return np.asarray(np.cumprod(np.where(exposed > 0, left, np.nan)), np.float64)

    @property
    def uncensored(self) -> Floats:
        """Share not yet censored in each interval's middle.

        And at the end of the last, (interval + 1,).
        """
        exposed = np.maximum(self.at_risk[:-1] - self.events / 2, 1e-9)
        factors = np.clip(1 - self.censored / exposed, 0, 1)
        left = np.cumprod(factors)
        return np.append(np.append(1.0, left[:-1]) * np.sqrt(factors), left[-1])


def logrank_p(tables: Sequence[LifeTable]) -> float | None:
    """Return the log-rank test's p.

    How probable survival this different is if groups are alike.

    Mantel, Cancer Chemotherapy Reports, 1966. None of a single group, or without events.
    """
    exposed = np.stack([table.exposed for table in tables])
    events = np.stack([table.events for table in tables])
    at_risk, deaths = exposed.sum(axis=0), events.sum(axis=0)
    told = (deaths > 0) & (at_risk > 1)
    if len(tables) < 2 or not told.any():
        return None
    shares = exposed[:, told] / at_risk[told]
    apart = (events[:, told] - deaths[told] * shares).sum(axis=1)[:-1]
    spread = deaths[told] * (at_risk[told] - deaths[told]) / (at_risk[told] - 1)
    variance = np.diag((spread * shares).sum(axis=1)) - (spread * shares) @ shares.T
    square = float(apart @ np.linalg.pinv(variance[:-1, :-1]) @ apart)
    return float(stats.chi2.sf(square, len(tables) - 1))
