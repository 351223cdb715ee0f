"""A job's rounds with in-memory sites.

Quorum, deadline, lost and late sites, restarts and schedules.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from oncofed.algorithms.plan import FederationPlan
from oncofed.errors import FederationError, NotEnoughSitesError
from oncofed.messages.requests import CombineRequest, EvaluateRequest, PrepareRequest, Request, SumsAsked, TrainRequest
from oncofed.messages.results import CombineResult, EvaluateResult, Refusal, Result, TrainResult
from oncofed.models.weights import Weights
from oncofed.rounds import store
from oncofed.rounds.events import (
    BEST_MODEL,
    EVENTS_FILE,
    MODELS_FOLDER,
    Answered,
    EarlyStop,
    Event,
    EventLog,
    EventReader,
    Excluded,
    Finished,
    Joined,
    Late,
    Lost,
    NotKept,
    Refused,
    Resumed,
    Returned,
    RoundEnded,
    SiteNotKept,
    Started,
    Validated,
)
from oncofed.rounds.in_memory import Delayed, InMemorySites, Site
from oncofed.rounds.run_state import RunState, read_run_state, write_run_state
from oncofed.rounds.site_task import SiteTask
from oncofed.rounds.sites import StoppedError
from oncofed.rounds.store import RunStore
from oncofed.tasks.calibration import CALIBRATION_FILE, TEMPERATURES
from tiny_federation import (
    CLASSIFICATION,
    WEIGHTS,
    Killed,
    Recorder,
    TinySite,
    score_of,
    tiny_loop,
    tiny_sites,
    trained_delta,
)

EventT = TypeVar("EventT", bound=Event)


class _Run(list[Event]):
    """A run's events and files."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def of(self, kind: type[EventT]) -> list[EventT]:
        return [event for event in self if isinstance(event, kind)]

    @property
    def rounds(self) -> list[dict[str, Any]]:
        return [dict(event.participation or {}) for event in self.of(RoundEnded)]

    @property
    def best(self) -> Weights:
        return load_file(self.folder / MODELS_FOLDER / BEST_MODEL)

    @property
    def last(self) -> Weights:
        state = read_run_state(self.folder)
        assert state
        return state.model


def _run(
    folder: Path,
    sites: Mapping[str, Site],
    settings: dict[str, Any],
    before_wait: Callable[[InMemorySites], None] | None = None,
    **arguments: Any,
) -> _Run:
    run = _Run(folder)
    loop = tiny_loop(folder, InMemorySites(sites, before_wait), run.append, settings=settings, **arguments)
    try:
        loop.run()
    finally:
        loop.close()
    return run


def _at(seconds: float, act: Callable[[InMemorySites], None]) -> Callable[[InMemorySites], None]:
    """Return a callback that acts once, at a given time."""
    done: list[bool] = []

    def before_wait(sites: InMemorySites) -> None:
        if sites.now >= seconds and not done:
            done.append(True)
            act(sites)

    return before_wait


def _slow(site: Site, seconds: float, rounds: set[int]) -> Site:
    """Return a site that is slow in some rounds."""

    def work(request: Request) -> Result | Refusal | Delayed:
        answer = site(request)
        if isinstance(request, TrainRequest) and request.round in rounds:
            return Delayed(answer.result if isinstance(answer, Delayed) else answer, seconds)
        return answer

    return work


def _refusing(site: Site, refusals: dict[int, list[Refusal]]) -> Site:
    """Return a site that refuses to train in some rounds.

    It refuses once for each given refusal.
    """

    def work(request: Request) -> Result | Refusal | Delayed:
        if isinstance(request, TrainRequest) and refusals.get(request.round):
            site(request)
            return refusals[request.round].pop(0)
        return site(request)

    return work


def _mean_of(model: Weights, **cases: int) -> Weights:
    """Return the weighted mean model after these sites' training."""
    deltas = {site: trained_delta(site, model) for site in cases}
    total = sum(cases.values())
    moved = {
        name: model[name] + sum(deltas[site][name] * (cases[site] / total) for site in sorted(cases))
        for name in ("w", "mean")
    }
    return {**model, **moved, "count": model["count"] + 4}


def _assert_close(model: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert model.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(model[name], value)


def test_a_run_from_first_to_last_round(tmp_path: Path) -> None:
    sites = tiny_sites(east=3, west=9)
    run = _run(tmp_path, sites, {"rounds": {"number": 2}})
    kinds = [event.kind for event in run if event.kind not in ("task", "answer")]
    assert kinds == [
        "started",
        "joined",
        "joined",
        "ready",
        *["validation", "round"] * 2,
        "validation",
        "finished",
    ]
    assert [type(request) for request in sites["east"].requests] == [
        PrepareRequest,
        TrainRequest,
        TrainRequest,
        EvaluateRequest,
        EvaluateRequest,
    ]
    first, second = (request for request in sites["east"].requests if isinstance(request, TrainRequest))
    assert "fixed" not in first.weights, "no site trains it"
    after_one = _mean_of(WEIGHTS, east=3, west=9)
    _assert_close(second.weights, {name: value for name, value in after_one.items() if name != "fixed"})
    _assert_close(run.last, _mean_of(after_one, east=3, west=9))
    _assert_close(run.best, run.last)
    (finished,) = run.of(Finished)
    assert finished.best_round == 2
    assert finished.best_validation == run.of(Validated)[-1].mean
    assert set(finished.test) == {"east", "west"}
    test = sites["east"].requests[-1]
    assert isinstance(test, EvaluateRequest)
    assert (test.split, test.keep, test.sums is not None) == ("test", True, True)


def test_a_deadline_ends_a_round_with_quorum_and_discounts_late_updates(tmp_path: Path) -> None:
    sites = tiny_sites(east=3, north=3, west=3)
    slow = {**sites, "north": _slow(sites["north"], 100.0, {1})}
    run = _run(tmp_path, slow, {"rounds": {"number": 3, "quorum": 2, "deadline_s": 60.0}})
    assert run.rounds[0]["missing"] == ["north"]
    assert run.of(RoundEnded)[0].seconds == pytest.approx(60, abs=1)
    (late,) = run.of(Late)
    assert (late.site, late.round, late.seconds) == ("north", 1, 100.0)
    later = next(who for who in run.rounds[1:] if who["late"])
    assert later["late"] == ["north"]
    assert later["staleness"] == {"north": 1} or later["staleness"] == {"north": 2}


@pytest.mark.parametrize(("late", "kinds"), [("discount", ["late"]), ("drop", ["late", "dropped"])])
def test_a_late_update_is_dropped_if_the_job_says_so(tmp_path: Path, late: str, kinds: list[str]) -> None:
    sites = tiny_sites(east=3, north=3, west=3)
    slow = {"east": _slow(sites["east"], 50.0, {2}), "north": _slow(sites["north"], 100.0, {1}), "west": sites["west"]}
    run = _run(tmp_path, slow, {"rounds": {"number": 4, "quorum": 2, "deadline_s": 60.0, "late": late}})
    assert [event.kind for event in run if event.kind in ("late", "dropped")] == kinds


def test_a_round_without_its_quorum_waits_past_its_deadline(tmp_path: Path) -> None:
    sites = tiny_sites(east=3, west=3)
    slow = {**sites, "west": _slow(sites["west"], 100.0, {1})}
    run = _run(tmp_path, slow, {"rounds": {"number": 1, "quorum": 2, "deadline_s": 10.0}})
    assert run.rounds[0]["in_time"] == ["east", "west"]
    assert run.of(RoundEnded)[0].seconds == pytest.approx(100, abs=1)


def test_a_returned_site_takes_part_again(tmp_path: Path) -> None:
    sites = tiny_sites(east=3, west=3)
    slow = {name: _slow(site, 10.0, {1, 2, 3}) for name, site in sites.items()}

    def before_wait(transport: InMemorySites) -> None:
        if 5 < transport.now < 8:
            transport.lose("west", "its process ended")
        elif transport.now > 15:
            transport.come_back("west")

    run = _run(tmp_path, slow, {"rounds": {"number": 3, "quorum": 1}}, before_wait)
    assert [(event.site, event.reason) for event in run.of(Lost)] == [("west", "its process ended")]
    assert [event.site for event in run.of(Returned)] == ["west"]
    assert run.rounds[0]["lost"] == {"west": "its process ended"}
    assert run.rounds[0]["in_time"] == ["east"]
    assert run.rounds[2]["in_time"] == ["east", "west"]


def test_a_run_waits_for_a_lost_site_and_then_gives_up(tmp_path: Path) -> None:
    sites = tiny_sites(east=3, west=3)
    slow = {name: _slow(site, 10.0, {1}) for name, site in sites.items()}
    settings = {"rounds": {"number": 3, "quorum": 2, "return_s": 50.0}}
    back = _at(40.0, lambda transport: transport.come_back("west"))
    lost = _at(5.0, lambda transport: transport.lose("west", "its process ended"))

    def both(transport: InMemorySites) -> None:
        lost(transport)
        back(transport)

    assert len(_run(tmp_path / "back", slow, settings, both).rounds) == 3
    with pytest.raises(NotEnoughSitesError) as caught:
        _run(tmp_path / "gone", slow, settings, _at(5.0, lambda transport: transport.lose("west", "its process ended")))
    assert str(caught.value) == (
        "round 1 has 1 of the 2 sites that it needs (west: its process ended). Repair the site and run the job again, "
        "or set rounds.quorum lower to go on without it."
    )


def test_a_passing_refusal_is_retried_and_another_is_reported(tmp_path: Path) -> None:
    sites = tiny_sites(east=3, north=3, west=3)
    full = [Refusal("its disk is full", may_pass=True)] * 2
    refusing = {
        **sites,
        "north": _refusing(sites["north"], {1: full}),
        "west": _refusing(sites["west"], {1: [Refusal("its training failed")]}),
    }
    run = _run(tmp_path, refusing, {"rounds": {"number": 2, "quorum": 2}})
    assert [(event.site, event.reason) for event in run.of(Refused)] == [
        ("north", "its disk is full"),
        ("west", "its training failed"),
        ("north", "its disk is full"),
    ]
    assert run.rounds[0]["in_time"] == ["east", "north"]
    assert run.rounds[0]["refused"] == {"west": "its training failed"}
    assert run.rounds[1]["in_time"] == ["east", "north", "west"]
    refusals = [request.refusal for request in sites["west"].requests if isinstance(request, TrainRequest)]
    assert refusals == [None, "its training failed"], "once"


def test_a_job_whose_sites_all_refuse_ends_with_their_reasons(tmp_path: Path) -> None:
    sites = tiny_sites(east=3, west=3)
    refusing = {name: _refusing(site, {1: [Refusal(f"{name} is broken")]}) for name, site in sites.items()}
    with pytest.raises(
        NotEnoughSitesError, match=r"round 1 has 0 of the 1 sites .*east: east is broken; west: west is br"
    ):
        _run(tmp_path, refusing, {"rounds": {"number": 1}})


def test_a_site_whose_data_does_not_pass_is_excluded(tmp_path: Path) -> None:
    sites = tiny_sites(east=3, west=3)
    bad: dict[str, Site] = {**sites, "north": lambda request: Refusal("its data did not pass the checks")}
    run = _run(tmp_path, bad, {"rounds": {"number": 1, "quorum": 2}})
    assert [(event.site, event.reason) for event in run.of(Excluded)] == [("north", "its data did not pass the checks")]
    with pytest.raises(NotEnoughSitesError, match="before the first round has 2 of the 3 sites"):
        _run(tmp_path / "all", bad, {"rounds": {"number": 1}})


def test_a_missing_site_counts_as_lost_and_joins_later(tmp_path: Path) -> None:
    sites = tiny_sites(east=3, west=3)
    slow: dict[str, Site] = {**sites, "east": _slow(sites["east"], 100.0, {1, 2, 3})}

    def before_wait(transport: InMemorySites) -> None:
        if transport.now < 60:
            transport.lost["west"] = "it did not come"
        else:
            transport.come_back("west")

    settings = {"rounds": {"number": 3, "quorum": 1, "deadline_s": 200.0, "return_s": 1.0}}
    run = _run(tmp_path, slow, settings, before_wait)
    assert [event.site for event in run.of(Joined)] == ["east", "west"]
    assert run.rounds[0]["asked"] == ["east", "west"], "it came during the round"
    assert run.rounds[0]["in_time"] == ["east", "west"]


def test_of_equal_scores_the_first_round_is_kept(tmp_path: Path) -> None:
    scores = {0: 0.1, 4: 0.5, 8: 0.5, 12: 0.4}
    sites = tiny_sites(east=3)
    sites["east"].score = lambda site, weights: scores[int(weights["count"])]
    run = _run(tmp_path, sites, {"rounds": {"number": 3}})
    (finished,) = run.of(Finished)
    assert (finished.best_round, finished.best_validation) == (1, 0.5)
    assert int(run.best["count"]) == 4
    assert int(run.last["count"]) == 12
    assert int(sites["east"].requests[-1].weights["count"]) == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize("select", ["mean", "worst", "weighted"])
@pytest.mark.parametrize("missing", ["late", "lost"])
def test_no_round_is_the_best_for_want_of_a_hard_sites_score(tmp_path: Path, select: str, missing: str) -> None:
    """The second model is worse everywhere; the hard site, late or lost, does not say so."""
    easy, hard = {0: 0.1, 4: 0.8, 8: 0.7, 12: 0.6}, {0: 0.1, 4: 0.3, 8: 0.2, 12: 0.1}
    sites: dict[str, Any] = tiny_sites(east=3, west=3)
    sites["east"].score = lambda site, weights: easy[int(weights["count"])]
    sites["west"].score = lambda site, weights: hard[int(weights["count"])]
    slow = {name: _slow(site, 10.0, {1, 2, 3}) for name, site in sites.items()}
    before_wait = None
    if missing == "late":
        slow["west"] = _slow(slow["west"], 500.0, {3})
    else:
        before_wait = _at(25.0, lambda transport: transport.lose("west", "its process ended"))
    rules = {"number": 3, "quorum": 1, "deadline_s": 100, "late": "drop"}
    run = _run(tmp_path, slow, {"rounds": rules, "evaluation": {"select": select}}, before_wait)
    validated = {event.round: set(event.sites) for event in run.of(Validated)}
    assert validated[1] == {"east", "west"}
    assert validated[2] == {"east"}, "whose score alone is above the mean of both before"
    assert run.of(Finished)[0].best_round == 1
    assert int(run.best["count"]) == 4


def test_a_round_that_is_better_at_the_sites_that_are_left_is_the_best(tmp_path: Path) -> None:
    """A hard site that is late does not keep the others from a better model; a restarted server knows its score."""
    easy = {0: 0.1, 4: 0.6, 8: 0.7, 12: 0.8}
    sites: dict[str, Any] = tiny_sites(east=3, west=3)
    sites["east"].score = lambda site, weights: easy[int(weights["count"])]
    sites["west"].score = lambda site, weights: 0.2
    sites["west"] = _slow(sites["west"], 500, {3})
    rules = {"number": 3, "quorum": 1, "deadline_s": 100, "late": "drop"}
    run = _run(tmp_path, sites, {"rounds": rules})
    assert run.of(Finished)[0].best_round == 3
    state = read_run_state(tmp_path)
    assert state
    assert state.best_scores.keys() == {"east", "west"}


def test_a_round_that_the_sites_which_scored_it_find_worse_is_not_the_best(tmp_path: Path) -> None:
    """A hard site's score of the round before, once another is lost, is no praise of this round's model."""
    scores: dict[str, dict[int, float]] = {
        "a": {0: 0.1, 4: 0.9, 8: 0.5, 12: 0.5},
        "b": {0: 0.1, 4: 0.3, 8: 0.6, 12: 0.6, 16: 0.1},
        "c": {0: 0.1, 4: 0.8, 8: 0.7, 12: 0.6, 16: 0.1},
    }
    sites: dict[str, Any] = tiny_sites(a=3, b=3, c=3)
    for name, by_count in scores.items():
        sites[name].score = lambda site, weights, by_count=by_count: by_count[int(weights["count"])]
    slow = {name: _slow(site, 10.0, {1, 2, 3, 4}) for name, site in sites.items()}
    slow["b"] = _slow(slow["b"], 500.0, {4})
    lost = _at(35.0, lambda transport: transport.lose("a", "its process ended"))
    run = _run(tmp_path, slow, {"rounds": {"number": 4, "quorum": 1, "deadline_s": 100, "late": "drop"}}, lost)
    assert ["".join(sorted(event.sites)) for event in run.of(Validated)] == ["abc", "abc", "abc", "c", "c"]
    assert run.of(Finished)[0].best_round == 1
    assert int(run.best["count"]) == 4


@pytest.mark.parametrize(("score", "best_round"), [(0.4, 1), (0.95, 3)])
def test_an_older_releases_state_keeps_its_best_round(tmp_path: Path, score: float, best_round: int) -> None:
    """It has the best round's score, and not those of its sites."""
    scores = {0: 0.1, 4: 0.9, 8: 0.2, 12: score}
    sites = tiny_sites(east=3)
    sites["east"].score = lambda site, weights: scores[int(weights["count"])]
    _run(tmp_path, sites, {"rounds": {"number": 2}})
    state = read_run_state(tmp_path)
    assert state
    assert (state.round, state.best_round, state.best_score) == (2, 1, 0.9)
    write_run_state(tmp_path, dataclasses.replace(state, scores={}, best_scores={}))
    run = _run(tmp_path, sites, {"rounds": {"number": 3}})
    assert run.of(Resumed)
    assert run.of(Finished)[0].best_round == best_round
    assert int(run.best["count"]) == 4 * best_round


def test_a_job_may_keep_the_last_round_whatever_the_scores_say(tmp_path: Path) -> None:
    scores = {0: 0.1, 4: 0.5, 8: 0.3}
    sites = tiny_sites(east=3)
    sites["east"].score = lambda site, weights: scores[int(weights["count"])]
    run = _run(tmp_path, sites, {"rounds": {"number": 2}, "evaluation": {"select": "last"}})
    assert (run.of(Finished)[0].best_round, run.of(Finished)[0].best_validation) == (2, 0.3)
    assert int(run.best["count"]) == 8


def test_a_run_stops_early_and_keeps_the_last_model_without_scores(tmp_path: Path) -> None:
    sites = tiny_sites(east=3)
    sites["east"].score = lambda site, weights: 0.5
    run = _run(tmp_path / "same", sites, {"rounds": {"number": 9}, "evaluation": {"patience": 2}})
    assert [(event.round, event.best_round) for event in run.of(EarlyStop)] == [(4, 1)]
    sites["east"].score = lambda site, weights: None
    run = _run(tmp_path / "none", sites, {"rounds": {"number": 2}})
    assert run.of(Finished)[0].best_validation is None
    assert run.of(Finished)[0].best_round == 2


def test_sites_are_drawn_by_the_seed_and_small_ones_only_score(tmp_path: Path) -> None:
    sites = tiny_sites(a=3, b=3, c=3, small=1)
    settings = {"rounds": {"number": 4, "sites_per_round": 2, "minimum_cases": 2}}
    run, again = _run(tmp_path / "one", sites, settings), _run(tmp_path / "two", sites, settings)
    asked = [who["asked"] for who in run.rounds]
    assert asked == [who["asked"] for who in again.rounds]
    assert all(len(who) == 2 and "small" not in who for who in asked)
    assert len({tuple(who) for who in asked}) > 1
    assert set(run.of(Finished)[0].test) == {"a", "b", "c", "small"}
    with pytest.raises(NotEnoughSitesError, match="no site has 9 training cases"):
        _run(tmp_path / "none", sites, {"rounds": {"number": 1, "minimum_cases": 9}})


def test_a_run_ends_if_all_drawn_sites_refuse(tmp_path: Path) -> None:
    sites = tiny_sites(a=3, b=3, c=3, small=1)
    refusing = {name: _refusing(site, {1: [Refusal("it is broken")]}) for name, site in sites.items()}
    for name, rules in {"drawn": {"sites_per_round": 2}, "small": {"minimum_cases": 2}}.items():
        with pytest.raises(NotEnoughSitesError, match="round 1 has 0 of the 1 sites"):
            _run(tmp_path / name, refusing, {"rounds": {"number": 1, "quorum": 1, **rules}})
        refusing = {name: _refusing(site, {1: [Refusal("it is broken")]}) for name, site in sites.items()}


def test_a_buffer_fills_with_updates_of_any_round(tmp_path: Path) -> None:
    sites = tiny_sites(fast=3, slow=3)
    every = set(range(20))
    paced = {"fast": _slow(sites["fast"], 1.0, every), "slow": _slow(sites["slow"], 7.0, every)}
    run = _run(tmp_path, paced, {"rounds": {"number": 5}, "strategy": {"name": "fedbuff", "buffer": 2}})
    assert run.of(RoundEnded)[0].seconds == pytest.approx(2, abs=0.1), "the fast one twice"
    repeats = [request.repeat for request in sites["fast"].requests if isinstance(request, TrainRequest)]
    assert repeats[:2] == [0, 1], "the second time it trains on from its next batches"
    assert any("slow" in who["late"] for who in run.rounds)
    assert 0 < sum(len(who["late"]) for who in run.rounds) <= len(run.of(Late))


def test_a_buffer_larger_than_the_number_of_sites_is_refused(tmp_path: Path) -> None:
    sites = tiny_sites(east=3, west=3, small=1)
    settings = {"rounds": {"number": 2, "minimum_cases": 2}, "strategy": {"name": "fedbuff", "buffer": 3}}
    message = r"strategy\.buffer is 3, found 2 sites that train, .* Lower it to 2, or name more sites"
    with pytest.raises(NotEnoughSitesError, match=message):
        _run(tmp_path / "three", sites, settings)
    assert not any(isinstance(request, TrainRequest) for site in sites.values() for request in site.requests)
    settings["strategy"] = {"name": "fedbuff", "buffer": 2}
    assert len(_run(tmp_path / "two", sites, settings).rounds) == 2


def test_sites_train_one_model_in_sequence(tmp_path: Path) -> None:
    sites = tiny_sites(east=3, north=3, west=3)
    run = _run(tmp_path, sites, {"rounds": {"number": 1}, "strategy": "cyclic"})
    started = {name: site.requests[1].weights for name, site in sites.items()}  # type: ignore[attr-defined]
    order = sorted(started, key=lambda name: int(started[name]["count"]))
    model = dict(WEIGHTS)
    for name in order:
        assert torch.equal(started[name]["w"], model["w"])
        delta = trained_delta(name, model)
        model = {**model, "w": model["w"] + delta["w"], "mean": model["mean"] + delta["mean"], "count": delta["count"]}
    assert all(torch.equal(run.last[name], model[name]) for name in model)


def test_a_site_past_its_deadline_is_left_out_of_the_sequence(tmp_path: Path) -> None:
    sites = tiny_sites(east=3, north=3, west=3)
    slow = {**sites, "north": _slow(sites["north"], 100.0, {1})}
    run = _run(tmp_path, slow, {"rounds": {"number": 6, "deadline_s": 30.0}, "strategy": "cyclic"})
    assert run.rounds[0]["missing"] == ["north"]
    assert [event.kind for event in run if event.kind in ("late", "dropped")] == ["late", "dropped"]


def test_a_lost_site_is_left_out_of_the_sequence_and_scores_later(tmp_path: Path) -> None:
    slow = {name: _slow(site, 10.0, {1}) for name, site in tiny_sites(east=3, north=3, west=3).items()}
    busy: list[str] = []

    def before_wait(transport: InMemorySites) -> None:
        if not busy and transport.now > 5:  # one is training: lose one of the others
            busy.extend(transport.known() - set(transport._in_work))
            transport.lose(busy[0], "gone")
        elif transport.now > 30:
            transport.come_back(busy[0])

    run = _run(tmp_path, slow, {"rounds": {"number": 1}, "strategy": "cyclic"}, before_wait)
    assert busy[0] not in run.rounds[0]["in_time"]
    assert len(run.rounds[0]["in_time"]) == 2
    assert set(run.of(Finished)[0].test) == {"east", "north", "west"}


def test_peers_average_and_a_lost_collector_is_replaced(tmp_path: Path) -> None:
    sites = tiny_sites(east=3, north=3, west=9)
    expected = _run(tmp_path / "fedavg", tiny_sites(east=3, north=3, west=9), {"rounds": {"number": 2}})
    run = _run(tmp_path / "swarm", sites, {"rounds": {"number": 2}, "strategy": "swarm"})
    assert all(torch.equal(run.last[name], value) for name, value in expected.last.items())
    requests = [request for site in sites.values() for request in site.requests]
    assert sum(isinstance(request, CombineRequest) for request in requests) == 2
    collectors = [request.collector for request in sites["east"].requests if isinstance(request, TrainRequest)]

    def collector_dies(request: Request) -> Result | Refusal | Delayed:
        if isinstance(request, CombineRequest):
            return Delayed(None, 0.0)
        return sites[str(collectors[0])](request)

    broken: dict[str, Site] = {**sites, str(collectors[0]): collector_dies}
    lose = _at(20.0, lambda transport: transport.lose(str(collectors[0]), "its process ended"))
    run = _run(tmp_path / "lost", broken, {"rounds": {"number": 1, "quorum": 2}, "strategy": "swarm"}, lose)
    others = {name: site.cases for name, site in sites.items() if name != collectors[0]}
    assert run.rounds[0]["in_time"] == sorted(others)
    torch.testing.assert_close(run.last["w"], _mean_of(WEIGHTS, **others)["w"])


def test_a_restarted_collector_gets_the_updates_again(tmp_path: Path) -> None:
    sites = tiny_sites(east=3, north=3, west=9)
    lost: list[bool] = []

    def forgetful(site: TinySite) -> Site:
        def work(request: Request) -> Result | Refusal | Delayed:
            if isinstance(request, CombineRequest) and not lost:
                lost.append(True)
                site.mailbox.clear()
            return site(request)

        return work

    run = _run(
        tmp_path,
        {name: forgetful(site) for name, site in sites.items()},
        {"rounds": {"number": 1}, "strategy": "swarm"},
    )
    torch.testing.assert_close(run.last["w"], _mean_of(WEIGHTS, east=3, north=3, west=9)["w"])
    assert not run.of(Refused)


def test_an_update_that_never_reaches_the_collector_is_left_out(tmp_path: Path) -> None:
    sites = tiny_sites(east=3, north=3, west=9)

    def cut_off(request: Request) -> Result | Refusal | Delayed:
        result = sites["west"](request)
        if isinstance(result, TrainResult):
            return Delayed(TrainResult(delta={}, cases=9, steps=4, numbers={**result.numbers, "update": None}), 1.0)
        return result

    settings = {"rounds": {"number": 1, "quorum": 2, "return_s": 30.0}, "strategy": "swarm"}
    run = _run(tmp_path, {**sites, "west": cut_off}, settings)
    assert run.rounds[0]["in_time"] == ["east", "north"]


def test_an_impossible_mean_is_refused(tmp_path: Path) -> None:
    sites = tiny_sites(east=3, north=3, west=9)

    def lying(site: TinySite) -> Site:
        def work(request: Request) -> Result | Refusal | Delayed:
            result = site(request)
            return CombineResult(mean=result.mean, cases=99) if isinstance(result, CombineResult) else result

        return work

    with pytest.raises(NotEnoughSitesError, match="no site that puts the updates together"):
        _run(
            tmp_path,
            {name: lying(site) for name, site in sites.items()},
            {"rounds": {"number": 1, "return_s": 5.0}, "strategy": "swarm"},
        )


def test_each_sites_model_is_tested_at_every_site(tmp_path: Path) -> None:
    run = _run(tmp_path, tiny_sites(east=3, west=3), {"rounds": {"number": 1}, "evaluation": {"cross_site": True}})
    matrix = run.of(Finished)[0].cross_site
    assert matrix
    own = {site: {"w": WEIGHTS["w"] + trained_delta(site, WEIGHTS)["w"]} for site in ("east", "west")}
    assert matrix == {model: {site: score_of(site, own[model]) for site in own} for model in own}


def test_evaluate_only_tests_the_model_without_training(tmp_path: Path) -> None:
    sites = tiny_sites(east=3)
    run = _run(tmp_path, sites, {"rounds": {"number": 3}}, evaluate_only=True)
    assert [event.rounds for event in run.of(Started)] == [0]
    prepare, test = sites["east"].requests
    assert prepare == PrepareRequest(profile=False)
    assert isinstance(test, EvaluateRequest)
    assert (test.split, test.keep) == ("test", False)
    assert (run.of(Finished)[0].best_round, run.of(Finished)[0].best_validation) == (0, None)
    assert all(torch.equal(run.best[name], value) for name, value in WEIGHTS.items())


def test_test_cases_may_stay_unseen(tmp_path: Path) -> None:
    settings = {"rounds": {"number": 2}, "evaluation": {"cross_site": True}}
    sites, tested = tiny_sites(east=3, west=3), tiny_sites(east=3, west=3)
    run, usual = _run(tmp_path / "a", sites, settings, test=False), _run(tmp_path / "b", tested, settings)
    splits = [
        request.split for site in sites.values() for request in site.requests if isinstance(request, EvaluateRequest)
    ]
    assert set(splits) == {"validation"}
    (finished,), (expected,) = run.of(Finished), usual.of(Finished)
    assert (finished.test, finished.cross_site) == ({}, None)
    assert (finished.best_round, finished.best_validation) == (expected.best_round, expected.best_validation)
    assert all(torch.equal(run.best[name], value) for name, value in usual.best.items())


def test_a_site_that_could_not_keep_its_state_is_recorded(tmp_path: Path) -> None:
    sites = tiny_sites(east=3)

    def full(request: Request) -> Result | Refusal | Delayed:
        result = sites["east"](request)
        if isinstance(result, TrainResult):
            result.numbers["not_kept"] = "No space left on device"
        return result

    (event,) = _run(tmp_path, {"east": full}, {"rounds": {"number": 1}}).of(SiteNotKept)
    assert (event.site, event.round, event.reason) == ("east", 1, "No space left on device")


def test_writing_the_best_model_is_retried_until_the_job_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, failures = RunStore.write_best, [True, True]

    def full(store: RunStore, weights: Weights) -> bool:
        return not (failures and failures.pop()) and write(store, weights)

    monkeypatch.setattr(RunStore, "write_best", full)
    run = _run(tmp_path / "a", tiny_sites(east=3), {"rounds": {"number": 1}})
    assert [event.round for event in run.of(NotKept)] == [1]
    assert run.best
    monkeypatch.setattr(RunStore, "write_best", lambda store, weights: False)
    with pytest.raises(FederationError, match="could not write the best model"):
        _run(tmp_path / "b", tiny_sites(east=3), {"rounds": {"number": 1, "return_s": 20.0}})


def test_a_state_that_cannot_be_written_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("oncofed.rounds.store.write_run_state", full)
    run = _run(tmp_path, tiny_sites(east=3), {"rounds": {"number": 2}})
    assert [(event.round, event.reason) for event in run.of(NotKept)] == [
        (1, "No space left on device"),
        (2, "No space left on device"),
    ]
    assert run.of(Finished)


def test_an_aborted_job_stops(tmp_path: Path) -> None:
    clock: list[float] = []
    sites = {"east": _slow(tiny_sites(east=3)["east"], 100.0, {1})}
    with pytest.raises(StoppedError):
        _run(tmp_path, sites, {}, lambda transport: clock.append(transport.now), is_stopped=lambda: clock[-1] > 50)
    assert clock[-1] < 60


def test_a_site_revoked_during_a_round_no_longer_counts(tmp_path: Path) -> None:
    sites = tiny_sites(east=3, west=3)
    slow = {name: _slow(site, 10.0, {1, 2}) for name, site in sites.items()}
    ban = _at(5.0, lambda transport: transport.ban(frozenset({"west"})))
    run = _run(tmp_path, slow, {"rounds": {"number": 2, "quorum": 1}}, ban)
    assert [(event.site, event.reason) for event in run.of(Lost)] == [("west", "revoked by the alliance")]
    assert [who["in_time"] for who in run.rounds] == [["east"], ["east"]]
    assert set(run.of(Finished)[0].test) == {"east"}


@pytest.mark.parametrize("strategy", ["fedavg", "swarm"])
def test_results_sent_before_a_revocation_do_not_count(strategy: str, tmp_path: Path) -> None:
    settings = {"rounds": {"number": 1, "quorum": 2}, "strategy": strategy}
    sites = tiny_sites(east=3, north=3, west=3)
    _run(tmp_path / "all", sites, settings)
    collector = next(request.collector for request in sites["east"].requests if isinstance(request, TrainRequest))
    revoked = next(site for site in sites if site != collector)
    paced = {name: site if name == revoked else _slow(site, 10.0, {1}) for name, site in sites.items()}
    ban = _at(5.0, partial(InMemorySites.ban, sites=frozenset({revoked})))
    run = _run(tmp_path / "revoked", paced, settings, ban)
    others = {name: 3 for name in sites if name != revoked}
    assert [(event.site, event.reason) for event in run.of(Refused)] == [(revoked, "revoked by the alliance")]
    assert run.rounds[0]["in_time"] == sorted(others)
    assert run.rounds[0]["refused"] == {revoked: "revoked by the alliance"}
    torch.testing.assert_close(run.last["w"], _mean_of(WEIGHTS, **others)["w"])
    assert set(run.of(Validated)[0].sites) == set(others)


def test_a_late_update_of_a_revoked_site_is_refused(tmp_path: Path) -> None:
    sites = tiny_sites(east=3, north=3, west=3)
    paced = {
        "east": _slow(sites["east"], 30.0, {2}),
        "north": _slow(sites["north"], 30.0, {2}),
        "west": _slow(sites["west"], 20.0, {1}),
    }
    ban = _at(25.0, lambda transport: transport.ban(frozenset({"west"})))
    run = _run(tmp_path, paced, {"rounds": {"number": 3, "quorum": 2, "deadline_s": 10.0}}, ban)
    assert [event.site for event in run.of(Late)] == ["west"]
    assert [(event.site, event.round, event.reason) for event in run.of(Refused)] == [
        ("west", 2, "revoked by the alliance"),
        ("west", 1, "revoked by the alliance"),
    ]
    assert not any(who["late"] for who in run.rounds)


def test_a_score_of_a_revoked_site_does_not_count(tmp_path: Path) -> None:
    sites = tiny_sites(east=3, west=3)

    def slow(request: Request) -> Result | Refusal | Delayed:
        result = sites["east"](request)
        tested = isinstance(request, EvaluateRequest) and request.split == "test" and not isinstance(result, Delayed)
        return Delayed(result, 10.0) if tested else result  # type: ignore[arg-type]

    ban = _at(5.0, lambda transport: transport.ban(frozenset({"west"})))
    run = _run(tmp_path, {**sites, "east": slow}, {"rounds": {"number": 1, "quorum": 1}}, ban)
    assert set(run.of(Finished)[0].test) == {"east"}


def test_a_revoked_sites_training_is_left_out_unless_others_continued(tmp_path: Path) -> None:
    sites = tiny_sites(east=3, north=3, west=3)
    _run(tmp_path / "all", sites, {"rounds": {"number": 1}, "strategy": "cyclic"})
    order = sorted(sites, key=lambda name: int(sites[name].requests[1].weights["count"]))  # type: ignore[attr-defined]
    for revoked, counted in ((0, order), (1, [order[0], order[2]])):
        sites = tiny_sites(east=3, north=3, west=3)
        paced = {name: _slow(site, 10.0, {1}) for name, site in sites.items()}
        ban = _at(15.0, partial(InMemorySites.ban, sites=frozenset({order[revoked]})))
        settings = {"rounds": {"number": 1, "return_s": 1.0}, "strategy": "cyclic"}
        run = _run(tmp_path / str(revoked), paced, settings, ban)
        assert run.rounds[0]["in_time"] == sorted(counted)
        assert set(run.of(Finished)[0].test) == set(order) - {order[revoked]}


def test_a_site_revoked_as_its_training_ends_is_left_out(tmp_path: Path) -> None:
    sites, first = tiny_sites(east=3, north=3, west=3), list[str]()
    slow = {name: _slow(site, 10.0, {1}) for name, site in sites.items()}
    transport, run = InMemorySites(slow), _Run(tmp_path)

    def synchronize() -> None:
        trained = [event.site for event in run if isinstance(event, Answered) and event.task == TrainRequest.task]
        first.extend(trained[:1] if not first else [])
        transport.ban(frozenset(first))

    settings = {"rounds": {"number": 1, "return_s": 1.0}, "strategy": "cyclic"}
    loop = tiny_loop(tmp_path, transport, run.append, settings=settings, synchronize=synchronize)
    with contextlib.closing(loop):
        loop.run()
    assert run.rounds[0]["in_time"] == sorted(sites.keys() - set(first))
    assert set(run.of(Finished)[0].test) == sites.keys() - set(first)
    started = [int(site.requests[1].weights["count"]) for name, site in sites.items() if name not in first]  # type: ignore[attr-defined]
    assert sorted(started) == [0, 4]


@pytest.mark.parametrize("strategy", ["fedavg", "fedbuff", "cyclic", "swarm"])
def test_a_job_goes_on_without_a_lost_site_that_is_revoked(strategy: str, tmp_path: Path) -> None:
    sites = tiny_sites(east=3, north=3, west=3)
    paced = {name: _slow(site, 10.0, {1, 2}) for name, site in sites.items()}
    lose = _at(5.0, lambda transport: transport.lose("west", "nothing was heard of it"))
    ban = _at(8.0, lambda transport: transport.ban(frozenset({"west"})))

    def before_wait(transport: InMemorySites) -> None:
        lose(transport)
        ban(transport)

    run = _run(tmp_path, paced, {"rounds": {"number": 2, "return_s": 100.0}, "strategy": strategy}, before_wait)
    assert [who["in_time"] for who in run.rounds] == [["east", "north"]] * 2
    assert [who["lost"] for who in run.rounds] == [{"west": "revoked by the alliance"}] * 2
    assert all(event.seconds < 30 for event in run.of(RoundEnded)), "nobody waits for it"
    assert set(run.of(Finished)[0].test) == {"east", "north"}


def test_revoked_sites_do_not_lower_a_quorum(tmp_path: Path) -> None:
    sites, clock = tiny_sites(east=3, north=3, west=3), list[float]()
    paced = {name: _slow(site, 10.0, {1, 2}) for name, site in sites.items()}
    ban = _at(15.0, lambda transport: transport.ban(frozenset({"west"})))

    def before_wait(transport: InMemorySites) -> None:
        clock.append(transport.now)
        ban(transport)

    with pytest.raises(NotEnoughSitesError, match=r"round 2 has \d of the 3 sites .*west: revoked by the alliance"):
        _run(tmp_path, paced, {"rounds": {"number": 3, "quorum": 3, "return_s": 100.0}}, before_wait)
    assert clock[-1] < 20, "it cannot come back"


def test_a_revoked_site_is_not_drawn(tmp_path: Path) -> None:
    sites = tiny_sites(a=3, b=3, c=3, d=3)
    paced = {name: _slow(site, 10.0, {1}) for name, site in sites.items()}
    ban = _at(5.0, lambda transport: transport.ban(frozenset({"a"})))
    run = _run(tmp_path, paced, {"rounds": {"number": 6, "sites_per_round": 2}}, ban)
    assert all("a" not in who["asked"] and len(who["in_time"]) == 2 for who in run.rounds[1:])


def test_a_site_revoked_while_it_loads_data_is_not_awaited(tmp_path: Path) -> None:
    sites = tiny_sites(east=3, north=3, west=3)

    def loading(request: Request) -> Result | Refusal | Delayed:
        return Delayed(None, 0.0) if isinstance(request, PrepareRequest) else sites["west"](request)

    ban = _at(5.0, lambda transport: transport.ban(frozenset({"west"})))
    run = _run(tmp_path, {**sites, "west": loading}, {"rounds": {"number": 1, "return_s": 100.0}}, ban)
    assert run.rounds[0]["in_time"] == ["east", "north"]
    assert run.of(RoundEnded)[0].seconds < 1


def test_a_restarted_server_does_not_await_a_revoked_site(tmp_path: Path) -> None:
    settings = {"rounds": {"number": 3, "return_s": 100.0}}
    with pytest.raises(Killed):
        _process(tmp_path, settings, kill_after=18)
    run, left = _Run(tmp_path), _Unregistered(tiny_sites(a=3, b=5))
    loop = tiny_loop(tmp_path, left, run.append, settings=settings, synchronize=lambda: left.ban(frozenset({"c"})))
    with contextlib.closing(loop):
        loop.run()
    assert run.of(Started)[0].sites == ["a", "b", "c"]
    assert all(who["in_time"] == ["a", "b"] for who in run.rounds)
    assert left.now < 10


@pytest.mark.parametrize("rules", [{"quorum": 2}, {}])
def test_a_mean_with_a_site_revoked_meanwhile_is_not_accepted(rules: dict[str, int], tmp_path: Path) -> None:
    settings = {"rounds": {"number": 1, **rules}, "strategy": "swarm"}
    sites, combining = tiny_sites(east=3, north=3, west=9), list[str]()

    def slow(site: TinySite) -> Site:
        def work(request: Request) -> Result | Refusal | Delayed:
            result = site(request)
            if not isinstance(result, CombineResult):
                return result
            combining.append(site.name)
            return Delayed(result, 10.0)

        return work

    revoked: list[str] = []

    def ban(transport: InMemorySites) -> None:
        if combining and not revoked and transport.now > 5:
            revoked.append(next(name for name in sites if name != combining[0]))
            transport.ban(frozenset(revoked))

    run = _run(tmp_path, {name: slow(site) for name, site in sites.items()}, settings, ban)
    others = {name: site.cases for name, site in sites.items() if name not in revoked}
    assert len(others) == 2
    assert run.rounds[0]["in_time"] == sorted(others)
    assert [(event.site, event.reason) for event in run.of(Refused)] == [(revoked[0], "revoked by the alliance")]
    assert combining == [combining[0]] * 2, "the same collector averages the others"
    torch.testing.assert_close(run.last["w"], _mean_of(WEIGHTS, **others)["w"])


def test_a_site_that_sent_its_collector_nothing_is_left_out(tmp_path: Path) -> None:
    sites = tiny_sites(east=3, north=3, west=3)
    _run(tmp_path / "all", sites, {"rounds": {"number": 1}, "strategy": "swarm"})
    collectors = [request.collector for request in sites["east"].requests if isinstance(request, TrainRequest)]
    liar = next(site for site in sites if site != collectors[0])
    sites = tiny_sites(east=3, north=3, west=3)

    def lying(request: Request) -> Result | Refusal | Delayed:
        result = sites[liar](request)
        if isinstance(result, TrainResult):
            result.numbers["update"] = "0" * 64
        return result

    run = _run(tmp_path / "lie", {**sites, liar: lying}, {"rounds": {"number": 1}, "strategy": "swarm"})
    others = {name: 3 for name in sites if name != liar}
    assert run.rounds[0]["in_time"] == sorted(others)
    assert {event.site: event.reason for event in run.of(Refused)} == {
        liar: f"its update did not reach {collectors[0]}"
    }
    asked = [name for name, site in sites.items() for r in site.requests if isinstance(r, CombineRequest)]
    assert asked == [collectors[0]] * 3, "once more, and then without it"
    torch.testing.assert_close(run.last["w"], _mean_of(WEIGHTS, **others)["w"])


def test_a_collector_that_twice_lacks_all_updates_is_replaced(tmp_path: Path) -> None:
    sites = tiny_sites(east=3, north=3, west=9)
    first: list[str] = []

    def deaf(site: TinySite) -> Site:
        def work(request: Request) -> Result | Refusal | Delayed:
            if isinstance(request, CombineRequest) and site.name == (first or [site.name])[0]:
                first[:] = [site.name]
                return CombineResult(mean={}, cases=0, missing=list(request.updates))
            return site(request)

        return work

    settings = {"rounds": {"number": 1}, "strategy": "swarm"}
    run = _run(tmp_path, {name: deaf(site) for name, site in sites.items()}, settings)
    assert run.rounds[0]["in_time"] == ["east", "north", "west"]
    torch.testing.assert_close(run.last["w"], _mean_of(WEIGHTS, east=3, north=3, west=9)["w"])


_SCHEDULES = {
    "fedavg": {"strategy": "fedavg"},
    "fedadam": {"strategy": "fedadam"},
    "fedbuff": {"strategy": {"name": "fedbuff", "buffer": 2}},
    "cyclic": {"strategy": "cyclic"},
    "swarm": {"strategy": "swarm"},
    "drawn": {"rounds": {"number": 3, "sites_per_round": 2}},
    "bfloat16": {"exchange": {"model": "bfloat16"}},
}


@pytest.mark.parametrize("name", _SCHEDULES)
@pytest.mark.parametrize("state_is_written", [True, False])
def test_a_server_killed_at_any_event_ends_with_the_same_bits(
    name: str, state_is_written: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"rounds": {"number": 3}, **_SCHEDULES[name]}
    FederationPlan.model_validate(settings)
    expected = _run(tmp_path / "undisturbed", tiny_sites(a=3, b=5, c=4), settings)
    for number in range(len(expected) - 1):
        folder = tmp_path / f"killed-{number}"
        with pytest.raises(Killed):
            _process(folder, settings, kill_after=number, finish_saving=state_is_written)
        _process(folder, settings)
        events = list(EventReader(folder / EVENTS_FILE).read())
        ended = _Run(folder)
        ended.extend(events)
        best, last = ended.best, ended.last
        assert all(torch.equal(best[n], value) for n, value in expected.best.items()), (number, expected[number])
        assert all(torch.equal(last[n], value) for n, value in expected.last.items()), (number, expected[number])
        assert ended.of(Finished)[-1].test == expected.of(Finished)[0].test
        assert len(ended.of(Finished)) == 1
        rounds = [event.round for event in ended.of(RoundEnded)]
        assert rounds == [1, 2, 3] if state_is_written else rounds[-3:] == [1, 2, 3]


@pytest.mark.parametrize("name", ["fedadam", "swarm"])
def test_a_server_killed_while_writing_state_resumes_the_previous_round(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "threading", SimpleNamespace(Thread=_LatestThread))
    settings = {"rounds": {"number": 3}, **_SCHEDULES[name]}
    expected = _run(tmp_path / "undisturbed", tiny_sites(a=3, b=5, c=4), settings)
    resumed = set()
    for number in range(len(expected) - 1):
        folder = tmp_path / f"killed-{number}"
        with pytest.raises(Killed):
            _process(folder, settings, kill_after=number, close=False)
        state = read_run_state(folder)
        resumed.add(state.round if state else 0)
        _process(folder, settings)
        ended = _Run(folder)
        ended.extend(EventReader(folder / EVENTS_FILE).read())
        assert all(torch.equal(ended.last[n], value) for n, value in expected.last.items()), (number, expected[number])
        assert all(torch.equal(ended.best[n], value) for n, value in expected.best.items()), (number, expected[number])
        assert len(ended.of(Finished)) == 1
    assert resumed == {0, 1, 2}, "the last round's state is not written before somebody waits for it"


class _LatestThread:
    """A thread that only runs when it is joined."""

    def __init__(self, target: Callable[..., None], args: tuple[Any, ...], name: str) -> None:
        self._target, self._args = target, args

    def start(self) -> None: ...

    def join(self) -> None:
        self._target(*self._args)


def _process(
    folder: Path,
    settings: dict[str, Any],
    kill_after: int | None = None,
    finish_saving: bool = True,
    close: bool = True,
) -> None:
    """Run the job in a new process; perhaps kill it."""
    log = EventLog(folder / EVENTS_FILE)
    sites = InMemorySites(tiny_sites(a=3, b=5, c=4))
    loop = tiny_loop(folder, sites, Recorder(log, kill_after), settings=settings)
    if not finish_saving:
        loop._store._write_state = lambda state: None  # type: ignore[method-assign]
    try:
        loop.run()
    finally:
        if close:
            loop.close()
        log.close()


def test_a_site_lost_again_has_the_full_return_time(tmp_path: Path) -> None:
    slow = {name: _slow(site, 100.0, {1}) for name, site in tiny_sites(east=3, west=3).items()}

    def before_wait(transport: InMemorySites) -> None:
        if 5 < transport.now < 30 or 40 < transport.now < 80:
            transport.lose("west", "its process ended")
        else:
            transport.come_back("west")

    settings = {"rounds": {"number": 1, "quorum": 2, "return_s": 50.0}}
    assert _run(tmp_path, slow, settings, before_wait).rounds[0]["in_time"] == ["east", "west"]


def test_a_run_ends_at_once_if_too_few_sites_can_return(tmp_path: Path) -> None:
    sites = tiny_sites(east=3, west=3)
    refusing = {**sites, "west": _refusing(sites["west"], {1: [Refusal("it is broken")]})}
    clock: list[float] = []
    settings = {"rounds": {"number": 1, "quorum": 2, "return_s": 1000.0}}
    with pytest.raises(NotEnoughSitesError, match="round 1 has 1 of the 2 sites"):
        _run(tmp_path, refusing, settings, lambda transport: clock.append(transport.now))
    assert clock[-1] < 10


class _Unregistered(InMemorySites):
    """Sites that have not registered after a server's restart."""

    def names(self) -> list[str]:
        return []


def test_a_restarted_server_waits_for_the_sites_that_took_part_before(tmp_path: Path) -> None:
    settings = {"rounds": {"number": 3}}
    with pytest.raises(Killed):
        _process(tmp_path, settings, kill_after=18)
    state = read_run_state(tmp_path)
    assert state
    assert 0 < state.round < 3
    run = _Run(tmp_path)
    loop = tiny_loop(tmp_path, _Unregistered(tiny_sites(a=3, b=5, c=4)), run.append, settings=settings)
    with contextlib.closing(loop):
        loop.run()
    assert [event.round for event in run.of(Resumed)] == [state.round + 1]
    assert run.of(Started)[0].sites == ["a", "b", "c"]
    assert all(who["in_time"] == ["a", "b", "c"] for who in run.rounds)


class _NotingOpened(InMemorySites):
    """In-memory sites that note each task's sites."""

    opened: list[set[str]]

    def open(self, task: SiteTask) -> SiteTask:
        self.opened = [*getattr(self, "opened", []), set(task.sites or ())]
        return super().open(task)


def test_a_lost_site_gets_no_model_and_is_not_awaited_in_the_sequence(
    tmp_path: Path,
) -> None:
    slow = {name: _slow(site, 10.0, {1}) for name, site in tiny_sites(east=3, north=3, west=3).items()}
    lost: list[str] = []

    def before_wait(transport: InMemorySites) -> None:
        if not lost and transport.now > 5:
            (working,) = transport._in_work
            lost.extend([working, next(site for site in transport.names() if site != working)])
            for site in lost:
                transport.lose(site, "gone")
        elif transport.now > 30:
            transport.come_back(lost[0])
            transport.come_back(lost[1])

    run, sites = _Run(tmp_path), _NotingOpened(slow, before_wait)
    loop = tiny_loop(tmp_path, sites, run.append, settings={"rounds": {"number": 1}, "strategy": "cyclic"})
    with contextlib.closing(loop):
        loop.run()
    (ended,) = run.of(RoundEnded)
    assert ended.seconds < 20
    assert run.rounds[0]["in_time"] == sorted({"east", "north", "west"} - set(lost))
    assert {lost[0]} in sites.opened
    assert {lost[1]} not in sites.opened


def test_sites_that_are_not_drawn_count_as_unchanged(tmp_path: Path) -> None:
    settings = {"rounds": {"number": 1, "sites_per_round": 2}, "strategy": {"name": "feddyn", "alpha": 0.5}}
    run = _run(tmp_path, tiny_sites(a=3, b=3, c=3), settings)
    state = read_run_state(tmp_path)
    assert state
    deltas = [trained_delta(site, WEIGHTS)["w"] for site in run.rounds[0]["in_time"]]
    torch.testing.assert_close(state.strategy["bent.w"], -0.5 * (deltas[0] + deltas[1]) / 3)


def test_a_state_is_not_changed_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unchanged, write = [], store.write_run_state

    def slowly(folder: Path, state: RunState) -> None:
        before = {name: value.clone() for name, value in state.model.items()}
        time.sleep(0.1)  # the next round is faster, and has to wait
        unchanged.append(all(torch.equal(state.model.get(name, value + 1), value) for name, value in before.items()))
        write(folder, state)

    monkeypatch.setattr(store, "write_run_state", slowly)
    _run(tmp_path, tiny_sites(east=3), {"rounds": {"number": 3}})
    assert unchanged == [True] * 3


def test_a_classifier_is_calibrated_and_tested_with_its_temperature(tmp_path: Path) -> None:
    sites = tiny_sites(east=3, west=3)

    def classifying(site: TinySite) -> Site:
        def work(request: Request) -> Result | Refusal | Delayed:
            result = site(request)
            if not (isinstance(request, EvaluateRequest) and request.split == "validation" and request.sums):
                return result
            assert isinstance(result, EvaluateResult)
            losses = [round(3 + 2 * math.log(t / 2) ** 2, 1) for t in TEMPERATURES]  # least at 2
            return EvaluateResult({**result.numbers, "temperature": {"patients": 6, "log_loss": losses}})

        return work

    run = _run(
        tmp_path,
        {name: classifying(site) for name, site in sites.items()},
        {"rounds": {"number": 1}},
        plan=CLASSIFICATION,
    )
    calibration = run.of(Finished)[0].calibration
    assert calibration
    assert calibration["temperature"] == pytest.approx(2, rel=0.05)
    assert (calibration["patients"], calibration["sites"]) == (12, ["east", "west"])
    test = sites["east"].requests[-1]
    assert isinstance(test, EvaluateRequest)
    assert test.sums == SumsAsked(calibration["temperature"])
    written = json.loads(test.artifacts[CALIBRATION_FILE])
    assert written["temperature"] == calibration["temperature"]
    assert (tmp_path / MODELS_FOLDER / CALIBRATION_FILE).is_file()
