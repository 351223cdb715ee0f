"""Follows a run: live view, timings."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from oncofed.errors import FederationError
from oncofed.job.backends import Running
from oncofed.job.curves import Curves
from oncofed.job.progress import TRAINING, RunProgress
from oncofed.rounds.events import (
    Event,
    EventReader,
    Incident,
    Ready,
    Unknown,
    Validated,
)

# Interval of progress lines in a long round, without a terminal.
_SECONDS_BETWEEN_LINES = 10.0
# Interval before the end of the first round, if a site enters another phase: nobody knows yet that the run works.
_FIRST_LINE_SECONDS = 2.0
_POLL_SECONDS = 0.2


class RunView:
    """Shows a run's progress.

    Live on a terminal, elsewhere a line per round.

    Args:
        console: for the view.
        curves: of the run.
    """

    def __init__(self, console: Console, curves: Curves) -> None:
        self.state = RunProgress()
        self._console = console
        self._curves = curves
        self._live: Live | None = None
        self._last_event = time.monotonic()
        self._last_line = self._last_event + _FIRST_LINE_SECONDS - _SECONDS_BETWEEN_LINES
        self._printed: dict[str, str] = {}
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
        """Apply and show new events."""
        for event in events:
            self.state.apply(event)
            self._last_event = time.monotonic()
            self._curves.write(event)
            if not self._live:
                self._print_event(event)
            if isinstance(event, Unknown) and event.name not in self._unknown:
                self._unknown.add(event.name)
                self._console.print(str(event), markup=False, highlight=False)
        self._curves.flush()
        if self._live:
            self._live.update(self._table())
        elif self.state.finished is None and time.monotonic() - self._last_line >= self._interval():
            self._print(self._activity())

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._last_line = time.monotonic()
        self._printed = self._states()

    def _states(self) -> dict[str, str]:
        return {name: site.state for name, site in self.state.sites.items()}

    def _interval(self) -> float:
        """Return the seconds between two lines."""
        news = not self.state.rounds_s and self._states() != self._printed
        return _FIRST_LINE_SECONDS if news else _SECONDS_BETWEEN_LINES

    def _activity(self) -> str:
        """Return a line with each site's activity, grouped."""
        state = self.state
        if not state.sites:
            return "waiting for the job to start at all sites …"
        by_activity: dict[str, list[str]] = {}
        for name, site in sorted(state.sites.items()):
            by_activity.setdefault(f"step {site.step}" if site.state == TRAINING else str(site), []).append(name)
        sites = "; ".join(f"{', '.join(names)}: {what}" for what, names in by_activity.items())
        return f"round {state.round}/{state.rounds or '?'}  {sites}" if state.round else sites

    def _print_event(self, event: Event) -> None:
        state = self.state
        if isinstance(event, Ready):
            cases = ", ".join(f"{site} {n['train']}" for site, n in sorted(event.sites.items()))
            self._print(f"sites ready after {event.seconds:.0f} s; training cases: {cases}")
        elif isinstance(event, Validated) and event.round > 0:
            losses = state.losses.get(event.round, {})
            sites = "  ".join(
                f"{site} loss {losses[site]:.3f} {state.metric} {_number(score)}"
                for site, score in sorted(event.sites.items())
                if site in losses
            )
            if event.summed:
                sites = f"loss {_number(state.loss_of_all.get(event.round))}  (means over the sites: theirs are masked)"
            left = f"  {_clock(state.seconds_left)} left" if state.seconds_left else ""
            score = f"mean validation {state.metric} {_number(event.mean)}"
            self._print(f"round {event.round}/{state.rounds}  {score}  {sites}{left}")
        elif isinstance(event, Incident):
            self._print(str(event))

    def _elapsed(self) -> float | None:
        """Return the seconds since the start.

        Up to the last event by the server's clock, after it by this machine's.
        """
        if self.state.started is None:
            return None
        return self.state.latest - self.state.started + time.monotonic() - self._last_event

    def _table(self) -> Group:
        state = self.state
        if not state.sites:
            return Group("waiting for the job to start at all sites …")
        mean = state.validation.get(max(state.validation)) if state.validation else None
        left = f", about {_clock(state.seconds_left)} left" if state.seconds_left else ""
        seconds = self._elapsed()
        elapsed = f", {_clock(seconds)} so far" if seconds is not None else ""
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
    """A progress bar for output without a terminal.

    Prints a line every ten seconds.
    """

    def __init__(self, *columns: ProgressColumn, console: Console, shows_rate: bool) -> None:
        super().__init__(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._shows_rate = shows_rate
        self._next_line = time.monotonic() + _FIRST_LINE_SECONDS

    def update(self, task_id: TaskID, **values: Any) -> None:
        """Set the progress of a task."""
        super().update(task_id, **values)
        if self.disable and time.monotonic() >= self._next_line:
            task = self._tasks[task_id]
            line = f"{task.description}: {task.completed:.0f}/{task.total or 0:.0f}"
            if self._shows_rate and task.speed:
                line += f", {task.speed:.3g} a second, about {_clock(task.time_remaining)} left"
            self.console.print(line, highlight=False)
            self._next_line = time.monotonic() + _SECONDS_BETWEEN_LINES


class _Rate(ProgressColumn):
    """How much is done in a second."""

    def render(self, task: Task) -> Text:
        """Return the rate of the last minutes."""
        return Text(f"{task.speed:.3g}/s" if task.speed else "")


def go_on(state: RunProgress) -> bool:
    """Let a run go on to its end."""
    del state
    return True


def follow(running: Running, view: RunView, logs: Path, is_worth_it: Callable[[RunProgress], bool] = go_on) -> bool:
    """Show a run on this machine until it ends.

    Args:
        running: the run.
        view: that shows it.
        logs: folder of its output, for messages.
        is_worth_it: asked after news; False cuts the run short.

    Returns:
        Whether it came to its end.

    Raises:
        FederationError: the run failed.
    """
    reader = EventReader(running.events)
    while view.state.finished is None:
        status = running.ended()
        view.update(reader.read())
        if view.state.failed:
            raise FederationError(f"{view.state.failed.rstrip('.')}. Logs: {logs}")
        if not is_worth_it(view.state):
            return False
        if view.state.finished is None:
            if status is not None:
                raise FederationError(f"the job ended early ({status}). Logs: {logs}")
            running.require_going()
            time.sleep(_POLL_SECONDS)
    return True


def progress_bar(console: Console, shows_rate: bool = False) -> Progress:
    """Return a progress bar, or lines without a terminal.

    Args:
        console: to print to.
        shows_rate: also show how much is done in a second.
    """
    return _Lines(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        *([_Rate()] if shows_rate else []),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        shows_rate=shows_rate,
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"
