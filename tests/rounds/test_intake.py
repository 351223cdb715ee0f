"""What comes through the door: updates of this round, late ones with less weight, none that is far too long."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from nvflare.apis.shareable import Shareable

import oncofed
from oncofed.algorithms.plan import FederationPlan
from oncofed.errors import FederationError
from oncofed.flare import wire
from oncofed.flare.communicator import SiteTask
from oncofed.models.weights import WeightLayout
from oncofed.rounds.intake import UpdateIntake, bounded, counts
from oncofed.rounds.round_state import RoundState
from oncofed.rounds.run_state import RunState

_MODEL = {"weight": torch.zeros(4), "fixed": torch.ones(2)}
_LAYOUT = WeightLayout(_MODEL, frozenset({"weight"}), frozenset({"weight"}))
_CASES = {f"site-{n}": {"train": n} for n in range(1, 5)}


class _Written(list[tuple[str, dict[str, Any]]]):
    def __call__(self, kind: str, **values: Any) -> None:
        self.append((kind, values))

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self]


def _door(written: _Written, **settings: Any) -> UpdateIntake:
    plan = FederationPlan.model_validate(settings)
    return UpdateIntake(plan, _LAYOUT, ("core",), _CASES, written)


def _update(value: float, cases: int) -> Shareable:
    return wire.update_message({"weight": torch.full((4,), value)}, {}, cases, 5, {"loss": 0.1})


def _question() -> SiteTask:
    return SiteTask(wire.TASK_TRAIN, 1, None, lambda site: Shareable(), lambda site, result, question: None)


def test_an_update_counts_with_what_its_site_said() -> None:
    written = _Written()
    door, current = _door(written), RoundState()
    door.take("site-2", _update(1.0, 2), _question(), current, door.given(1, _MODEL))
    (update,) = door.without_outliers(current, RunState(_MODEL))
    assert (update.site, update.cases, update.steps) == ("site-2", 2, 5)
    assert torch.equal(update.delta["weight"], torch.ones(4))
    assert current.losses == {"site-2": 0.1}
    assert written.kinds == ["answer"]


def test_a_clock_that_is_set_during_a_round_makes_no_answer_late(monkeypatch: pytest.MonkeyPatch) -> None:
    door, current = _door(_Written()), RoundState()
    monkeypatch.setattr(time, "time", lambda: 4e9)
    door.take("site-2", _update(1.0, 2), _question(), current, door.given(1, _MODEL))
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
def test_other_numbers_than_the_jobs_are_refused(numbers: dict[str, Any], said: str) -> None:
    door, current = _door(_Written()), RoundState()
    message = wire.update_message({"weight": torch.ones(4)}, {}, 2, 5, numbers)
    door.take("site-2", message, _question(), current, door.given(1, _MODEL))
    assert current.refused["site-2"] == f"its numbers are not those of the job: {said}"
    with pytest.raises(FederationError, match=r"are not those of the job|no score"):
        door.scores("site-1", wire.numbers_message(numbers))


def test_an_answer_that_is_malformed_is_refused() -> None:
    door, current = _door(_Written()), RoundState()
    door.take("site-2", Shareable({"DXO": 7}), _question(), current, door.given(1, _MODEL))
    assert current.refused["site-2"].startswith("its answer is malformed (")
    with pytest.raises(FederationError, match="its answer is malformed"):
        door.scores("site-1", Shareable())
    assert door.scores("site-1", wire.numbers_message({"evaluation": _SCORE}))["evaluation"] == _SCORE


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
def test_what_a_site_says_of_its_data_is_held_to_bounds(said: dict[str, Any], reason: str | None) -> None:
    message = wire.numbers_message(said)
    if reason is None:
        assert counts(message) == said
        return
    with pytest.raises(FederationError, match=reason):
        counts(message)


def test_a_reason_of_a_site_is_one_short_line() -> None:
    reason = wire.refusal_reason(wire.refusal("its disk\n\x1b[31m is full" + "x" * 5000))
    assert reason is not None
    assert reason.startswith("its disk  [31m is full")
    assert len(reason) == 600


def test_other_numbers_of_cases_than_before_are_refused_and_the_site_can_be_asked_again() -> None:
    written = _Written()
    door, current = _door(written), RoundState()
    door.take("site-2", _update(1.0, 900), _question(), current, door.given(1, _MODEL))
    assert "900 cases" in current.refused["site-2"]
    assert door.reasons["site-2"] == current.refused["site-2"]
    assert not current.updates

    door.refuse(current, "site-3", "its disk is full", 1, may_pass=True)
    assert set(current.unable) == {"site-3"}
    door.allow_retry(current, "site-3")
    assert "site-3" not in current.refused
    assert not current.unable


@pytest.mark.parametrize(("late", "counts"), [("discount", True), ("drop", False)])
def test_what_comes_after_its_round_counts_less_in_the_next_or_not_at_all(late: str, counts: bool) -> None:
    written = _Written()
    door, question = _door(written, rounds={"late": late}), _question()
    question.closed = True
    first, second = RoundState(), RoundState()
    door.take("site-1", _update(1.0, 1), question, first, door.given(1, _MODEL))
    door.admit_late(second, 2)
    assert not first.updates
    assert [u.site for u in second.updates] == (["site-1"] if counts else [])
    assert written.kinds == (["late"] if counts else ["late", "dropped"])
    if counts:
        assert second.updates[0].staleness == 1
        assert 0 < second.updates[0].discount < 1
        assert second.participation(["site-1", "site-2"], {"site-2": "gone"}) == {
            "asked": ["site-1", "site-2"],
            "in_time": [],
            "late": ["site-1"],
            "refused": {},
            "lost": {"site-2": "gone"},
            "missing": ["site-2"],
            "seconds": {},
            "staleness": {"site-1": 1},
        }
    door.admit_late(second, 3)
    assert len(second.updates) == counts


def test_an_update_far_longer_than_the_others_is_left_out() -> None:
    written = _Written()
    door, current, memory = _door(written), RoundState(), RunState(_MODEL)
    for site, value in (("site-1", 1.0), ("site-2", 1.1), ("site-3", 0.9), ("site-4", 50.0)):
        door.take(site, _update(value, _CASES[site]["train"]), _question(), current, door.given(1, _MODEL))
    assert {u.site for u in door.without_outliers(current, memory)} == {"site-1", "site-2", "site-3"}
    assert "times as long as usual" in door.reasons["site-4"]
    assert len(memory.lengths[-1]) == 3


def test_only_scaffold_takes_more_than_weights() -> None:
    assert _door(_Written()).given(1, _MODEL).extra == {}
    given = _door(_Written(), strategy={"name": "scaffold"}).given(1, _MODEL)
    assert {name: value.shape for name, value in given.extra.items()} == {"control.weight": torch.Size([4])}
    assert set(given.like) == {"weight"}


def test_a_site_counts_once_in_a_round_also_where_two_of_its_processes_answer() -> None:
    written = _Written()
    door, current = _door(written), RoundState()
    for value in (1.0, 1.0):
        door.take("site-2", _update(value, 2), _question(), current, door.given(1, _MODEL))
    assert [update.site for update in door.without_outliers(current, RunState(_MODEL))] == ["site-2"]
    assert written.kinds == ["answer", "dropped"]


@pytest.mark.attack(
    "a site says that it has millions of cases, so that its update counts alone",
    by="the server: at most exchange.largest_weight times the median site",
    logged="the run's record, with the cases that count",
)
def test_a_site_that_says_it_has_very_many_cases_does_not_make_the_model_alone() -> None:
    assert bounded({"a": 10, "b": 12, "c": 9_000_000}, 20.0) == {"a": 10, "b": 12, "c": 240}
    assert bounded({"a": 5, "b": 5000}, 20.0) == {"a": 5, "b": 100}
    assert bounded({"a": 260, "b": 50}, 20.0) == {"a": 260, "b": 50}
    assert bounded({"a": 7}, 1.0) == {"a": 7}
    door, current = _door(_Written(), exchange={"largest_weight": 2.0}), RoundState()
    for number in (1, 4):
        door.take(f"site-{number}", _update(1.0, number), _question(), current, door.given(1, _MODEL))
    assert [update.cases for update in door.without_outliers(current, RunState(_MODEL))] == [1, 2]
