"""How a run's updates were added up under masks, for result, report and card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import Field

from oncofed.data.grouping import counted
from oncofed.privacy.secure_aggregation import PROTOCOL
from oncofed.rounds.events import Summed
from oncofed.settings import StrictModel


class SumsUsed(StrictModel):
    """Secure aggregation in a run, as the server states it."""

    protocol: int = Field(PROTOCOL, description="version")
    rounds: int = Field(description="rounds whose updates were added up under masks")
    smallest: int = Field(description="fewest sites in a sum")
    threshold: int = Field(description="fewest sites without whose shares no mask could be lifted")
    colluding: int = Field(
        description="sites that may have helped the server in every round, without it reading an update"
    )
    lost: int = Field(description="updates that were lost on their way")
    failed: int = Field(description="sums that failed and were asked for again")

    def said(self) -> Iterator[tuple[str, str]]:
        """Yield what and how, for people."""
        yield "Secure aggregation", f"protocol {self.protocol}, in {counted(self.rounds, 'round')}"
        yield "What the server saw", f"sums of {self.smallest} sites or more, not the update of any"
        helped = f"unless {self.colluding + 1} sites or more helped it" if self.colluding else "unless a site helped it"
        yield "Provided that", f"{helped}, and the sites ran this release unchanged"
        yield "Stated by", "the server: these are its own figures, which no site confirms"
        yield (
            "Not hidden",
            "who took part, cases, steps, the length of each update, each site's scores and seconds",
        )
        if self.lost or self.failed:
            yield "Lost on the way", f"{counted(self.lost, 'update')}; {counted(self.failed, 'sum')} asked for again"


def sums_used(sums: Sequence[Summed], failed: int) -> SumsUsed | None:
    """Return how a run's updates were added up; None: they were not.

    Args:
        sums: of its rounds.
        failed: number of sums that failed.
    """
    if not sums:
        return None
    return SumsUsed(
        rounds=len({one.round for one in sums}),
        smallest=min(len(one.sites) for one in sums),
        threshold=min(one.threshold for one in sums),
        colluding=max(min(_colluding(one) for one in sums), 0),
        lost=sum(len(one.lost) for one in sums),
        failed=failed,
    )


def _colluding(one: Summed) -> int:
    """Return how many sites could help the server without it reading an update; below 0: none may be lost.

    A lying server needs two sets of t signatures and shares of the n sites of the roster. And who sees the sum takes
    off the helpers' own updates: those of two others have to be left.
    """
    n, t = len(one.sites) + len(one.lost), one.threshold
    return min(2 * t - n - 1, len(one.sites) - 2)
