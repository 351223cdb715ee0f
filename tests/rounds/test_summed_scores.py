"""Scores of which the server is given the sum over the sites alone."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from masking_sites import CASES, MaskingSite, masking_sites, run_masked
from oncofed.algorithms.plan import FederationPlan
from oncofed.messages.requests import EvaluateRequest, Request, TrainRequest
from oncofed.messages.results import EvaluateResult, Refusal, TrainResult
from oncofed.messages.secure_aggregation import MaskedResult, RevealRequest
from oncofed.privacy.secure_aggregation import ProtocolError
from oncofed.privacy.summed_scores import SCORES
from oncofed.rounds.events import Event, EventLog, Finished, RoundEnded, SumFailed, Summed, Validated
from oncofed.rounds.in_memory import InMemorySites
from tiny_federation import WEIGHTS, Killed, Recorder, score_of, tiny_loop, tiny_sites

SUMMED: dict[str, Any] = {"secure_aggregation": {"scores": "summed"}}


def _of(kind: type[Event], events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def _plain_run(folder: Path, settings: Mapping[str, Any]) -> list[Event]:
    return run_masked(folder, tiny_sites(**CASES), {n: v for n, v in settings.items() if n != "secure_aggregation"})[1]


@pytest.mark.parametrize("select", ["mean", "weighted", "last"])
def test_the_federations_scores_are_those_of_a_run_whose_sites_tell_theirs(tmp_path: Path, select: str) -> None:
    settings = {**SUMMED, "evaluation": {"select": select}}
    _, events = run_masked(tmp_path / "masked", masking_sites(tmp_path / "sites", settings), settings)
    plain = _plain_run(tmp_path / "plain", settings)
    assert len(_of(Validated, events)) == 6
    for found, expected in zip(_of(Validated, events), _of(Validated, plain), strict=True):
        assert found.mean == pytest.approx(expected.mean, abs=2e-4)
        assert (found.sites, found.by_class) == ({}, {})
        assert found.summed["sites"] == 4
        assert found.summed["patients"] == 24
    assert [one.losses for one in _of(RoundEnded, events)] == [{}] * 5
    assert [one.loss for one in _of(RoundEnded, events)] == [0.5] * 5
    (ended,), (of_plain,) = _of(Finished, events), _of(Finished, plain)
    assert ended.best_round == of_plain.best_round
    assert ended.test == {}
    mean = sum(one["mean"] for one in of_plain.test.values()) / 4
    assert ended.summed["mean"] == pytest.approx(mean, abs=2e-4)
    assert [(one.round, one.split) for one in _of(Summed, events)][-2:] == [
        (5, "validation"),
        (ended.best_round, "test"),
    ]


@pytest.mark.attack(
    "a server that looks for a site's own score", by="scores leave under masks alone", logged="nothing: none arrives"
)
def test_no_site_tells_its_own_score(tmp_path: Path) -> None:
    """Neither what is sent nor the server's folder has one."""
    sites = masking_sites(tmp_path / "sites", SUMMED)
    own: set[str] = set()

    def watched(name: str, weights: Mapping[str, Any]) -> float:
        score = score_of(name, weights)
        own.add(str(score))
        return score

    for site in sites.values():
        site.site.score = watched
    with contextlib.closing(EventLog(tmp_path / "run" / "events.jsonl")) as log:
        loop = tiny_loop(tmp_path / "run", InMemorySites(sites), Recorder(log), settings=SUMMED)
        loop.run()
        loop.close()
    sent = [result for site in sites.values() for result in site.sent]
    told = [result.numbers for result in sent if isinstance(result, TrainResult | EvaluateResult)]
    assert len(told) == 4 * 7
    assert not any(SCORES & numbers.keys() for numbers in told)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    written = b"\n".join(path.read_bytes() for path in files).decode(errors="replace")
    means = {str(json.loads(line).get("mean")) for line in written.splitlines() if line.startswith('{"time"')}
    assert len(own) > 20
    assert {score for score in own - means if score in written} == set()


def test_a_figure_that_few_sites_have_is_in_no_sum(tmp_path: Path) -> None:
    """The sum of two would tell each of them the other's score."""
    for silent, known in ((["west", "east"], False), (["west"], True)):
        folder = tmp_path / str(known)
        sites = masking_sites(folder / "sites", SUMMED)
        for name in silent:
            sites[name].site.score = lambda name, weights: None
        _, events = run_masked(folder / "run", sites, SUMMED)
        assert [one.mean is not None for one in _of(Validated, events)] == [known] * 6
        assert [one.loss is not None for one in _of(RoundEnded, events)] == [known] * 5
        assert {one.scored for one in _of(Summed, events)} == {3 if known else 0}


def _fails(
    kinds: type[Request], when: Callable[[MaskingSite], bool]
) -> Callable[[MaskingSite, Request], Refusal | None]:
    def before(site: MaskingSite, request: Request) -> Refusal | None:
        return Refusal("its disk is full") if isinstance(request, kinds) and when(site) else None

    return before


def test_scores_of_a_sum_that_was_lost_half_revealed_are_not_summed_again(tmp_path: Path) -> None:
    sites = masking_sites(tmp_path / "sites", SUMMED)
    for name in ("west", "east"):
        # Of the test, after the five rounds and the last validation.
        sites[name].before = _fails(RevealRequest, lambda site: sum(_is_masked(site)) == 7)
    _, events = run_masked(tmp_path / "run", sites, SUMMED)
    (failed,) = _of(SumFailed, events)
    assert "it has no score" in failed.reason
    (ended,) = _of(Finished, events)
    assert (ended.summed, ended.test) == (None, {})
    assert [sum(_is_masked(site)) for site in sites.values()] == [7] * 4


def _is_masked(site: MaskingSite) -> list[bool]:
    return [isinstance(result, MaskedResult) for result in site.sent]


def test_a_round_that_is_trained_anew_adds_no_scores_of_the_same_model(tmp_path: Path) -> None:
    """With another site in it, the difference of the two sums would be this site's score."""
    sites = masking_sites(tmp_path / "sites", SUMMED)
    for name in ("west", "east"):
        sites[name].before = _fails(RevealRequest, lambda site: sum(_is_masked(site)) == 1)
    _, events = run_masked(tmp_path / "run", sites, SUMMED)
    assert [one.mean is not None for one in _of(Validated, events)] == [False, *[True] * 5]


def test_a_site_scores_each_split_once_and_in_sums_alone(tmp_path: Path) -> None:
    sites = masking_sites(tmp_path / "sites", SUMMED)
    run_masked(tmp_path / "run", sites, SUMMED)
    site = sites["east"]
    scored = EvaluateResult({"evaluation": None, "validate_s": 1.0})
    for split in ("validation", "test"):
        request = EvaluateRequest(weights=WEIGHTS, round=5, split=split, attempt=3)
        with pytest.raises(ProtocolError, match="has helped to unmask"):
            site.masked.hold_scores(scored.numbers, request)
    with pytest.raises(ProtocolError, match="this site's own scores"):
        site.masked.hold_scores(scored.numbers, EvaluateRequest(weights=WEIGHTS, round=5))


def test_scores_of_too_few_sites_are_never_summed(tmp_path: Path) -> None:
    sites = masking_sites(tmp_path / "sites", SUMMED, east=3, north=3, west=4)
    sites["west"].before = lambda site, request: (
        Refusal("its disk is full") if isinstance(request, EvaluateRequest) else None
    )
    _, events = run_masked(tmp_path / "run", sites, SUMMED)
    failed = _of(SumFailed, events)
    assert ["2 sites, expected at least 3: it has no score" in one.reason for one in failed] == [True, True]
    (ended,) = _of(Finished, events)
    assert (ended.summed, ended.test) == (None, {})


def test_a_server_killed_at_any_event_has_each_score_once(tmp_path: Path) -> None:
    settings = {**SUMMED, "rounds": {"number": 2}}
    _, whole = run_masked(tmp_path / "whole", masking_sites(tmp_path / "s", settings), settings)
    (expected,) = _of(Finished, whole)
    for kill_after in range(len(whole) - 50, len(whole) - 1, 4):
        folder = tmp_path / str(kill_after)
        sites = masking_sites(folder / "sites", settings)
        events: list[Event] = []
        with contextlib.closing(EventLog(folder / "events.jsonl")) as log:
            for recorder in (Recorder(log, kill_after), Recorder(log)):
                loop = tiny_loop(folder, InMemorySites(sites), recorder, settings=settings)
                with contextlib.suppress(Killed):
                    loop.run()
                loop.close()
                events = recorder.events
        (ended,) = _of(Finished, events)
        assert ended.summed == expected.summed
        assert all(sum(_is_masked(site)) <= 5 for site in sites.values())


@pytest.mark.parametrize(
    ("evaluation", "setting"),
    [({"select": "worst"}, "select"), ({"margin": 0.1}, "margin"), ({"cross_site": True}, "cross")],
)
def test_what_needs_single_sites_scores_is_refused(evaluation: dict[str, Any], setting: str) -> None:
    FederationPlan.model_validate({**SUMMED, "evaluation": {"select": "weighted"}})
    with pytest.raises(ValueError, match=setting):
        FederationPlan.model_validate({**SUMMED, "evaluation": evaluation})


def test_a_site_that_tells_its_own_score_is_refused(tmp_path: Path) -> None:
    """The server keeps none, whatever a site sends."""
    sites = masking_sites(tmp_path / "sites", SUMMED)
    west = sites["west"]

    def tells(site: MaskingSite, request: Request) -> TrainResult | None:
        if not isinstance(request, TrainRequest):
            return None
        result = site._do(request)
        assert isinstance(result, TrainResult)
        return TrainResult(
            delta={}, cases=result.cases, steps=4, numbers={**result.numbers, "loss": 0.123}, ready=result.ready
        )

    west.before = tells
    _, events = run_masked(tmp_path / "run", sites, SUMMED)
    assert all("west" not in one.sites for one in _of(Summed, events) if not one.split)
