from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from oncofed.job.curves import Curves
from oncofed.job.progress import RunProgress
from oncofed.job.watch import RunView, progress_bar
from oncofed.rounds.events import (
    TRAINING_EVENTS,
    Answered,
    CrossSite,
    Event,
    Incident,
    Lost,
    Ready,
    RoundEnded,
    SiteProgress,
    Started,
    TaskSent,
    Unknown,
    Validated,
)

# By the server's clock, which is hours behind.
EVENTS: list[Event] = [
    Started(time=100.0, sites=["east", "west"], rounds=2, steps_per_round=4, metric="dice", strategy="fedavg"),
    Ready(time=101.0, seconds=3.0, sites={"east": {"train": 4}, "west": {"train": 3}}),
    TaskSent(time=102.0, task="train", round=1, split="validation", sites=["east", "west"]),
    SiteProgress(time=103.0, site="east", phase="training", step=2, steps=8, loss=0.9),
    Answered(time=104.0, site="east", task="train", round=1),
    Lost(time=105.0, site="west", reason="its process ended"),
    Validated(time=106.0, round=0, mean=0.1, sites={"east": 0.1}),
    RoundEnded(
        time=107.0,
        round=1,
        seconds=5.0,
        slowest_site_s=4.5,
        losses={"east": 0.8},
        cases={"east": 4},
        participation={"in_time": ["east"]},
    ),
    TaskSent(time=108.0, task="train", round=2, split="validation", sites=["east"]),
    Validated(time=109.0, round=1, mean=0.4, sites={"east": 0.4}, by_class={"east": {"lump": 0.3, "size": 0.5}}),
]


def _view(tmp_path: Path, terminal: bool) -> tuple[RunView, io.StringIO]:
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=120)
    return RunView(console, Curves(tmp_path)), text


def test_the_state_follows_from_the_events(tmp_path: Path) -> None:
    view, _ = _view(tmp_path, terminal=False)
    with view:
        view.update(EVENTS)
    state = view.state
    assert (state.round, state.rounds, state.total_steps) == (2, 2, 8)
    assert state.sites["east"].step == 2
    assert state.sites["west"].state == "lost"
    assert state.lost == {"west": "its process ended"}
    assert state.seconds_left == 5.0
    assert state.validation == {0: 0.1, 1: 0.4}


def test_every_kind_of_event_is_taken_into_account() -> None:
    handlers = RunProgress.__dict__["_take"].dispatcher.registry
    # The scores of sites' own models are in the last event too.
    passed_over = {event for event in TRAINING_EVENTS if event not in handlers and not issubclass(event, Incident)}
    assert passed_over == {CrossSite}
    assert set(handlers) <= {*TRAINING_EVENTS, object}


def test_an_event_of_a_newer_server_is_noted_once(tmp_path: Path) -> None:
    view, text = _view(tmp_path, terminal=False)
    newer = Unknown(time=200.0, name="paused")
    with view:
        view.update([*EVENTS[:1], newer, newer])
    assert text.getvalue().splitlines()[0] == (
        "the server reports 'paused', which this version of oncofed does not know: skipped"
    )
    assert text.getvalue().count("paused") == 1
    assert view.state.incidents == []


def test_without_a_terminal_each_round_is_one_line(tmp_path: Path) -> None:
    view, text = _view(tmp_path, terminal=False)
    with view:
        view.update(EVENTS)
    lines = text.getvalue().splitlines()
    assert lines[0] == "sites ready after 3 s; training cases: east 4, west 3"
    assert lines[1] == "west was lost: its process ended"
    assert lines[2].startswith("round 1/2  mean validation dice 0.400  east loss 0.800 dice 0.400")


def test_without_a_terminal_a_long_round_says_what_the_sites_do(tmp_path: Path) -> None:
    view, text = _view(tmp_path, terminal=False)
    reports = [
        SiteProgress(time=200.0, site="east", phase="validating", step=64, steps=500),
        SiteProgress(time=200.0, site="west", phase="training", step=3, steps=8, loss=0.5),
    ]
    with view:
        view.update(EVENTS)
        view._last_line -= 10
        view.update(reports)
        view.update([])  # not again at once
    assert text.getvalue().splitlines()[-1] == "round 2/2  east: validating 64/500; west: step 3"
    assert view._interval() == 10  # the first round is over
    assert view.state.sites["east"].step == 2  # cases are no steps
    view.state.apply(Answered(time=201.0, site="east", task="train", round=2))
    assert str(view.state.sites["east"]) == "done"


def test_phases_before_the_end_of_the_first_round_are_printed_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oncofed.job.watch._FIRST_LINE_SECONDS", 0.0)
    view, text = _view(tmp_path, terminal=False)
    checking = SiteProgress(time=101.0, site="east", phase="checking data", step=64, steps=500)
    with view:
        view.update(EVENTS[:1])
        view.update([checking])
        view.update([replace(checking, time=102.0, step=65)])  # nothing new
        view.update([replace(checking, time=103.0, phase="loading data", step=1)])
    assert text.getvalue().splitlines() == [
        "east, west: starting",
        "east: checking data 64/500; west: starting",
        "east: loading data 1/500; west: starting",
    ]


def test_a_progress_bar_prints_lines_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    monkeypatch.setattr("oncofed.job.watch._FIRST_LINE_SECONDS", 0.0)
    with progress_bar(Console(file=text, width=120)) as bar:
        task = bar.add_task("checking images of east", total=100)
        for done in range(100):
            bar.update(task, completed=done)
    assert text.getvalue() == "checking images of east: 0/100\n"


def test_on_a_terminal_the_sites_are_shown_live(tmp_path: Path) -> None:
    view, text = _view(tmp_path, terminal=True)
    with view:
        view.update(EVENTS)
        view._live.refresh()  # type: ignore[union-attr]
    assert "round 2/2" in text.getvalue()
    assert re.search(r", \d\d? s so far", text.getvalue())
    assert "west" in text.getvalue()
    assert "lost" in text.getvalue()


def test_curves_are_tensorboard_files(tmp_path: Path) -> None:
    view, _ = _view(tmp_path, terminal=False)
    with view:
        view.update(EVENTS)
    east = EventAccumulator(str(tmp_path / "east")).Reload()
    assert [(e.step, round(e.value, 3)) for e in east.Scalars("train/loss")] == [(2, 0.9)]
    assert [one.value for one in east.Scalars("validation_by_class/size")] == [0.5]
    mean = EventAccumulator(str(tmp_path / "mean")).Reload()
    assert [e.step for e in mean.Scalars("validation/dice")] == [0, 1]
