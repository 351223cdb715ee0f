"""Select the best round's model, and stop early."""

from __future__ import annotations

from collections.abc import Collection, Mapping
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


def is_better(
    rule: str,
    scores: Mapping[str, float],
    best: Mapping[str, float],
    cases: Mapping[str, Mapping[str, Any]],
    lost: Collection[str] = (),
) -> bool:
    """Return whether a round beats the best one, over the same sites.

    Else a round would win whose hard cases were those of a site that was lost, late or not drawn.

    Args:
        rule: as of ``selected_score``.
        scores: each site's last score; of a site that is missing in this round that of an earlier one.
        best: the same when the best round was judged; empty: none was.
        cases: each site's numbers of cases.
        lost: sites whose scores are left out on both sides: nobody knows theirs.
    """
    if not best:
        return bool(scores)
    same = [site for site in best if site in scores and site in cases and site not in lost]
    now = selected_score(rule, {site: scores[site] for site in same}, cases)
    then = selected_score(rule, {site: best[site] for site in same}, cases)
    return now is not None and then is not None and now > then


def has_stalled(evaluation: EvaluationSpec, state: RunState) -> bool:
    """Return whether scores stalled for ``evaluation.patience`` rounds."""
    if evaluation.patience is None or state.best_round == 0:
        return False
    # The score of a round's model arrives with the next round's answers.
    return state.round - 1 - state.best_round >= evaluation.patience
