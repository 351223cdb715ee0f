from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from oncofed.job.watch import Curves, RunView

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
