"""Results of one task."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from oncofed.algorithms import Update
from oncofed.privacy.secure_aggregation import KeyAdvertisement, Ready
from oncofed.privacy.summed_scores import SummedScores


@dataclass
class RoundState:
    """The sites' results of one task.

    Attributes:
        started: when it began; like all times here by the monotonic clock, since the system's may be set meanwhile.
        asked: sites that are to do the task.
        updates: those that count.
        numbers: the other numbers of a result, by site.
        refused: why a result does not count, by site.
        came: seconds until the result, by site.
        late: sites whose update is of an earlier round.
        unable: when a site reported that it cannot do the task now, by site.
        collector: site that averages the updates; None for the server.
        summed: the scores over all sites of a sum, where each site's own are not known.
        ready: under secure aggregation, each site's keys and what it declares for the round's roster.
        apart: when a site reported that its update did not reach the collector, by site.
    """

    started: float = field(default_factory=time.monotonic)
    asked: list[str] = field(default_factory=list)
    updates: list[Update] = field(default_factory=list)
    numbers: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    came: dict[str, float] = field(default_factory=dict)
    late: list[str] = field(default_factory=list)
    unable: dict[str, float] = field(default_factory=dict)
    collector: str | None = None
    summed: SummedScores | None = None
    ready: dict[str, tuple[KeyAdvertisement, Ready]] = field(default_factory=dict)
    apart: dict[str, float] = field(default_factory=dict)

    def leave_out(self, site: str) -> None:
        """Drop a site's updates."""
        self.updates = [update for update in self.updates if update.site != site]

    def declare_norm(self, site: str, norm: float) -> None:
        """Note the norm of an update that the server does not see."""
        self.updates = [replace(one, norm=norm) if one.site == site else one for one in self.updates]

    @property
    def slowest_s(self) -> float:
        """Seconds that the slowest site took, without late ones."""
        in_time = (numbers for site, numbers in list(self.numbers.items()) if site not in self.late)
        return max((n.get("train_s", 0.0) + n.get("validate_s", 0.0) for n in in_time), default=0.0)

    @property
    def losses(self) -> dict[str, float]:
        """Each site's loss."""
        return {site: numbers["loss"] for site, numbers in sorted(self.numbers.items()) if "loss" in numbers}

    def participation(self, lost: Mapping[str, str]) -> dict[str, Any]:
        """Return each site's outcome of the round.

        Args:
            lost: sites that are away, with the reason.
        """
        taken = {update.site for update in self.updates}
        return {
            "asked": self.asked,
            "in_time": sorted(taken - set(self.late)),
            "late": sorted(taken & set(self.late)),
            "refused": dict(sorted(self.refused.items())),
            "lost": {site: lost[site] for site in self.asked if site in lost and site not in taken},
            "missing": sorted(site for site in self.asked if site not in taken and site not in self.refused),
            "seconds": {site: round(seconds, 3) for site, seconds in sorted(self.came.items())},
            "staleness": {update.site: update.staleness for update in self.updates if update.staleness},
        }
