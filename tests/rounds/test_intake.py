"""Which results count: on time, late, too long, malformed."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

import oncofed
from oncofed.algorithms.plan import FederationPlan
from oncofed.algorithms.sums import bounded
from oncofed.errors import UpdateRejectedError
from oncofed.messages.requests import TrainRequest
from oncofed.messages.results import CombineResult, EvaluateResult, Refusal, SiteFacts, TrainResult
from oncofed.models.weights import WeightLayout
from oncofed.rounds.events import Event
from oncofed.rounds.intake import UpdateIntake, counts
from oncofed.rounds.round_state import RoundState
from oncofed.rounds.run_state import RunState
from oncofed.rounds.site_task import SiteTask

_MODEL = {"weight": torch.zeros(4), "fixed": torch.ones(2)}
_LAYOUT = WeightLayout(_MODEL, frozenset({"weight"}), frozenset({"weight"}))
_CASES = {f"site-{n}": {"train": n} for n in range(1, 5)}


class _Record(list[Event]):
    def __call__(self, event: Event) -> None:
        self.append(event)

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self]


def _intake(record: _Record, **settings: Any) -> UpdateIntake:
    plan = FederationPlan.model_validate(settings)
    return UpdateIntake(federation=plan, layout=_LAYOUT, classes=("core",), cases=lambda: _CASES, record=record)


def _update(value: float, cases: int, numbers: dict[str, Any] | None = None) -> TrainResult:
    delta = {"weight": torch.full((4,), value)}
    return TrainResult(delta=delta, cases=cases, steps=5, numbers=numbers or {"loss": 0.1})


def _task() -> SiteTask:
    request = TrainRequest(weights={}, round=1)
    return SiteTask(TrainRequest.task, None, lambda site: request, lambda site, result, task: None)


def test_an_update_counts_with_its_sites_numbers() -> None:
    record = _Record()
    intake, current = _intake(record), RoundState()
    intake.accept("site-2", _update(1.0, 2), _task(), current, intake.expected(1, _MODEL))
    (update,) = intake.without_outliers(current, RunState(_MODEL))
    assert (update.site, update.cases, update.steps) == ("site-2", 2, 5)
    assert torch.equal(update.delta["weight"], torch.ones(4))
    assert current.losses == {"site-2": 0.1}
    assert record.kinds == ["answer"]


def test_setting_the_clock_makes_no_result_late(monkeypatch: pytest.MonkeyPatch) -> None:
    intake, current = _intake(_Record()), RoundState()
    monkeypatch.setattr(time, "time", lambda: 4e9)
    intake.accept("site-2", _update(1.0, 2), _task(), current, intake.expected(1, _MODEL))
    assert 0 <= current.came["site-2"] < 60


_SCORE = {
    "mean": 0.5,
    "by_class": {"core": 0.5},
    "more": {},
    "interval": None,
    "cases": 6,
    "patients": {"all": 6, "mean": 6, "by_class": {"core": 6}, "more": {}},
}


@pytest.mark.attack(
    "numbers beside an update that end the run of all, or write to the terminal of who watches",
    by="a site that was broken into",
    logged="the run's record: refused",
)
@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"loss": "low"}, "loss is not within its bounds"),
        ({"loss": 0.1, "evaluation": 0.5}, "evaluation is not within its bounds"),
        ({"evaluation": {**_SCORE, "mean": "0.5"}}, "evaluation is not within its bounds"),
        ({"evaluation": {**_SCORE, "by_class": {"\x1b[31m": 0.5}}}, "evaluation is not within its bounds"),
        ({"not_kept": "\x1b]0;title"}, "not_kept is not within its bounds"),
        ({"seconds": 3}, "1 numbers that the job does not declare"),
    ],
)
def test_undeclared_numbers_are_refused(numbers: dict[str, Any], said: str) -> None:
    intake, current = _intake(_Record()), RoundState()
    intake.accept("site-2", _update(1.0, 2, numbers), _task(), current, intake.expected(1, _MODEL))
    assert current.refused["site-2"] == f"its numbers are not those of the job: {said}"
    with pytest.raises(UpdateRejectedError, match=r"are not those of the job|no score"):
        intake.scores("site-1", EvaluateResult(numbers))


def test_a_malformed_result_is_refused() -> None:
    intake, current = _intake(_Record()), RoundState()
    intake.accept("site-2", EvaluateResult({}), _task(), current, intake.expected(1, _MODEL))
    assert current.refused["site-2"].startswith("its answer is malformed (")
    with pytest.raises(UpdateRejectedError, match="its answer is malformed"):
        intake.scores("site-1", CombineResult(mean={}, cases=1))
    assert intake.scores("site-1", EvaluateResult({"evaluation": _SCORE})) == ({"evaluation": _SCORE}, None)


_COUNTS = {"train": 3, "validation": 1, "test": 1, "device": "cpu", "version": oncofed.__version__}


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (_COUNTS, None),
        ({**_COUNTS, "train": "3"}, "train is not within its bounds"),
        ({**_COUNTS, "train": -3}, "train is not within its bounds"),
        ({"version": oncofed.__version__}, "it does not say how many cases it has"),
        ({**_COUNTS, "patients": ["Canary"]}, "1 numbers that the job does not declare"),
        ({**_COUNTS, "version": "0.0.1\x1b[31m"}, r"it runs oncofed 0\.0\.1 \[31m, the server"),
        ({**_COUNTS, "version": 7}, "version is not within its bounds"),
    ],
)
def test_a_sites_counts_must_be_within_bounds(said: dict[str, Any], reason: str | None) -> None:
    facts = SiteFacts(said)
    if reason is None:
        assert counts(facts) == said
        return
    with pytest.raises(UpdateRejectedError, match=reason):
        counts(facts)


def test_a_refusal_has_a_reason_and_whether_it_may_pass() -> None:
    intake, current = _intake(_Record()), RoundState()
    for site, refusal in (("site-1", Refusal("its disk is full", may_pass=True)), ("site-2", Refusal("no cases"))):
        intake.accept(site, refusal, _task(), current, intake.expected(1, _MODEL))
    assert current.refused == {"site-1": "its disk is full", "site-2": "no cases"}
    assert set(current.unable) == {"site-1"}
    with pytest.raises(UpdateRejectedError, match="its disk is full"):
        counts(Refusal("its disk is full"))


def test_changed_case_counts_are_refused_and_can_be_retried() -> None:
    record = _Record()
    intake, current = _intake(record), RoundState()
    intake.accept("site-2", _update(1.0, 900), _task(), current, intake.expected(1, _MODEL))
    assert "900 cases" in current.refused["site-2"]
    assert intake.reasons["site-2"] == current.refused["site-2"]
    assert not current.updates

    intake.refuse(current, "site-3", "its disk is full", 1, may_pass=True)
    assert set(current.unable) == {"site-3"}
    intake.allow_retry(current, "site-3")
    assert "site-3" not in current.refused
    assert not current.unable


@pytest.mark.parametrize(("late", "counts"), [("discount", True), ("drop", False)])
def test_a_late_update_is_discounted_or_dropped(late: str, counts: bool) -> None:
    record = _Record()
    intake, task = _intake(record, rounds={"late": late}), _task()
    task.closed = True
    first, second = RoundState(), RoundState(asked=["site-1", "site-2"])
    intake.accept("site-1", _update(1.0, 1), task, first, intake.expected(1, _MODEL))
    intake.admit_late(second, 2)
    assert not first.updates
    assert [u.site for u in second.updates] == (["site-1"] if counts else [])
    assert record.kinds == (["late"] if counts else ["late", "dropped"])
    if counts:
        assert second.updates[0].staleness == 1
        assert 0 < second.updates[0].discount < 1
        assert second.participation({"site-2": "gone"}) == {
            "asked": ["site-1", "site-2"],
            "in_time": [],
            "late": ["site-1"],
            "refused": {},
            "lost": {"site-2": "gone"},
            "missing": ["site-2"],
            "seconds": {},
            "staleness": {"site-1": 1},
        }
    intake.admit_late(second, 3)
    assert len(second.updates) == counts


def test_a_far_longer_update_is_left_out() -> None:
    record = _Record()
    intake, current, state = _intake(record), RoundState(), RunState(_MODEL)
    for site, value in (("site-1", 1.0), ("site-2", 1.1), ("site-3", 0.9), ("site-4", 50.0)):
        intake.accept(site, _update(value, _CASES[site]["train"]), _task(), current, intake.expected(1, _MODEL))
    assert {u.site for u in intake.without_outliers(current, state)} == {"site-1", "site-2", "site-3"}
    assert "times as long as usual" in intake.reasons["site-4"]
    assert len(state.lengths[-1]) == 3


def test_only_scaffold_accepts_extra_tensors() -> None:
    assert _intake(_Record()).expected(1, _MODEL).extra == {}
    expected = _intake(_Record(), strategy={"name": "scaffold"}).expected(1, _MODEL)
    assert {name: value.shape for name, value in expected.extra.items()} == {"control.weight": torch.Size([4])}
    assert set(expected.like) == {"weight"}


def test_a_site_counts_once_even_if_two_processes_answer() -> None:
    record = _Record()
    intake, current = _intake(record), RoundState()
    for value in (1.0, 1.0):
        intake.accept("site-2", _update(value, 2), _task(), current, intake.expected(1, _MODEL))
    assert [update.site for update in intake.without_outliers(current, RunState(_MODEL))] == ["site-2"]
    assert record.kinds == ["answer", "dropped"]


@pytest.mark.attack(
    "a site says that it has millions of cases, so that its update counts alone",
    by="the server: at most exchange.largest_weight times the median site",
    logged="the run's record, with the cases that count",
)
def test_a_site_with_very_many_cases_is_bounded() -> None:
    assert bounded({"a": 10, "b": 12, "c": 9_000_000}, 20.0) == {"a": 10, "b": 12, "c": 240}
    assert bounded({"a": 5, "b": 5000}, 20.0) == {"a": 5, "b": 100}
    assert bounded({"a": 260, "b": 50}, 20.0) == {"a": 260, "b": 50}
    assert bounded({"a": 7}, 1.0) == {"a": 7}
    intake, current = _intake(_Record(), exchange={"largest_weight": 2.0}), RoundState()
    for number in (1, 4):
        intake.accept(f"site-{number}", _update(1.0, number), _task(), current, intake.expected(1, _MODEL))
    assert [update.cases for update in intake.without_outliers(current, RunState(_MODEL))] == [1, 2]
