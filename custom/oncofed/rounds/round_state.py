"""What the sites answered to one question, and what of it is told in the run's record."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from oncofed.algorithms import Update


@dataclass
class RoundState:
    """What the sites answered to one question.

    Attributes:
        started: when it was asked; like all times here by the monotonic clock, since a machine's may be set meanwhile.
        updates: those that count.
        numbers: what else each site said.
        refused: why an update was not taken, by site.
        came: seconds until each site's answer.
        late: sites whose update is of an earlier round.
        unable: when sites said that they cannot answer now, by site.
        collector: the site that puts the updates together; None: the server.
        apart: when sites said that their update did not reach it, by site.
    """

    started: float = field(default_factory=time.monotonic)
    updates: list[Update] = field(default_factory=list)
    numbers: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    came: dict[str, float] = field(default_factory=dict)
    late: list[str] = field(default_factory=list)
    unable: dict[str, float] = field(default_factory=dict)
    collector: str | None = None
    apart: dict[str, float] = field(default_factory=dict)

    @property
    def slowest_s(self) -> float:
        """How long the slowest site that was in time trained and validated."""
        in_time = (numbers for site, numbers in self.numbers.items() if site not in self.late)
        return max((n.get("train_s", 0.0) + n.get("validate_s", 0.0) for n in in_time), default=0.0)

    @property
    def losses(self) -> dict[str, float]:
        """Each site's loss."""
        return {site: numbers["loss"] for site, numbers in sorted(self.numbers.items()) if "loss" in numbers}

    def participation(self, asked: list[str], lost: Mapping[str, str]) -> dict[str, Any]:
        """Return what became of every site that was asked; ``lost`` says why sites are not there."""
        taken = {update.site for update in self.updates}
        return {
            "asked": asked,
            "in_time": sorted(taken - set(self.late)),
            "late": sorted(taken & set(self.late)),
            "refused": dict(sorted(self.refused.items())),
            "lost": {site: lost[site] for site in asked if site in lost and site not in taken},
            "missing": sorted(site for site in asked if site not in taken and site not in self.refused),
            "seconds": {site: round(seconds, 3) for site, seconds in sorted(self.came.items())},
            "staleness": {update.site: update.staleness for update in self.updates if update.staleness},
        }
