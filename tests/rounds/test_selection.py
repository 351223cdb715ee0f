"""Selection of the best round, and early stopping."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from oncofed.algorithms.settings import EvaluationSpec
from oncofed.rounds.run_state import RunState
from oncofed.rounds.selection import has_stalled, selected_score

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


@pytest.mark.parametrize(
    ("patience", "best_round", "round_number", "over"),
    [(None, 1, 50, False), (2, 0, 50, False), (2, 3, 5, False), (2, 3, 6, True)],
)
def test_rounds_end_once_patience_is_exhausted(
    patience: int | None, best_round: int, round_number: int, over: bool
) -> None:
    state = RunState({}, round=round_number, best_round=best_round)
    assert has_stalled(EvaluationSpec(patience=patience), state) is over
