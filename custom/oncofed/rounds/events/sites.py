"""Events of single sites: who joined, what they were asked, answered and missed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from oncofed.rounds.events.base import Event, Incident, InDigest


@dataclass(frozen=True, kw_only=True)
class Joined(Event):
    """A site has loaded its data.

    Attributes:
        site: its name.
        cases: numbers of cases by split, and what else the site reports of its data.
        started: seconds since the server began to wait.
    """

    kind = "joined"
    in_digest = InDigest.START

    site: str
    cases: dict[str, Any]
    started: float


@dataclass(frozen=True, kw_only=True)
class Excluded(Incident):
    """A site's data cannot be used."""

    kind = "excluded"
    message = "{site} does not take part: {reason}"

    site: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class EncoderUnknown(Incident):
    """A site brings features, all or some without the digest of the encoder's weights."""

    kind = "encoder_unknown"
    message = (
        "{site} does not know of all its features which weights made them: they count, as the job pins none "
        "(task.encoder.digest)"
    )

    site: str


@dataclass(frozen=True, kw_only=True)
class TaskSent(Event):
    """Sites were sent a task.

    Attributes:
        task: name of the task.
        round: number of the round, 0 before the first.
        split: of the cases to score; empty for tasks that score none.
        sites: names.
    """

    kind = "task"
    in_digest = InDigest.NONE

    task: str
    round: int
    split: str
    sites: list[str]


@dataclass(frozen=True, kw_only=True)
class SiteProgress(Event):
    """A site reports how far it is.

    Attributes:
        site: its name.
        phase: such as ``training``.
        round: number of the round.
        step: optimizer steps since the start of the run while it trains, else cases done.
        steps: how many there will be.
        loss: of the last step.
    """

    kind = "progress"
    in_digest = InDigest.NEWEST_OF_SITE
    sparse = True

    site: str
    phase: str | None = None
    round: int | None = None
    step: int | None = None
    steps: int | None = None
    loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class Answered(Event):
    """A site's result arrived and counts."""

    kind = "answer"
    in_digest = InDigest.NEWEST_OF_SITE

    site: str
    task: str
    round: int


@dataclass(frozen=True, kw_only=True)
class Late(Incident):
    """An update arrived after its round had ended.

    Attributes:
        site: its name.
        round: of the update.
        seconds: since that round began.
    """

    kind = "late"
    message = "the update of {site} for round {round} came after the round had ended"

    site: str
    round: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Dropped(Incident):
    """A result arrived too late to count.

    Attributes:
        site: its name.
        task: name of the task.
        round: of the task, where known.
        staleness: rounds between the model that was trained and the present one, of an update too old.
    """

    kind = "dropped"
    message = "an update of {site} came too late and was left out"
    sparse = True

    site: str
    task: str
    round: int | None = None
    staleness: int | None = None


@dataclass(frozen=True, kw_only=True)
class Refused(Incident):
    """A site's result does not count."""

    kind = "refused"
    message = "an update of {site} was refused in round {round}: {reason}"

    site: str
    round: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Lost(Incident):
    """A site is away."""

    kind = "lost"
    message = "{site} was lost: {reason}"

    site: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Returned(Incident):
    """A lost site is back."""

    kind = "returned"
    message = "{site} is back"

    site: str


@dataclass(frozen=True, kw_only=True)
class SiteNotKept(Incident):
    """A site could not write its state of a round."""

    kind = "site_not_kept"
    message = "{site} could not keep its state of round {round} ({reason}): free some space there"

    site: str
    round: int
    reason: str
