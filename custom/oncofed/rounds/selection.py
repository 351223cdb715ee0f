"""Which round's model is the best, and whether more rounds would help."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oncofed.algorithms.settings import EvaluationSpec
from oncofed.rounds.run_state import RunState


def selected_score(rule: str, scores: Mapping[str, float], cases: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Return the one score of a model that rounds are compared by, from its score at each site; None without any.

    Args:
        rule: "mean" and "worst" of the sites, or "weighted" by their validation cases.
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


def has_stalled(evaluation: EvaluationSpec, memory: RunState) -> bool:
    """Return whether no model was better than the best for as many rounds as the job has patience for."""
    if evaluation.patience is None or memory.best_round == 0:
        return False
    # The score of a round's model comes with the next one's answers.
    return memory.round - 1 - memory.best_round >= evaluation.patience
