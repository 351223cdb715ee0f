"""Scores of a model of which the server is given the sum over the sites alone."""

from __future__ import annotations

import dataclasses
from collections import Counter

from oncofed.algorithms.sums import FACTORS, scores_of
from oncofed.messages.requests import EvaluateRequest
from oncofed.messages.secure_aggregation import protocol_round, scoring_digest, scoring_round
from oncofed.privacy.secure_aggregation import AggregationFailed, Layout
from oncofed.privacy.summed_scores import SummedScores
from oncofed.rounds.context import RoundContext
from oncofed.rounds.evaluation import Evaluation
from oncofed.rounds.events import SumFailed
from oncofed.rounds.masked_sum import MOST_ATTEMPTS, MOST_FAILURES, MaskedSum
from oncofed.rounds.round_state import RoundState


def score_in_sum(context: RoundContext, request: EvaluateRequest) -> RoundState:
    """Have the sites score a model, and add the scores up under masks.

    Each split is scored once in a job. A sum that is lost when half of its masks are off is not formed again, and the
    sites of an earlier one have to be in it. Without it the model has no score.

    Args:
        context: of a run whose scores are summed.
        request: the model, and what to score it on.
    """
    sums = context.sums
    assert sums, "scores are summed under secure aggregation"
    number = scoring_round(context.federation.rounds.number, request.split)
    if sums.has_scores(number):
        return RoundState(summed=sums.scores(number))
    found, failed = _formed(context, request, number)
    if failed:
        context.record(SumFailed(round=request.round, attempt=failed.attempt, reason=f"{failed.why}: it has no score"))
    sums.note_scores(number, found)
    return RoundState(summed=found)


@dataclasses.dataclass(frozen=True)
class _Failure:
    attempt: int
    why: str


def _formed(
    context: RoundContext, request: EvaluateRequest, number: int
) -> tuple[SummedScores | None, _Failure | None]:
    sums, form, failures = context.sums, context.scores, Counter[str]()
    assert sums
    assert form
    kept, name, smallest = sums.read(number), scores_of(request.split), context.federation.smallest_roster or 1
    while True:
        attempt = kept.attempt if kept else sums.next_attempt(number)
        current = kept.current if kept else Evaluation(context, dataclasses.replace(request, attempt=attempt)).run()
        ready = [site for site in sorted(current.ready) if failures[site] < MOST_FAILURES]
        one = MaskedSum(
            context,
            sums,
            number=number,
            attempt=attempt,
            current=current,
            shown=request.round,
            split=request.split,
        )
        try:
            if kept:
                summed = one.finish(kept)
            else:
                layout = Layout({name: (form.words,)}, FACTORS)
                digest = scoring_digest(request.weights, request.split)
                summed = one.run(ready, protocol_round(number, 0), digest, layout, score=True)
        except AggregationFailed as failure:
            if failure.revealed or len(ready) < smallest or attempt >= MOST_ATTEMPTS:
                return None, _Failure(attempt, str(failure))
            context.record(SumFailed(round=request.round, attempt=attempt, reason=str(failure)))
            failures.update(failure.sites)
            kept = None
        else:
            return form.decoded(summed.tensors[name]), None
