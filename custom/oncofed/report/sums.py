"""How a run's updates were added up under masks, for result, report and card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import Field

from oncofed.data.grouping import counted
from oncofed.privacy.secure_aggregation import PROTOCOL
from oncofed.privacy.settings import ScoresKind
from oncofed.rounds.events import Summed
from oncofed.settings import StrictModel


class SumsUsed(StrictModel):
    """Secure aggregation in a run, as the server states it."""

    protocol: int = Field(PROTOCOL, description="version")
    rounds: int = Field(description="rounds whose updates were added up under masks")
    smallest: int = Field(description="fewest sites in a sum")
    threshold: int = Field(description="fewest sites without whose shares no mask could be lifted")
    colluding: int = Field(
        description="sites that may have helped the server in every round, without it reading an update or a score"
    )
    scored: int | None = Field(None, description="fewest sites in a mean of scores; null: no scores were added up")
    lost: int = Field(description="updates that were lost on their way")
    failed: int = Field(description="sums that failed and were asked for again")
    bits: int = Field(32, description="of a masked word")
    scores: ScoresKind = Field("each", description="whether each site's scores are known, or their sum alone")

    def said(self) -> Iterator[tuple[str, str]]:
        """Yield what and how, for people."""
        yield "Secure aggregation", f"protocol {self.protocol}, in {counted(self.rounds, 'round')}"
        yield "What the server saw", f"sums of {self.smallest} sites or more, not the update of any"
        if self.scored:
            yield "Of scores", f"the mean over {self.scored} sites or more, not the score of any"
        helped = f"unless {self.colluding + 1} sites or more helped it" if self.colluding else "unless a site helped it"
        yield "Provided that", f"{helped}, and the sites ran this release unchanged"
        yield "Stated by", "the server: these are its own figures, which no site confirms"
        scores = "which scores it has" if self.scores == "summed" else "its scores"
        yield "Not hidden", f"who took part; of each site cases, steps, the length of its update, seconds, {scores}"
        if self.lost or self.failed:
            yield "Lost on the way", f"{counted(self.lost, 'update')}; {counted(self.failed, 'sum')} asked for again"


class ScoresOfAll(StrictModel):
    """Test scores over all sites, where no single site's are known."""

    mean: float | None = Field(None, description="over the sites; null: too few have one")
    sites: int = Field(description="that have a score")
    patients: int = Field(description="behind it")
    by_class: dict[str, float] = Field(default_factory=dict, description="class or target -> mean over the sites")
    more: dict[str, float] = Field(default_factory=dict, description="further figure -> mean over the sites")

    def said(self, metric: str) -> Iterator[tuple[str, str]]:
        """Yield what and how, for people.

        Args:
            metric: its name.
        """
        if self.mean is None:
            yield "Scores", "none: they leave in a sum alone, and too few sites have one, or the sum was lost"
            return
        whose = f"over {counted(self.sites, 'site')} with {counted(self.patients, 'test patient')}"
        yield "Scores", f"{metric} {self.mean:.3f} {whose}; no single site's is known, so that no worst one is named"
        for name, value in (*self.by_class.items(), *self.more.items()):
            yield name.replace("_", " ").replace(".", ", "), f"{value:.3f}, mean over the sites that have it"


def sums_used(sums: Sequence[Summed], failed: int, bits: int = 32, scores: ScoresKind = "each") -> SumsUsed | None:
    """Return how a run's updates were added up; None: they were not.

    Args:
        sums: of its rounds, and of scores.
        failed: number of sums that failed.
        bits: of a masked word.
        scores: how the sites' scores left.
    """
    if not any(not one.split for one in sums):
        return None
    return SumsUsed(
        rounds=len({one.round for one in sums if not one.split}),
        bits=bits,
        scores=scores,
        smallest=min(len(one.sites) for one in sums),
        scored=min((one.scored for one in sums if one.scored), default=None),
        threshold=min(one.threshold for one in sums),
        colluding=max(min(_colluding(one) for one in sums), 0),
        lost=sum(len(one.lost) for one in sums),
        failed=failed,
    )


def _colluding(one: Summed) -> int:
    """Return how many sites could help the server without it reading an update; below 0: none may be lost.

    A lying server needs two sets of t signatures and shares of the n sites of the roster. And who sees the sum takes
    off the helpers' own updates and scores: those of two others have to be left.
    """
    n, t = len(one.sites) + len(one.lost), one.threshold
    return min(2 * t - n - 1, len(one.sites) - 2, (one.scored or n) - 2)
