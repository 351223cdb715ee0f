"""Selection of the best round, and early stopping."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from oncofed.algorithms.settings import EvaluationSpec
from oncofed.rounds.run_state import RunState
from oncofed.rounds.selection import has_stalled, is_better, selected_score

_CASES = {"a": {"validation": 3}, "b": {"validation": 1}}


@pytest.mark.parametrize(("rule", "score"), [("mean", 0.6), ("worst", 0.4), ("weighted", 0.7)])
def test_a_rule_combines_the_sites_scores(rule: str, score: float) -> None:
    assert selected_score(rule, {"a": 0.8, "b": 0.4}, _CASES) == pytest.approx(score)


def test_the_last_round_is_not_kept_by_a_run_that_may_end_early() -> None:
    with pytest.raises(ValidationError, match="leave patience out"):
        EvaluationSpec(select="last", patience=2)


def test_without_scores_there_is_no_selected_score() -> None:
    assert selected_score("mean", {}, _CASES) is None
    assert selected_score("weighted", {"a": 0.8}, {"a": {"validation": 0}}) is None


@pytest.mark.parametrize("rule", ["mean", "weighted", "worst"])
def test_a_round_wins_over_the_same_sites_alone(rule: str) -> None:
    best = {"a": 0.8, "b": 0.4}
    assert is_better(rule, {"a": 0.8, "b": 0.5}, best, best, _CASES)
    assert not is_better(rule, best, best, best, _CASES), "of equal ones the first"
    # A site that joined later makes no round better, nor worse.
    assert not is_better(rule, {**best, "c": 1.0}, {}, best, {**_CASES, "c": {"validation": 9}})
    assert is_better(rule, {"a": 0.9, "b": 0.5, "c": 0.0}, {}, best, {**_CASES, "c": {"validation": 9}})
    # Without the site that is lost, on either side.
    assert is_better(rule, {"a": 0.9}, {"b": 0.4}, best, _CASES, {"b"})
    assert not is_better(rule, {"a": 0.7}, {"b": 0.4}, best, _CASES, {"b"})
    assert not is_better(rule, {}, {"a": 0.9, "b": 0.9}, best, _CASES, {"a", "b"}), "nothing is left to compare"
    assert not is_better(rule, {"a": 0.9, "b": 0.9}, {}, best, {}), "nor where none has joined again"


@pytest.mark.parametrize("rule", ["mean", "weighted", "worst"])
def test_an_earlier_score_alone_makes_no_round_better(rule: str) -> None:
    cases = {site: {"validation": 1} for site in "abc"}
    best, earlier = {"a": 0.9, "b": 0.3, "c": 0.8}, {"a": 0.5, "b": 0.6, "c": 0.7}
    # a is lost, b late and better in a round before, c worse than ever.
    assert not is_better(rule, {"c": 0.6}, earlier, best, cases, {"a"})
    assert not is_better(rule, {}, earlier, best, cases, {"a"}), "nobody scored the model"
    assert is_better(rule, {"b": 0.6, "c": 0.9}, earlier, best, cases, {"a"})
    # It may hold one back: b was worse since, whatever c says.
    assert not is_better(rule, {"c": 0.9}, {**earlier, "b": 0.1}, best, cases, {"a"})
    assert is_better(rule, {"b": 0.4, "c": 0.9}, {**earlier, "b": 0.1}, best, cases, {"a"}), "it answered anew"


@pytest.mark.parametrize(
    ("patience", "best_round", "round_number", "over"),
    [(None, 1, 50, False), (2, 0, 50, False), (2, 3, 5, False), (2, 3, 6, True)],
)
def test_rounds_end_once_patience_is_exhausted(
    patience: int | None, best_round: int, round_number: int, over: bool
) -> None:
    state = RunState({}, round=round_number, best_round=best_round)
    assert has_stalled(EvaluationSpec(patience=patience), state) is over
