"""Following a run: from the server's events to a live view, TensorBoard curves and timings."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import singledispatchmethod
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from torch.utils.tensorboard import SummaryWriter

from oncofed.rounds.events import (
    Answered,
    Event,
    Excluded,
    Failed,
    Finished,
    Incident,
    Joined,
    Late,
    Lost,
    Ready,
    Refused,
    Returned,
    RoundEnded,
    SiteProgress,
    Started,
    Stopped,
    TaskSent,
    Unknown,
    Validated,
)

_STATES = {"prepare": "preparing", "train": "waiting", "validate": "waiting", "combine": "averaging"}


# What a site tells the training's own steps of; in every other phase it counts cases.
_TRAINING = "training"
# Without a terminal, how often a line says what the sites do in a round that takes long.
_SECONDS_BETWEEN_LINES = 10.0
# Sooner before the first round is over, wherever a site begins with something else: nobody knows yet that it works.
_FIRST_LINE_SECONDS = 2.0


@dataclass
class SiteState:
    """What is known of one site now.

    Attributes:
        state: what it does.
        step: optimizer steps since the start of the run.
        done: (cases done, cases in all) of what it does, where it does not train.
        loss: of its last step.
        validation: score of the global model there.
    """

    state: str = "starting"
    step: int = 0
    done: tuple[int, int] | None = None
    loss: float | None = None
    validation: float | None = None

    def now(self, state: str) -> None:
        """Note what it does from now on."""
        self.state, self.done = state, None

    def __str__(self) -> str:
        return f"{self.state} {self.done[0]}/{self.done[1]}" if self.done else self.state


@dataclass
class RunProgress:
    """What the events so far say of a run.

    Attributes:
        sites: state by site.
        metric: what the validation score is called.
        round: the round that runs, from 1; 0 before the first.
        rounds: how many there are.
        validation: mean validation score of the global model after each round, from round 0.
        validation_by_site: the same by site.
        losses: mean training loss by round and site.
        rounds_s: wall time of each round in seconds.
        slowest_site_s: training and validation time of each round's slowest site in seconds.
        lost: why a site is not there now.
        latest: when the server wrote its last event, by its own clock, as ``started``.
        participation: who took part in each round, by round.
        incidents: what did not go as usual, in order.
        finished: what the server said at the end.
        failed: why the run failed.
        stopped: whether somebody stopped it.
    """

    sites: dict[str, SiteState] = field(default_factory=dict)
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
    rounds_s: list[float] = field(default_factory=list)
    slowest_site_s: list[float] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)
    participation: dict[int, dict[str, Any]] = field(default_factory=dict)
    incidents: list[Incident] = field(default_factory=list)
    finished: Finished | None = None
    failed: str | None = None
    stopped: bool = False

    def apply(self, event: Event) -> None:
        """Take one event of the server into account."""
        self.latest = event.time
        if isinstance(event, Incident):
            self.incidents.append(event)
        self._take(event)

    def _site(self, name: str) -> SiteState:
        return self.sites.setdefault(name, SiteState())

    @singledispatchmethod
    def _take(self, event: Event) -> None:
        """Take over what an event changes, one method a class; most incidents change nothing else."""

    @_take.register
    def _started(self, event: Started) -> None:
        self.started = self.started or event.time
        self.metric = event.metric or self.metric
        self.rounds = event.rounds
        self.total_steps = event.rounds * event.steps_per_round
        self.sites = {site: self.sites.get(site, SiteState()) for site in event.sites}

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
    def _task_sent(self, event: TaskSent) -> None:
        self.round = max(self.round, event.round)
        for site in event.sites:
            self._site(site).now(_STATES.get(event.task, "waiting"))

    @_take.register
    def _progress(self, event: SiteProgress) -> None:
        site = self._site(event.site)
        site.now(event.phase or site.state)
        if site.state == _TRAINING:
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
        self.participation[event.round] = event.participation or {}
        self.rounds_s.append(event.seconds)
        self.slowest_site_s.append(event.slowest_site_s)

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
        """Estimate from the rounds so far; None before the first is over."""
        if not self.rounds_s:
            return None
        usual = sum(self.rounds_s) / len(self.rounds_s)
        return usual * (self.rounds - len(self.rounds_s))


class Curves:
    """Writes a run's curves as TensorBoard files, one folder a site and one for the mean."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[str, SummaryWriter] = {}
        self._validation = "validation/score"

    def write(self, event: Event) -> None:
        """Add what an event says of a curve."""
        if isinstance(event, Started) and event.metric:
            self._validation = f"validation/{event.metric}"
        elif isinstance(event, SiteProgress) and event.loss is not None:
            self._of(event.site).add_scalar("train/loss", event.loss, event.step)
        elif isinstance(event, Validated):
            for site, score in event.sites.items():
                if score is not None:
                    self._of(site).add_scalar(self._validation, score, event.round)
            if event.mean is not None:
                self._of("mean").add_scalar(self._validation, event.mean, event.round)
        elif isinstance(event, RoundEnded):
            self._of("mean").add_scalar("time/round_s", event.seconds, event.round)

    def flush(self) -> None:
        """Make what was written visible to a running TensorBoard."""
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """Finish the files."""
        for writer in self._writers.values():
            writer.close()

    def _of(self, name: str) -> SummaryWriter:
        if name not in self._writers:
            self._writers[name] = SummaryWriter(str(self._folder / name), flush_secs=5)
        return self._writers[name]


class RunView:
    """Shows a run while it goes: live on a terminal, a line for each round elsewhere.

    Args:
        console: where to show it.
        curves: where its curves are written.
    """

    def __init__(self, console: Console, curves: Curves) -> None:
        self.state = RunProgress()
        self._console = console
        self._curves = curves
        self._live: Live | None = None
        self._heard = time.monotonic()
        self._next_line = self._heard + _FIRST_LINE_SECONDS
        self._said: dict[str, str] = {}
        self._unknown: set[str] = set()

    def __enter__(self) -> RunView:
        if self._console.is_terminal:
            self._live = Live(self._table(), console=self._console, refresh_per_second=4, transient=True)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.__exit__(kind, error, trace)
        self._curves.close()

    def update(self, events: Iterable[Event]) -> None:
        """Take new events into account and show them."""
        for event in events:
            self.state.apply(event)
            self._heard = time.monotonic()
            self._curves.write(event)
            if not self._live:
                self._tell(event)
            if isinstance(event, Unknown) and event.name not in self._unknown:
                self._unknown.add(event.name)
                self._console.print(str(event), markup=False, highlight=False)
        self._curves.flush()
        if self._live:
            self._live.update(self._table())
        elif self.state.finished is None and time.monotonic() >= self._next_line - self._sooner():
            self._say(self._now())

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
        self._said = self._doing()

    def _doing(self) -> dict[str, str]:
        return {name: site.state for name, site in self.state.sites.items()}

    def _sooner(self) -> float:
        """Return by how many seconds the next line is due sooner, as there is news."""
        news = not self.state.rounds_s and self._doing() != self._said
        return _SECONDS_BETWEEN_LINES - _FIRST_LINE_SECONDS if news else 0.0

    def _now(self) -> str:
        """Return in a line what the sites do now, those that do the same together."""
        state = self.state
        if not state.sites:
            return "waiting for the job to start at all sites …"
        doing: dict[str, list[str]] = {}
        for name, site in sorted(state.sites.items()):
            doing.setdefault(f"step {site.step}" if site.state == _TRAINING else str(site), []).append(name)
        sites = "; ".join(f"{', '.join(names)}: {what}" for what, names in doing.items())
        return f"round {state.round}/{state.rounds or '?'}  {sites}" if state.round else sites

    def _tell(self, event: Event) -> None:
        state = self.state
        if isinstance(event, Ready):
            cases = ", ".join(f"{site} {n['train']}" for site, n in sorted(event.sites.items()))
            self._say(f"sites ready after {event.seconds:.0f} s; training cases: {cases}")
        elif isinstance(event, Validated) and event.round > 0:
            losses = state.losses.get(event.round, {})
            sites = "  ".join(
                f"{site} loss {losses[site]:.3f} {state.metric} {_number(score)}"
                for site, score in sorted(event.sites.items())
                if site in losses
            )
            left = f"  {_clock(state.seconds_left)} left" if state.seconds_left else ""
            score = f"mean validation {state.metric} {_number(event.mean)}"
            self._say(f"round {event.round}/{state.rounds}  {score}  {sites}{left}")
        elif isinstance(event, Incident):
            self._say(str(event))

    def _so_far(self) -> float | None:
        """Return how long the run has gone on: until its last event by the server's clock, and since then by ours."""
        if self.state.started is None:
            return None
        return self.state.latest - self.state.started + time.monotonic() - self._heard

    def _table(self) -> Group:
        state = self.state
        if not state.sites:
            return Group("waiting for the job to start at all sites …")
        mean = state.validation.get(max(state.validation)) if state.validation else None
        left = f", about {_clock(state.seconds_left)} left" if state.seconds_left else ""
        so_far = self._so_far()
        elapsed = f", {_clock(so_far)} so far" if so_far is not None else ""
        title = (
            f"round {state.round}/{state.rounds or '?'}, mean validation {state.metric} {_number(mean)}{elapsed}{left}"
        )
        table = Table(title=title, title_justify="left", expand=False)
        for heading in ("site", "state", "step", "loss", f"validation {state.metric}"):
            table.add_column(heading, justify="left" if heading in ("site", "state") else "right")
        for name, site in sorted(state.sites.items()):
            colour = {"lost": "red", "done": "green", "finished": "green"}.get(site.state, "")
            table.add_row(
                name,
                f"[{colour}]{site}[/]" if colour else str(site),
                f"{site.step}/{state.total_steps}",
                _number(site.loss),
                _number(site.validation),
            )
        return Group(table)


class _Lines(Progress):
    """A bar that, where the output is not a terminal, is a line every ten seconds."""

    def __init__(self, *columns: ProgressColumn, console: Console) -> None:
        super().__init__(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._next_line = time.monotonic() + _FIRST_LINE_SECONDS

    def update(self, task_id: TaskID, **values: Any) -> None:
        """Take how far a task is."""
        super().update(task_id, **values)
        if self.disable and time.monotonic() >= self._next_line:
            task = self._tasks[task_id]
            self.console.print(f"{task.description}: {task.completed:.0f}/{task.total or 0:.0f}", highlight=False)
            self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES


def progress_bar(console: Console) -> Progress:
    """Return a bar for work with a known end; a line now and then where the output is not a terminal."""
    return _Lines(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"
