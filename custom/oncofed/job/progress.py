"""How far a run has come, by its events."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import singledispatchmethod
from typing import Any

from oncofed.messages.secure_aggregation import SECURE_STEPS
from oncofed.rounds.events import (
    Answered,
    Event,
    Excluded,
    Failed,
    Finished,
    Harmonized,
    Incident,
    Joined,
    Late,
    Lost,
    Ready,
    Refused,
    Returned,
    RoundEnded,
    SiteProgress,
    Standardised,
    Started,
    Stopped,
    Summed,
    TaskSent,
    Validated,
)

_STATES = {
    "prepare": "preparing",
    "train": "waiting",
    "validate": "waiting",
    "combine": "averaging",
    **{step.task: "masking" for step in SECURE_STEPS},
}
# In this phase sites report optimizer steps, in all others cases.
TRAINING = "training"


@dataclass
class WatchedSite:
    """State of one site, as a run shows it.

    Attributes:
        state: activity, as shown.
        step: optimizer steps since the start of the run.
        done: (cases done, all cases) of a phase other than training.
        loss: of the last step.
        validation: score of the global model at this site.
    """

    state: str = "starting"
    step: int = 0
    done: tuple[int, int] | None = None
    loss: float | None = None
    validation: float | None = None

    def now(self, state: str) -> None:
        """Enter another state."""
        self.state, self.done = state, None

    def __str__(self) -> str:
        return f"{self.state} {self.done[0]}/{self.done[1]}" if self.done else self.state


@dataclass
class RunProgress:
    """State of a run after its events so far.

    Attributes:
        sites: state by site.
        metric: short name of the validation score.
        round: number of the present round, from 1; 0 before the first.
        rounds: planned number.
        total_steps: optimizer steps of a site in all rounds.
        started: time of the first start, by the server's clock.
        validation: mean validation score of the global model after each round, from round 0.
        validation_by_site: the same by site.
        losses: mean training loss by round and site.
        loss_of_all: the same over all sites, where no site's is known.
        similarity: of each site's update to the others', by round.
        summed_scores: whether the mean over all sites alone is known of scores.
        rounds_s: wall time of each round in seconds.
        slowest_site_s: training and validation time of each round's slowest site in seconds.
        lost: reason by absent site.
        latest: time of the last event, by the server's clock.
        ready_s: seconds until the sites were ready.
        cases: numbers of cases by site.
        participation: ``RoundEnded.participation`` by round.
        sums: of masked updates.
        agreed: the sites behind each number that was agreed on before the first round; None: nothing was.
        harmonized: what the sites agreed on for ComBat; None: nothing.
        incidents: in order.
        finished: last event of a run that ended well.
        failed: why the run failed.
        stopped: whether somebody stopped it.
    """

    sites: dict[str, WatchedSite] = field(default_factory=dict)
    metric: str = "score"
    round: int = 0
    rounds: int = 0
    total_steps: int = 0
    started: float | None = None
    latest: float = 0.0
    ready_s: float | None = None
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)
    validation: dict[int, float] = field(default_factory=dict)
    validation_by_site: dict[int, dict[str, float | None]] = field(default_factory=dict)
    losses: dict[int, dict[str, float]] = field(default_factory=dict)
    loss_of_all: dict[int, float] = field(default_factory=dict)
    similarity: dict[int, dict[str, float]] = field(default_factory=dict)
    summed_scores: bool = False
    rounds_s: list[float] = field(default_factory=list)
    slowest_site_s: list[float] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)
    participation: dict[int, dict[str, Any]] = field(default_factory=dict)
    sums: list[Summed] = field(default_factory=list)
    agreed: dict[str, list[str]] | None = None
    harmonized: Harmonized | None = None
    incidents: list[Incident] = field(default_factory=list)
    finished: Finished | None = None
    failed: str | None = None
    stopped: bool = False

    def apply(self, event: Event) -> None:
        """Apply one event."""
        self.latest = event.time
        if isinstance(event, Incident):
            self.incidents.append(event)
        self._take(event)

    def _site(self, name: str) -> WatchedSite:
        return self.sites.setdefault(name, WatchedSite())

    @singledispatchmethod
    def _take(self, event: Event) -> None:
        """Ignore events of classes without a method here."""

    @_take.register
    def _started(self, event: Started) -> None:
        self.started = self.started or event.time
        self.metric = event.metric or self.metric
        self.rounds = event.rounds
        self.total_steps = event.rounds * event.steps_per_round
        self.sites = {site: self.sites.get(site, WatchedSite()) for site in event.sites}

    @_take.register
    def _joined(self, event: Joined) -> None:
        self.cases[event.site] = event.cases
        self._site(event.site).now("ready")

    @_take.register
    def _returned(self, event: Returned) -> None:
        self.lost.pop(event.site, None)
        self._site(event.site).now("back")

    @_take.register
    def _refused(self, event: Refused) -> None:
        self._site(event.site).now("refused")

    @_take.register
    def _late(self, event: Late) -> None:
        self._site(event.site).now("late")

    @_take.register
    def _excluded(self, event: Excluded) -> None:
        self.lost[event.site] = event.reason
        self._site(event.site).now("excluded")

    @_take.register
    def _lost(self, event: Lost) -> None:
        self.lost[event.site] = event.reason
        self._site(event.site).now("lost")

    @_take.register
    def _ready(self, event: Ready) -> None:
        self.ready_s = self.ready_s or event.seconds
        self.cases = event.sites

    @_take.register
    def _standardised(self, event: Standardised) -> None:
        self.agreed = event.sites

    @_take.register
    def _harmonized(self, event: Harmonized) -> None:
        self.harmonized = event

    @_take.register
    def _task_sent(self, event: TaskSent) -> None:
        self.round = max(self.round, event.round)
        for site in event.sites:
            self._site(site).now(_STATES.get(event.task, "waiting"))

    @_take.register
    def _progress(self, event: SiteProgress) -> None:
        site = self._site(event.site)
        site.now(event.phase or site.state)
        if site.state == TRAINING:
            site.step = event.step if event.step is not None else site.step
        elif event.step is not None and event.steps is not None:
            site.done = event.step, event.steps
        site.loss = event.loss if event.loss is not None else site.loss

    @_take.register
    def _answered(self, event: Answered) -> None:
        self._site(event.site).now("done")

    @_take.register
    def _validated(self, event: Validated) -> None:
        self.validation_by_site[event.round] = event.sites
        if event.mean is not None:
            self.validation[event.round] = event.mean
        for site, score in event.sites.items():
            self._site(site).validation = score

    @_take.register
    def _round_ended(self, event: RoundEnded) -> None:
        self.losses[event.round] = event.losses
        if event.loss is not None:
            self.loss_of_all[event.round] = event.loss
        if event.similarity is not None:
            self.similarity[event.round] = event.similarity
        self.participation[event.round] = event.participation or {}
        self.rounds_s.append(event.seconds)
        self.slowest_site_s.append(event.slowest_site_s)

    @_take.register
    def _summed(self, event: Summed) -> None:
        self.sums.append(event)
        self.summed_scores = self.summed_scores or bool(event.split)

    @_take.register
    def _finished(self, event: Finished) -> None:
        self.finished = event
        for site in self.sites.values():
            if site.state != "lost":
                site.now("finished")

    @_take.register
    def _failed(self, event: Failed) -> None:
        self.failed = event.reason

    @_take.register
    def _stopped(self, event: Stopped) -> None:
        self.stopped = True

    @property
    def seconds_left(self) -> float | None:
        """Estimate from past rounds; None before the first ended."""
        if not self.rounds_s:
            return None
        mean = sum(self.rounds_s) / len(self.rounds_s)
        return mean * (self.rounds - len(self.rounds_s))
