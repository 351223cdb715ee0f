"""Select the best round's model, and stop early."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oncofed.algorithms.settings import EvaluationSpec
from oncofed.rounds.run_state import RunState


def selected_score(rule: str, scores: Mapping[str, float], cases: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Return the score that compares rounds, if any.

    Args:
        rule: "mean" (also of "last") and "worst" of the sites, or "weighted" by their validation cases.
        scores: by site.
        cases: each site's numbers of cases.
    """
    if not scores:
        return None
    if rule == "worst":
        return min(scores.values())
    if rule == "weighted":
        weights = {site: cases[site]["validation"] for site in scores}
        total = sum(weights.values())
        return sum(scores[site] * weights[site] for site in scores) / total if total else None
    return sum(scores.values()) / len(scores)


def has_stalled(evaluation: EvaluationSpec, state: RunState) -> bool:
    """Return whether scores stalled for ``evaluation.patience`` rounds."""
    if evaluation.patience is None or state.best_round == 0:
        return False
    # The score of a round's model arrives with the next round's answers.
    return state.round - 1 - state.best_round >= evaluation.patience
