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
    answered: Mapping[str, float],
    earlier: Mapping[str, float],
    best: Mapping[str, float],
    cases: Mapping[str, Mapping[str, Any]],
    lost: Collection[str] = (),
) -> bool:
    """Return whether a round beats the best one, over the same sites.

    Else a round would win whose hard cases were those of a site that was lost, late or not drawn. It has to win among
    the sites that answered, too: an earlier score may hold a round back, but is none of its model.

    Args:
        rule: as of ``selected_score``.
        answered: scores of the round's model, by site.
        earlier: each site's last score before, for those that are missing in this round.
        best: each site's last score when the best round was judged.
        cases: each site's numbers of cases.
        lost: sites whose scores are left out on both sides: nobody knows theirs.
    """
    scores = {**earlier, **answered}
    same = [site for site in best if site in scores and site in cases and site not in lost]
    return all(
        _improves(rule, {site: scores[site] for site in sites}, best, cases)
        for sites in (same, [site for site in same if site in answered])
    )


def _improves(
    rule: str, scores: Mapping[str, float], best: Mapping[str, float], cases: Mapping[str, Mapping[str, Any]]
) -> bool:
    now = selected_score(rule, scores, cases)
    then = selected_score(rule, {site: best[site] for site in scores}, cases)
    return now is not None and then is not None and now > then


def has_stalled(evaluation: EvaluationSpec, state: RunState) -> bool:
    """Return whether scores stalled for ``evaluation.patience`` rounds."""
    if evaluation.patience is None or state.best_round == 0:
        return False
    # The score of a round's model arrives with the next round's answers.
    return state.round - 1 - state.best_round >= evaluation.patience
