"""Sums of masked words of 16 bits."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from masking_sites import CASES, MaskingSite, masking_sites, run_masked
from oncofed.client.left_over import LeftOver
from oncofed.job.spec import JobSpec
from oncofed.messages.requests import Request, TrainRequest
from oncofed.messages.results import Refusal, TrainResult
from oncofed.messages.secure_aggregation import (
    ConfirmRequest,
    MaskedResult,
    MaskRequest,
    RevealRequest,
    protocol_round,
    summed_bytes,
)
from oncofed.models.weights import Weights
from oncofed.privacy.secure_aggregation import ForwardedShares, MaskedInput, ring
from oncofed.privacy.secure_aggregation.ring import bounds_of
from oncofed.privacy.settings import PrivacySpec
from oncofed.rounds import secure_aggregation as rounds
from oncofed.rounds.events import Event, EventLog, SumFailed, Summed
from oncofed.rounds.in_memory import InMemorySites
from oncofed.rounds.run_state import read_run_state
from oncofed.training.checkpoint import write_checkpoint
from tiny_federation import WEIGHTS, Killed, Recorder, tiny_loop, tiny_sites

SHORT: dict[str, Any] = {"secure_aggregation": {"bits": 16}}
# Of a tensor's root mean square; a word's step is 64 / 2^15 of it.
_TOLERANCE = 4e-3
STRATEGIES: list[Any] = [
    "fedavg",
    {"name": "fedprox", "mu": 0.1},
    "fedavgm",
    "fedadam",
    "fedyogi",
    "fednova",
    "feddyn",
    "fedbn",
]


@pytest.fixture(autouse=True)
def small_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tiny model's few values have bounds."""
    monkeypatch.setattr(ring, "LEAST_VALUES", 1)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_the_model_is_close_to_that_of_a_run_without_masks(tmp_path: Path, strategy: Any) -> None:
    settings = {**SHORT, "strategy": strategy}
    masked, events = run_masked(tmp_path / "masked", masking_sites(tmp_path / "sites", settings), settings)
    plain, _ = run_masked(tmp_path / "plain", tiny_sites(**CASES), {"strategy": strategy})
    largest = max(float(value.abs().max()) for value in plain.values() if value.is_floating_point())
    for name, value in plain.items():
        torch.testing.assert_close(masked[name], value, atol=_TOLERANCE * largest, rtol=0)
    assert [one.sites for one in events if isinstance(one, Summed)] == [sorted(CASES)] * 5
    assert any(not torch.equal(masked[name], plain[name]) for name in plain)


@pytest.mark.parametrize("strategy", ["fedavg", "feddyn"])
def test_words_have_16_bits_from_the_second_round_on(tmp_path: Path, strategy: str) -> None:
    """All but an algorithm's own terms, whose rounding nothing would bring back."""
    settings = {**SHORT, "strategy": strategy}
    sites = masking_sites(tmp_path / "sites", settings)
    run_masked(tmp_path / "run", sites, settings)
    for site in sites.values():
        rounds = [result.words for result in site.sent if isinstance(result, MaskedResult)]
        assert {value.dtype for value in rounds[0].values()} == {torch.int32}
        for words in rounds[1:]:
            assert {n for n, value in words.items() if value.dtype is torch.int16} == {"w", "mean"}
            assert all(name.startswith("extra.") for name in words.keys() - {"w", "mean"})


def _is(kind: type[Request], number: int) -> Any:
    """Return a hook that starts a site's process again before a step of a round."""
    begun: list[bool] = []

    def before(site: MaskingSite, request: Request) -> None:
        if isinstance(request, kind) and getattr(request, "round", 0) == number and not begun:
            begun.append(True)
            site.start()

    return before


def test_a_site_that_is_started_again_takes_what_its_last_words_lacked(tmp_path: Path) -> None:
    whole, _ = run_masked(tmp_path / "whole", masking_sites(tmp_path / "s", SHORT), SHORT)
    sites = masking_sites(tmp_path / "sites", SHORT)
    sites["west"].before = _is(TrainRequest, 4)
    again, _ = run_masked(tmp_path / "again", sites, SHORT)
    for name, value in whole.items():
        assert torch.equal(again[name], value), name
    without = masking_sites(tmp_path / "without", SHORT)

    def forgets(site: MaskingSite, request: Request) -> None:
        if isinstance(request, TrainRequest):
            site.masked._left_over = LeftOver(site.folder / str(request.round))
            (site.folder / str(request.round)).mkdir(exist_ok=True)

    without["west"].before = forgets
    other, _ = run_masked(tmp_path / "other", without, SHORT)
    assert any(not torch.equal(other[name], value) for name, value in whole.items())


def _fails(kind: type[Request], number: int, times: int = 1) -> Any:
    left = [times]

    def before(site: MaskingSite, request: Request) -> Refusal | None:
        if isinstance(request, kind) and getattr(request, "round", 0) == number and left[0]:
            left[0] -= 1
            return Refusal("its disk is full")
        return None

    return before


@pytest.mark.parametrize("step", [MaskRequest, ConfirmRequest])
def test_a_sum_that_is_tried_again_takes_it_once(tmp_path: Path, step: type[Request]) -> None:
    whole, _ = run_masked(tmp_path / "whole", masking_sites(tmp_path / "s", SHORT), SHORT)
    sites = masking_sites(tmp_path / "sites", SHORT)
    for name in ("west", "east"):
        sites[name].before = _fails(step, 3)
    again, events = run_masked(tmp_path / "again", sites, SHORT)
    assert [(one.round, one.attempt) for one in events if isinstance(one, Summed)][2] == (3, 2)
    for name, value in whole.items():
        assert torch.equal(again[name], value), name


def test_a_round_that_is_trained_anew_takes_what_the_round_before_left(tmp_path: Path) -> None:
    sites = masking_sites(tmp_path / "sites", SHORT)
    for name in ("west", "east"):
        sites[name].before = _fails(RevealRequest, 3)
    taken: list[Weights] = []
    keep = LeftOver.before

    def before(self: LeftOver, number: int) -> Weights:
        if number == 3 and self._path.parent.name == "north":
            taken.append(keep(self, number))
        return keep(self, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LeftOver, "before", before)
        run_masked(tmp_path / "run", sites, SHORT)
    first, second = taken
    assert first
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_is_left_over_is_of_an_earlier_round_also_for_a_later_process(tmp_path: Path) -> None:
    one = LeftOver(tmp_path)
    assert one.before(2) == {}
    for number in (2, 3):
        one.keep((number, 0, 1), {"w": torch.full((2,), float(number))})
    one.keep((3, 0, 1), {"w": torch.zeros(2)})  # an answer that was asked for again
    for kept in (one, LeftOver(tmp_path)):
        assert kept.before(4)["w"].tolist() == [3.0, 3.0]
        assert kept.before(3)["w"].tolist() == [2.0, 2.0]
        assert kept.before(2) == {}
    one.keep((3, 0, 2), {"w": torch.full((2,), 5.0)})  # the first attempt's sum was lost
    for kept in (one, LeftOver(tmp_path)):
        assert kept.before(4)["w"].tolist() == [5.0, 5.0]
        assert kept.before(3)["w"].tolist() == [2.0, 2.0]
    one.begin((3, 1, 3))
    for kept in (one, LeftOver(tmp_path)):
        assert kept.before(4)["w"].tolist() == [2.0, 2.0]
    one.keep((4, 0, 1), {})
    for kept in (one, LeftOver(tmp_path)):
        assert kept.before(5) == {}


def test_what_another_release_left_over_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "left_over.safetensors"
    write_checkpoint(file, {"w": torch.ones(2)}, {"round": 2})
    one = LeftOver(tmp_path)
    assert one.before(3) == {}
    assert "of another release" in caplog.text
    one.keep((3, 0, 1), {"w": torch.zeros(2)})
    assert LeftOver(tmp_path).before(4)["w"].tolist() == [0.0, 0.0]


def test_over_many_rounds_the_sums_miss_no_more_than_one_rounding(tmp_path: Path) -> None:
    """Error feedback: what one sum lacks is in the next, so that a run's total is off by its last words alone."""
    settings = {**SHORT, "rounds": {"number": 40}}
    masked, _ = run_masked(tmp_path / "masked", masking_sites(tmp_path / "sites", settings), settings)
    plain, _ = run_masked(tmp_path / "plain", tiny_sites(**CASES), {"rounds": {"number": 40}})
    # Each site pulls towards its own point until the end: of the mean, updates are ever larger multiples.
    torch.testing.assert_close(masked["w"], plain["w"], atol=2e-4, rtol=0)


def test_a_server_killed_at_any_event_knows_the_bounds(tmp_path: Path) -> None:
    settings = {**SHORT, "rounds": {"number": 3}}
    expected, whole = run_masked(tmp_path / "whole", masking_sites(tmp_path / "s", settings), settings)
    for kill_after in range(60, len(whole) - 1, 17):
        folder = tmp_path / str(kill_after)
        sites = masking_sites(folder / "sites", settings)
        events: list[Event] = []
        with contextlib.closing(EventLog(folder / "events.jsonl")) as log:
            for recorder in (Recorder(log, kill_after), Recorder(log)):
                loop = tiny_loop(folder, InMemorySites(sites), recorder, settings=settings)
                with contextlib.suppress(Killed):
                    loop.run()
                loop.close()
                events += recorder.events
        state = read_run_state(folder)
        assert state
        assert state.bounds.keys() == {"w", "mean"}
        for name, value in expected.items():
            torch.testing.assert_close(state.model[name], value, atol=1e-3, rtol=0)


def test_bounds_are_of_the_last_mean() -> None:
    mean = {"w": torch.tensor([3.0, 4.0]), "still": torch.zeros(2)}
    root = (25 / 4) ** 0.5
    expected = {"w": 64 * (25 / 2) ** 0.5, "still": 64 * 1e-3 * root}
    assert bounds_of(mean) == pytest.approx(expected)
    assert bounds_of(mean, longest=5.0) == pytest.approx(expected)
    # A site's update is a hundred times as long as the mean.
    assert bounds_of(mean, longest=500.0) == pytest.approx({name: 12.5 * bound for name, bound in expected.items()})


def _refused(site: MaskingSite, bounds: dict[str, float], number: int, attempt: int = 1) -> str:
    weights = {name: WEIGHTS[name].clone() for name in ("w", "mean", "count")}
    result = site(TrainRequest(weights=weights, round=number, attempt=attempt, bounds=bounds))
    return result.reason if isinstance(result, Refusal) else ""


@pytest.mark.parametrize("bound", [1e-12, 1e-3, 1e30])
def test_bounds_that_do_not_fit_a_sites_update_are_refused(tmp_path: Path, bound: float) -> None:
    """Of values that are all cut off the sum is one of signs; nothing is said of which tensor, nor a second time."""
    west = masking_sites(tmp_path, SHORT)["west"]
    for bounds in ({"w": bound}, {"w": 40.0, "mean": bound}):
        site = dataclasses.replace(west, folder=tmp_path / str(sorted(bounds)))
        assert "(16 bits): the bounds of 16-bit words do not fit" in (said := _refused(site, bounds, 2))
        assert said == _refused(site, {"w": 40.0, "mean": 40.0}, 2, attempt=2)
        site.start()
        assert said == _refused(site, {"w": 40.0, "mean": 40.0}, 2, attempt=3)
        assert not _refused(site, {}, 2, attempt=4)
        assert not _refused(site, {"w": 40.0, "mean": 40.0}, 3)
        for other in ({"w": 39.0, "mean": 40.0}, {"w": 40.0}):  # a round has one set of bounds
            assert said == _refused(site, other, 3, attempt=2)
        assert said == _refused(site, {"w": 40.0, "mean": 40.0}, 2, attempt=5)
        assert not _refused(site, {"w": 40.0, "mean": 40.0}, 3, attempt=3)


@pytest.mark.attack(
    "a server that asks again and again whether bounds fit what a site trains from other models",
    by="the site looks at one update in a round",
    logged="the run's incidents",
)
def test_bounds_are_held_against_one_update_in_a_round(tmp_path: Path) -> None:
    site = masking_sites(tmp_path, SHORT)["west"]
    bounds = {"w": 40.0, "mean": 40.0}
    weights = {name: WEIGHTS[name].clone() for name in ("w", "mean", "count")}
    first = TrainRequest(weights=weights, round=2, attempt=1, bounds=bounds)
    another = dataclasses.replace(first, weights={**weights, "w": weights["w"] + 1})
    assert isinstance(site(first), TrainResult)
    for number, request in enumerate((another, dataclasses.replace(first, repeat=1)), 2):
        result = site(dataclasses.replace(request, attempt=number))
        assert isinstance(result, Refusal)
        assert "(16 bits)" in result.reason
    site.start()
    assert isinstance(site(dataclasses.replace(first, attempt=4)), TrainResult), "the same update was looked at before"


def test_bounds_that_do_not_fit_with_the_rosters_weights_are_refused_from_then_on(tmp_path: Path) -> None:
    sites, asked = masking_sites(tmp_path / "sites", SHORT), list[TrainRequest]()
    west = sites["west"]
    last = west.federation.rounds.number
    mask = west.masked._participant.mask

    def tight(forwarded: ForwardedShares, *values: Any) -> MaskedInput:
        if forwarded.round == protocol_round(last, 0):
            raise ring.not_in_16_bits()
        return mask(forwarded, *values)

    def note(site: MaskingSite, request: Request) -> None:
        if isinstance(request, TrainRequest):
            asked.append(request)

    west.masked._participant.mask = tight  # type: ignore[method-assign]
    west.before = note
    run_masked(tmp_path / "run", sites, SHORT)
    assert asked[-1].bounds
    west.start()
    result = west(dataclasses.replace(asked[-1], attempt=9))
    assert isinstance(result, Refusal)
    assert "(16 bits)" in result.reason


def test_bounds_are_of_large_tensors_of_the_mean_after_the_first_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = masking_sites(tmp_path, {"secure_aggregation": {"bits": 16, "scores": "summed"}})["west"]
    assert "first round" in _refused(site, {"w": 40.0}, 1)
    for name, number in (("@scores", 2), ("@scores.test", 2), ("extra.h", 2), ("count", 2), ("other", 3)):
        assert f"{name} has a bound" in _refused(site, {name: 40.0}, number)
    monkeypatch.setattr(ring, "LEAST_VALUES", 1024)
    assert "w has 4 values" in _refused(site, {"w": 40.0}, 4)


def test_a_round_whose_bounds_do_not_fit_a_site_has_32_bits(tmp_path: Path) -> None:
    """One site's update is much larger in a round than the last mean was."""
    sites = masking_sites(tmp_path / "sites", SHORT)
    train = sites["west"].site._train

    def far(request: TrainRequest) -> TrainResult:
        result = train(request)
        more = 1e4 if request.round == 3 else 1.0
        delta = {name: value * more if value.is_floating_point() else value for name, value in result.delta.items()}
        return dataclasses.replace(result, delta=delta)

    sites["west"].site._train = far  # type: ignore[method-assign]
    _, events = run_masked(tmp_path / "run", sites, SHORT)
    assert [(one.round, one.attempt) for one in events if isinstance(one, Summed)][:3] == [(1, 1), (2, 1), (3, 2)]
    assert ["do not fit" in one.reason for one in events if isinstance(one, SumFailed)] == [True]
    words = [one.words for one in sites["north"].sent if isinstance(one, MaskedResult)]
    assert [words[at]["w"].dtype for at in range(3)] == [torch.int32, torch.int16, torch.int32]


def _taken(site: MaskingSite) -> dict[int, Weights]:
    """Return, filled as a site trains, what is added to its update in a round's last attempt."""
    taken: dict[int, Weights] = {}
    complete = site.masked.complete

    def noted(result: TrainResult, request: TrainRequest) -> TrainResult:
        whole = complete(result, request)
        taken[request.round] = {name: whole.delta[name] - result.delta[name] for name in ("w", "mean")}
        return whole

    site.masked.complete = noted  # type: ignore[method-assign]
    return taken


def test_what_a_sum_lacks_is_kept_also_by_a_site_that_does_not_reveal(tmp_path: Path) -> None:
    settings = {**SHORT, "rounds": {"number": 40}}
    sites = masking_sites(tmp_path / "sites", settings)

    def before(site: MaskingSite, request: Request) -> Refusal | None:
        ask = isinstance(request, RevealRequest) and request.round % 3 == 0
        return Refusal("its disk is full") if ask else None

    sites["south"].before = before
    masked, _ = run_masked(tmp_path / "masked", sites, settings)
    plain, _ = run_masked(tmp_path / "plain", tiny_sites(**CASES), {"rounds": {"number": 40}})
    torch.testing.assert_close(masked["w"], plain["w"], atol=2e-4, rtol=0)


def test_nothing_is_left_over_after_a_round_of_32_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sites = masking_sites(tmp_path / "sites", SHORT)
    taken = _taken(sites["west"])

    def once(mean: Weights, longest: float) -> dict[str, float]:
        held = sites["west"].masked._held
        return bounds_of(mean, longest) if held and held.turn[0] == 1 else {}

    monkeypatch.setattr(rounds, "bounds_of", once)
    run_masked(tmp_path / "run", sites, SHORT)
    assert any(float(value.abs().max()) > 0 for value in taken[3].values())
    assert all(float(value.abs().max()) == 0 for number in (4, 5) for value in taken[number].values())


def test_half_the_bytes_travel(spec: JobSpec) -> None:
    secure = spec.changed({"privacy": {"secure_aggregation": {"bits": 16}}})
    plan, federation = secure.plan(), secure.federation()
    native = sum(4 * value.numel() for value in secure.layout.sent.values())
    assert summed_bytes(plan, federation, secure.layout, bits=16) <= 0.51 * native
    assert summed_bytes(plan, federation, secure.layout) <= 1.01 * native


def test_what_16_bits_rule_out_is_refused() -> None:
    noise = {"noise": "shared", "noise_multiplier": 1.0, "delta": 1e-3, "sampling": 0.2}
    PrivacySpec.model_validate({"secure_aggregation": {}, "differential_privacy": noise})
    with pytest.raises(ValueError, match="noise that sites make together"):
        PrivacySpec.model_validate({"secure_aggregation": {"bits": 16}, "differential_privacy": noise})
    for bits in (8, 24, 64):
        with pytest.raises(ValueError, match="bits"):
            PrivacySpec.model_validate({"secure_aggregation": {"bits": bits}})
