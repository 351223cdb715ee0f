"""Rounds under secure aggregation, with in-memory sites that mask what they send."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from masking_sites import CASES, SECURE, MaskingSite, masking_sites, run_masked
from oncofed.client.revealed_sums import RevealedSums
from oncofed.client.secure_aggregation import told_norm
from oncofed.errors import FederationError, NotEnoughSitesError, StateError, StepsSpentError
from oncofed.messages.requests import Request, TrainRequest
from oncofed.messages.results import Refusal, Result, TrainResult
from oncofed.messages.secure_aggregation import (
    ConfirmRequest,
    MaskedResult,
    MaskRequest,
    RevealRequest,
    ShareKeysRequest,
)
from oncofed.privacy.policy import LeavesSpec
from oncofed.privacy.secure_aggregation import PROTOCOL, ProtocolError
from oncofed.rounds.events import (
    MODELS_FOLDER,
    Event,
    EventLog,
    Finished,
    RoundEnded,
    StepsSpent,
    SumFailed,
    Summed,
)
from oncofed.rounds.in_memory import Delayed, InMemorySites
from oncofed.rounds.run_state import read_run_state
from oncofed.rounds.sums import Sums, unverified
from oncofed.training import Plan
from tiny_federation import PLAN, WEIGHTS, Killed, Recorder, tiny_loop, tiny_sites


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "secure_aggregation"}


STRATEGIES: list[Any] = [
    "fedavg",
    {"name": "fedprox", "mu": 0.1},
    "fedavgm",
    "fedadam",
    "fedyogi",
    "fednova",
    "clipped_mean",
    "feddyn",
]


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_the_model_is_that_of_a_run_without_masks(tmp_path: Path, strategy: Any) -> None:
    settings = {**SECURE, "strategy": strategy}
    masked, events = run_masked(tmp_path / "masked", masking_sites(tmp_path / "sites", settings), settings)
    plain, _ = run_masked(tmp_path / "plain", tiny_sites(**CASES), _plain(settings))
    assert masked.keys() == plain.keys()
    for name, value in plain.items():
        # Its norms are of all that travels and have two digits here, there they are of the trained weights.
        tolerance = 0.2 if strategy == "clipped_mean" else 1e-5
        torch.testing.assert_close(masked[name], value, atol=tolerance, rtol=0)
    sums = [event for event in events if isinstance(event, Summed)]
    assert [one.sites for one in sums] == [sorted(CASES)] * 5
    assert {one.threshold for one in sums} == {3}


def test_no_update_leaves_a_site_without_a_mask(tmp_path: Path) -> None:
    sites = masking_sites(tmp_path / "sites")
    run_masked(tmp_path / "run", sites, SECURE)
    for site in sites.values():
        assert all(not result.delta and not result.extra for result in site.sent if isinstance(result, TrainResult))
        masked = [result.words for result in site.sent if isinstance(result, MaskedResult)]
        assert len(masked) == 5
        assert all(words["w"].dtype is torch.int32 for words in masked)
        # The same update would have the same words without a mask.
        assert len({tuple(words["w"].tolist()) for words in masked}) == 5


def _fails_at(step: type[Request], times: int = 1) -> Callable[[MaskingSite, Request], Refusal | None]:
    left = [times]

    def before(site: MaskingSite, request: Request) -> Refusal | None:
        if isinstance(request, step) and left[0]:
            left[0] -= 1
            return Refusal("its disk is full")
        return None

    return before


@pytest.mark.parametrize("step", [ShareKeysRequest, MaskRequest, ConfirmRequest, RevealRequest])
def test_a_site_that_fails_a_step_costs_its_update_alone(tmp_path: Path, step: type[Request]) -> None:
    sites = masking_sites(tmp_path / "sites")
    sites["west"].before = _fails_at(step)
    _, events = run_masked(tmp_path / "run", sites, SECURE)
    sums = [event for event in events if isinstance(event, Summed)]
    lost = {ShareKeysRequest, MaskRequest}
    assert sums[0].lost == (["west"] if step in lost else [])
    assert [one.lost for one in sums[1:]] == [[]] * 4
    first = next(event for event in events if isinstance(event, RoundEnded)).participation
    assert first
    assert ("west" in first["in_time"]) == (step not in lost)


@pytest.mark.parametrize("step", [ShareKeysRequest, MaskRequest, ConfirmRequest])
def test_before_anything_is_revealed_a_failed_sum_is_tried_again(tmp_path: Path, step: type[Request]) -> None:
    sites = masking_sites(tmp_path / "sites")
    for name in ("west", "east"):
        sites[name].before = _fails_at(step)
    _, events = run_masked(tmp_path / "run", sites, SECURE)
    assert [event.round for event in events if isinstance(event, SumFailed)] == [1]
    sums = [event for event in events if isinstance(event, Summed)]
    assert [(one.round, one.attempt) for one in sums][:2] == [(1, 2), (2, 1)]
    assert sums[0].sites == sorted(CASES)
    # They were not trained anew: each site answered with the update that it had.
    trained = [request for request in sites["north"].site.requests if isinstance(request, TrainRequest)]
    assert [request.repeat for request in trained] == [0] * 6


def test_a_half_revealed_sum_is_given_up_and_the_round_trained_anew(tmp_path: Path) -> None:
    sites = masking_sites(tmp_path / "sites")
    for name in ("west", "east"):
        sites[name].before = _fails_at(RevealRequest)
    _, events = run_masked(tmp_path / "run", sites, SECURE)
    assert [event.round for event in events if isinstance(event, SumFailed)] == [1]
    trained = [request for request in sites["north"].site.requests if isinstance(request, TrainRequest)]
    assert [request.repeat for request in trained] == [0, 1, 0, 0, 0, 0]
    assert len([event for event in events if isinstance(event, Summed)]) == 5


def test_a_private_job_ends_a_round_earlier_where_one_was_trained_anew(tmp_path: Path) -> None:
    """Sites take no more steps than its epsilon was planned for."""
    private = {"noise_multiplier": 1.3, "delta": 1e-4, "sampling": 0.1}
    plan = Plan.model_validate({**PLAN.model_dump(), "privacy": {"differential_privacy": private}})
    sites = masking_sites(tmp_path / "sites", plan=plan)
    for name in ("west", "east"):
        sites[name].before = _fails_at(RevealRequest)
    _, events = run_masked(tmp_path / "run", sites, SECURE, plan=plan)
    trained = [request.repeat for request in sites["north"].site.requests if isinstance(request, TrainRequest)]
    assert trained == [0, 1, 0, 0, 0]
    (ended,) = [event for event in events if isinstance(event, StepsSpent)]
    assert (ended.round, "1 of 5 rounds had to be trained anew" in ended.reason) == (4, True)
    assert any(isinstance(event, Finished) for event in events)


def test_what_was_trained_anew_is_counted_over_all_rounds_and_processes(tmp_path: Path) -> None:
    sums = Sums(tmp_path, "job", "plan", unverified, rounds=1)
    sums.require_steps(1)
    sums.redo(1, ["east"])
    with pytest.raises(StepsSpentError, match="1 of 1 rounds had to be trained anew"):
        Sums(tmp_path, "job", "plan", unverified, rounds=1).require_steps(1)
    Sums(tmp_path, "job", "plan", unverified).require_steps(1)


def test_a_sum_that_is_spoiled_again_and_again_ends_the_job(tmp_path: Path) -> None:
    """Each redone round tells of the same patients once more."""
    sites = masking_sites(tmp_path / "sites", **CASES, centre=4, coast=5)
    pairs = [("east", "west"), ("north", "south"), ("centre", "coast")]

    def fails_in_turn(site: MaskingSite, request: Request) -> Refusal | None:
        if isinstance(request, RevealRequest):
            redone = sum(isinstance(one, MaskedResult) for one in site.sent) - 1
            if site.site.name in pairs[redone]:
                return Refusal("its disk is full")
        return None

    for site in sites.values():
        site.before = fails_in_turn
    with pytest.raises(FederationError, match="round 1 gave no sum"):
        run_masked(tmp_path / "run", sites, SECURE)
    assert sum(isinstance(one, MaskedResult) for one in sites["north"].sent) == 3


def test_a_round_is_redone_by_the_same_sites_or_not_at_all(tmp_path: Path) -> None:
    """Of two sums from one model, the server would have the difference."""
    sites = masking_sites(tmp_path / "sites", **CASES, centre=4, coast=5)
    for name in ("west", "east"):
        sites[name].before = _fails_at(RevealRequest, times=2)
    with pytest.raises(NotEnoughSitesError, match="east, west did not come back"):
        run_masked(tmp_path / "run", sites, SECURE)


def test_a_site_unmasks_no_sum_that_lacks_one_of_the_same_model(tmp_path: Path) -> None:
    sums = RevealedSums()
    sums.note("model", ["east", "north", "west"])
    again = RevealedSums(sums.state())
    again.check("model", ["east", "north", "south", "west"])
    again.check("another", ["east", "north", "south"])
    with pytest.raises(ProtocolError, match="this one lacks west"):
        again.check("model", ["east", "north", "south"])


@pytest.mark.parametrize(("number", "repeat"), [(6, 0), (0, 0), (1, 3)])
def test_a_site_takes_part_in_no_round_beyond_the_job(tmp_path: Path, number: int, repeat: int) -> None:
    site = masking_sites(tmp_path / "sites")["east"]
    request = TrainRequest(weights=WEIGHTS, round=number, repeat=repeat, attempt=1)
    result = site.site(request)
    assert isinstance(result, TrainResult)
    with pytest.raises(ProtocolError, match="expected at most round 5"):
        site.masked.hold(result, request)


def test_a_norm_tells_two_digits() -> None:
    assert [told_norm(norm) for norm in (0.12345, 7.0, 99.1, 3e-9, 0.0)] == [0.13, 7.0, 100.0, 3e-9, 0.0]


def test_sites_that_are_slow_are_not_blamed_for_others(tmp_path: Path) -> None:
    """Two fail at once, before the others could answer; these are in the next sum."""
    sites = masking_sites(tmp_path / "sites")
    for name in ("west", "east"):
        sites[name].before = _fails_at(ShareKeysRequest, times=1)

    def slowly(site: MaskingSite, request: Request) -> Delayed | None:
        return Delayed(site.masked.answer(request), 2.0) if isinstance(request, ShareKeysRequest) else None

    for name in ("north", "south"):
        sites[name].before = slowly
    _, events = run_masked(tmp_path / "run", sites, SECURE)
    sums = [event for event in events if isinstance(event, Summed)]
    assert [one.sites for one in sums] == [sorted(CASES)] * 5
    told = json.loads((tmp_path / "run" / MODELS_FOLDER / "provenance.json").read_text())["provenance"]
    assert told["secure_aggregation"] == {"protocol": PROTOCOL, "threshold": 3, "rounds": 5}


def test_a_sum_of_too_few_sites_is_never_formed(tmp_path: Path) -> None:
    sites = masking_sites(tmp_path / "sites", east=3, west=4)
    with pytest.raises(NotEnoughSitesError, match=r"has 2 of the 3 sites .*no sum is formed of fewer than 3 "):
        run_masked(tmp_path / "run", sites, SECURE)
    assert not any(isinstance(result, MaskedResult) for site in sites.values() for result in site.sent)


def test_a_site_whose_policy_asks_for_more_sites_takes_no_part(tmp_path: Path) -> None:
    sites = masking_sites(tmp_path / "sites", **CASES, centre=4)
    sites["west"].leaves = LeavesSpec(smallest_sum=6)
    sites["west"].start()
    _, events = run_masked(tmp_path / "run", sites, SECURE)
    assert all("west" not in event.sites for event in events if isinstance(event, Summed))
    assert not any(isinstance(result, MaskedResult) for result in sites["west"].sent)


def test_a_server_that_sends_one_site_another_model_gets_no_sum_with_it(tmp_path: Path) -> None:
    sites = masking_sites(tmp_path / "sites")

    def swapped(site: MaskingSite, request: Request) -> Result | Refusal | None:
        if not isinstance(request, TrainRequest):
            return None
        other = {**request.weights, "w": torch.zeros(4)}
        result = site.site(request)
        assert isinstance(result, TrainResult)
        return site.masked.hold(result, TrainRequest(weights=other, round=request.round, attempt=request.attempt))

    sites["west"].before = swapped
    _, events = run_masked(tmp_path / "run", sites, SECURE)
    assert all("west" not in event.sites for event in events if isinstance(event, Summed))


def test_a_site_that_was_started_again_waits_for_the_next_round(tmp_path: Path) -> None:
    sites = masking_sites(tmp_path / "sites")
    begun: list[bool] = []

    def restarts(site: MaskingSite, request: Request) -> None:
        if isinstance(request, MaskRequest) and not begun:
            begun.append(True)
            site.start()

    sites["west"].before = restarts
    _, events = run_masked(tmp_path / "run", sites, SECURE)
    sums = [event for event in events if isinstance(event, Summed)]
    assert [one.lost for one in sums] == [["west"], [], [], [], []]


@pytest.mark.parametrize("kept", ["{", "[]", '{"participant": {}, "sums": {}}'])
def test_a_site_that_does_not_know_its_earlier_sums_stays_out(tmp_path: Path, kept: str) -> None:
    site = masking_sites(tmp_path / "sites")["west"]
    (site.folder / "secure_aggregation.json").write_text(kept)
    with pytest.raises(StateError, match="stays out of this job"):
        site.start()


def test_a_server_killed_at_any_event_goes_on(tmp_path: Path) -> None:
    """It finishes the sum that it had settled, or asks again; no update is counted twice."""
    settings = {**SECURE, "rounds": {"number": 2}}
    expected, whole = run_masked(tmp_path / "whole", masking_sites(tmp_path / "s", settings), settings)
    for kill_after in range(9, len(whole) - 1, 5):
        folder = tmp_path / str(kill_after)
        sites = masking_sites(folder / "sites", settings)
        with contextlib.closing(EventLog(folder / "events.jsonl")) as log:
            with pytest.raises(Killed):
                _process(folder, sites, settings, Recorder(log, kill_after))
            _process(folder, sites, settings, Recorder(log))
        state = read_run_state(folder)
        assert state
        for name, value in expected.items():
            torch.testing.assert_close(state.model[name], value, atol=1e-5, rtol=0)


def _process(
    folder: Path, sites: Mapping[str, MaskingSite], settings: Mapping[str, Any], record: Callable[[Event], None]
) -> None:
    loop = tiny_loop(folder, InMemorySites(sites), record, settings=settings)
    try:
        loop.run()
    finally:
        loop.close()
