from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from oncofed.job.watch import Curves, RunView, progress_bar

_TOLD: list[dict[str, Any]] = [
    {"kind": "started", "sites": ["east", "west"], "rounds": 2, "steps_per_round": 4, "metric": "dice"},
    {"kind": "ready", "seconds": 3.0, "sites": {"east": {"train": 4}, "west": {"train": 3}}},
    {"kind": "task", "task": "train", "round": 1, "sites": ["east", "west"]},
    {"kind": "progress", "site": "east", "phase": "training", "step": 2, "steps": 8, "loss": 0.9},
    {"kind": "answer", "site": "east", "task": "train", "round": 1},
    {"kind": "lost", "site": "west", "reason": "its process ended"},
    {"kind": "validation", "round": 0, "mean": 0.1, "sites": {"east": 0.1}},
    {
        "kind": "round",
        "round": 1,
        "seconds": 5.0,
        "slowest_site_s": 4.5,
        "losses": {"east": 0.8},
        "cases": {"east": 4},
    },
    {"kind": "task", "task": "train", "round": 2, "sites": ["east"]},
    {"kind": "validation", "round": 1, "mean": 0.4, "sites": {"east": 0.4}},
]
# By the server's clock, which is hours behind.
EVENTS = [{"time": 100.0 + seconds, **event} for seconds, event in enumerate(_TOLD)]


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
    told = [
        {"kind": "progress", "site": "east", "phase": "validating", "step": 64, "steps": 500},
        {"kind": "progress", "site": "west", "phase": "training", "step": 3, "steps": 8, "loss": 0.5},
    ]
    with view:
        view.update(EVENTS)
        view._next_line = 0.0
        view.update([{"time": 200.0, **event} for event in told])
        view.update([])  # not again at once
    assert text.getvalue().splitlines()[-1] == "round 2/2  east: validating 64/500; west: step 3"
    assert view._sooner() == 0  # the first round is over
    assert view.state.sites["east"].step == 2  # cases are no steps
    view.state.apply({"time": 201.0, "kind": "answer", "site": "east"})
    assert str(view.state.sites["east"]) == "done"


def test_before_the_first_round_is_over_what_is_new_is_said_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oncofed.job.watch._FIRST_LINE_SECONDS", 0.0)
    view, text = _view(tmp_path, terminal=False)
    checking = {"kind": "progress", "site": "east", "phase": "checking data", "step": 64, "steps": 500}
    with view:
        view.update(EVENTS[:1])
        view.update([{"time": 101.0, **checking}])
        view.update([{"time": 102.0, **checking, "step": 65}])  # nothing new
        view.update([{"time": 103.0, **checking, "phase": "loading data", "step": 1}])
    assert text.getvalue().splitlines() == [
        "east, west: starting",
        "east: checking data 64/500; west: starting",
        "east: loading data 1/500; west: starting",
    ]


def test_a_bar_is_a_line_now_and_then_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
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
    mean = EventAccumulator(str(tmp_path / "mean")).Reload()
    assert [e.step for e in mean.Scalars("validation/dice")] == [0, 1]
