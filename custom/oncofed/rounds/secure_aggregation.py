"""Rounds whose updates reach the server as a sum alone.

Who takes part is settled once the sites have trained, so that a site that is lost while it trains costs nothing. Short
exchanges follow: keys, masked updates, signatures, and shares that lift the masks off the sum. What they prove is told
in ``privacy.secure_aggregation``.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection
from typing import Any

from oncofed.algorithms.base import Algorithm
from oncofed.algorithms.schedule import Synchronous
from oncofed.algorithms.sums import FACTORS, PLAIN, SCORES, summands, update_of_sum
from oncofed.errors import FederationError, NotEnoughSitesError
from oncofed.messages.requests import TrainRequest
from oncofed.messages.results import Refusal, Result, TrainResult
from oncofed.messages.secure_aggregation import (
    MOST_REDONE,
    base_digest,
    bounds_in_digest,
    needs_32_bits,
    protocol_round,
    read_ready,
)
from oncofed.models.weights import Weights
from oncofed.privacy.secure_aggregation import AggregationFailed, Layout, ProtocolError, Sum
from oncofed.privacy.secure_aggregation.ring import bounds_of
from oncofed.rounds.context import RoundContext
from oncofed.rounds.events import SumFailed
from oncofed.rounds.masked_sum import MOST_ATTEMPTS, MOST_FAILURES, MaskedSum
from oncofed.rounds.round_state import RoundState
from oncofed.rounds.run_state import RunState
from oncofed.rounds.schedules import SynchronousRunner
from oncofed.rounds.site_task import SiteTask
from oncofed.rounds.sums import KeptSum, Sums
from oncofed.rounds.training import RoundResult, Training


class SummedRunner(SynchronousRunner[Synchronous]):
    """All sites train the same model; the server is given the sum of their updates."""

    def run(self, number: int, state: RunState, current: RoundState) -> RoundResult:
        """Wait for the sum of the sites' updates.

        While no share is revealed, a failed sum is tried again with new keys, without sites that failed twice. Later
        only the same sum can be finished; if that fails, the round is trained anew, by the same sites and perhaps more.

        Raises:
            NotEnoughSitesError: too few sites are left, or one of those is gone.
            FederationError: it failed too often.
        """
        context, sums = self._context, self._sums
        kept = sums.read(number)
        if kept:
            try:
                attempt = self._attempt(number, kept.attempt, state, kept.current)
                return attempt.finish(kept)
            except AggregationFailed as failure:
                self._give_up(number, attempt, failure)
        failures, lengths, score = Counter[str](), list(state.lengths), kept is None and context.scores is not None
        while True:
            current = RoundState(started=current.started, asked=current.asked)
            sums.require_steps(number)
            if sums.redone(number):
                state.bounds = {}  # sites hold a round's bounds against its first update alone
            attempt = self._attempt(number, sums.next_attempt(number), state, current)
            attempt.train()
            if asking := sorted(site for site, reason in current.refused.items() if needs_32_bits(reason)):
                if attempt.number >= MOST_ATTEMPTS or not state.bounds:
                    raise FederationError(f"{', '.join(asking)}: {current.refused[asking[0]]}")
                context.record(SumFailed(round=number, attempt=attempt.number, reason=current.refused[asking[0]]))
                state.bounds = {}
                continue
            for site in sorted(failures):
                if failures[site] >= MOST_FAILURES:
                    current.leave_out(site)
                    context.intake.refuse(current, site, "its masked update did not come, repeatedly", number)
            state.lengths = list(lengths)
            ready = context.intake.without_outliers(current, state)
            self._require(sums.required(number) - {update.site for update in ready}, number)
            smallest = context.federation.smallest_roster or 1
            if len(ready) < smallest:
                what = f"the sum of round {number}"
                raise NotEnoughSitesError(context.quorum.too_few(what, len(ready), smallest))
            try:
                return attempt.run({update.site for update in ready}, score)
            except AggregationFailed as failure:
                failures.update(failure.sites)
                score = False  # they need all of their sites, the update does not
                self._give_up(number, attempt, failure)

    def _require(self, missing: Collection[str], number: int) -> None:
        if missing:
            raise NotEnoughSitesError(
                f"the sum of round {number} was lost when half of its masks were off, and only one with the same sites "
                f"may follow: {', '.join(sorted(missing))} did not come back. Run the job again, from the best model "
                "that it kept"
            )

    @property
    def _sums(self) -> Sums:
        assert self._context.sums, "the job has secure aggregation"
        return self._context.sums

    def _attempt(self, number: int, attempt: int, state: RunState, current: RoundState) -> _Attempt:
        return _Attempt(self._context, self._sums, self._algorithm, number, attempt, state, current)

    def _give_up(self, number: int, attempt: _Attempt, failure: AggregationFailed) -> None:
        """Note a failed sum, and whether the round has to be trained anew.

        Raises:
            FederationError: it failed too often.
        """
        self._context.record(SumFailed(round=number, attempt=attempt.number, reason=str(failure)))
        if failure.revealed:
            self._sums.redo(number, attempt.sum.survivors)
        if attempt.number >= MOST_ATTEMPTS or self._sums.redone(number) > MOST_REDONE:
            raise FederationError(
                f"the masked updates of round {number} gave no sum: {failure}. See which site failed in the run's "
                "incidents, repair it or leave it out, and run the job again"
            )


class _MaskedTraining(Training):
    """Sites train, keep their update, and declare what the roster needs.

    Args:
        context: of the run.
        required: sites that a redone round cannot lack.
        values: of ``Training``.
    """

    def __init__(self, context: RoundContext, required: frozenset[str], **values: Any) -> None:
        super().__init__(context, **values)
        self._required, self._began = required, context.clock()

    @property
    def needed(self) -> int:
        """Updates of a quorum; none where a site asks for 32 bits, with which all begin again."""
        return 0 if any(map(needs_32_bits, list(self._current.refused.values()))) else super().needed

    def is_reached(self) -> bool:
        """Return whether all present sites answered.

        Those that a redone round cannot lack are waited for.
        """
        reached, context = super().is_reached(), self._context
        missing = self._required - {update.site for update in self._current.updates} - self._current.refused.keys()
        return reached and (not missing or context.clock() - self._began > context.federation.rounds.return_s)

    def _make_request(self, request: TrainRequest, site: str) -> TrainRequest:
        made = super()._make_request(request, site)
        return dataclasses.replace(made, repeat=request.repeat)

    def _on_result(self, site: str, result: Result | Refusal, task: SiteTask) -> None:
        super()._on_result(site, result, task)
        current = self._current
        if task.closed or not isinstance(result, TrainResult) or all(site != update.site for update in current.updates):
            return
        try:
            current.ready[site] = read_ready(result.ready, site)
        except ProtocolError as error:
            current.leave_out(site)
            self._context.intake.refuse(current, site, str(error), self._expected.round)
        else:
            current.declare_norm(site, current.ready[site][1].norm)


class _Attempt:
    """One attempt at a round's sum.

    Args:
        context: of the run.
        sums: the job's.
        algorithm: the job's.
        number: of the round.
        attempt: its number, from 1.
        state: of the run.
        current: results of the round.

    Attributes:
        number: of the attempt.
        sum: that is formed.
    """

    def __init__(
        self,
        context: RoundContext,
        sums: Sums,
        algorithm: Algorithm[Any],
        number: int,
        attempt: int,
        state: RunState,
        current: RoundState,
    ) -> None:
        self.number = attempt
        self.sum = MaskedSum(context, sums, number=number, attempt=attempt, current=current, shown=number)
        self._context, self._required, self._algorithm = context, sums.required(number), algorithm
        self._round, self._redone, self._state, self._current = number, sums.redone(number), state, current
        self._outgoing, self._extra = context.outgoing(state.model), algorithm.for_clients()

    def train(self) -> None:
        """Have the sites train, or offer new keys for the update that they have."""
        context = self._context
        _MaskedTraining(
            context,
            self._required,
            request=TrainRequest(
                weights=self._outgoing,
                round=self._round,
                extra=self._extra,
                repeat=self._redone,
                attempt=self.number,
                bounds=self._state.bounds,
            ),
            sites=self._current.asked,
            current=self._current,
            expected=context.intake.expected(self._round, self._state.model),
        ).run()

    def run(self, updates: Collection[str], score: bool) -> RoundResult:
        """Add up the updates of sites that are ready.

        Args:
            updates: names of the sites.
            score: whether their scores, too.

        Raises:
            AggregationFailed: too few sites took all steps.
        """
        digest = base_digest(self._outgoing, {**self._extra, **bounds_in_digest(self._state.bounds)})
        number = protocol_round(self._round, self._redone)
        return self._result(self.sum.run(sorted(updates), number, digest, self._layout(), score))

    def finish(self, kept: KeptSum) -> RoundResult:
        """Finish the sum of an earlier process.

        Raises:
            AggregationFailed: too few of its sites are left.
        """
        return self._result(self.sum.finish(kept))

    def _result(self, found: Sum) -> RoundResult:
        """Return a sum as the round's only update."""
        context, current, state = self._context, self._current, self._state
        for site in sorted({update.site for update in current.updates} - set(found.sites)):
            current.leave_out(site)
            context.intake.refuse(current, site, "its masked update is not in the round's sum", self._round)
        state.note_sum(len(found.sites), found.threshold)
        mean: Weights = found.mean()
        scores = mean.pop(SCORES, None)
        if context.scores is not None and scores is not None:
            current.summed = context.scores.decoded(scores)
        if context.federation.bits == 16:
            longest = max(update.norm or 0.0 for update in current.updates)
            state.bounds = bounds_of({n: v for n, v in mean.items() if not n.startswith(PLAIN)}, longest)
        model = {name: state.model[name] for name in context.layout.travelling}
        mean = {n: v if n.startswith(PLAIN) else v.mul_(self.sum.shares) for n, v in mean.items()}
        return RoundResult(current, [update_of_sum(mean, model, current.updates)])

    def _layout(self) -> Layout:
        layout, scores = self._context.layout, self._context.scores
        tensors = summands(self._algorithm, layout.sent, self._algorithm.from_clients(layout), layout.trained)
        shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        if scores:
            shapes[SCORES] = (scores.words,)
        return Layout(shapes, FACTORS, self._state.bounds)
