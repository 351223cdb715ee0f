"""Refuse updates that are far longer than usual."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from oncofed.algorithms import Update
from oncofed.algorithms.base import update_norm
from oncofed.algorithms.settings import ExchangeSpec
from oncofed.algorithms.sums import bounded

# Number of recent rounds whose updates define the usual norm.
_ROUNDS_REMEMBERED = 5
# With fewer norms there is no usual one.
_FEWEST_NORMS = 3


@dataclass(frozen=True)
class Screened:
    """A round's updates after screening.

    Attributes:
        kept: those that count, with bounded cases.
        refused: reasons of the others, by site.
        lengths: norms of the updates of the last rounds, with this one.
    """

    kept: list[Update]
    refused: dict[str, str]
    lengths: list[list[float]]


class OutlierFilter:
    """Refuses updates far longer than the median of recent rounds.

    Args:
        exchange: ``largest_norm``, in medians, and ``largest_weight``.
        trained: names of the weights that count in the norm.
    """

    def __init__(self, exchange: ExchangeSpec, trained: frozenset[str]) -> None:
        self._exchange = exchange
        self._trained = trained

    def screen(self, updates: Sequence[Update], lengths: Sequence[list[float]]) -> Screened:
        """Return which of a round's updates count.

        Args:
            updates: of the round.
            lengths: norms of the updates of earlier rounds.
        """
        norms = [update_norm(update, self._trained) for update in updates]
        known = norms + [norm for norms in lengths[-_ROUNDS_REMEMBERED:] for norm in norms]
        usual = statistics.median(known) if known else 0.0
        factor = self._exchange.largest_norm
        kept: list[tuple[Update, float]] = []
        refused: dict[str, str] = {}
        for update, norm in zip(updates, norms, strict=True):
            if len(known) >= _FEWEST_NORMS and usual > 0 and norm > factor * usual:
                times = f"{norm / usual:.1f} times as long as usual, expected at most {factor:g} times"
                refused[update.site] = f"its update is {times}"
            else:
                kept.append((update, norm))
        cases = bounded({update.site: update.cases for update, _ in kept}, self._exchange.largest_weight)
        return Screened(
            kept=[dataclasses.replace(update, cases=cases[update.site]) for update, _ in kept],
            refused=refused,
            lengths=[*lengths[1 - _ROUNDS_REMEMBERED :], [norm for _, norm in kept]],
        )
