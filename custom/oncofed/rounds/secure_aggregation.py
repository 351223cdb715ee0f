"""Rounds whose updates reach the server as a sum alone.

Who takes part is settled once the sites have trained, so that a site that is lost while it trains costs nothing. Short
exchanges follow: keys, masked updates, signatures, and shares that lift the masks off the sum. What they prove is told
in ``privacy.secure_aggregation``.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from oncofed.algorithms import Update
from oncofed.algorithms.base import Algorithm
from oncofed.algorithms.schedule import Synchronous
from oncofed.algorithms.sums import PLAIN, shares_in_sum, summands, update_of_sum
from oncofed.errors import FederationError, NotEnoughSitesError
from oncofed.messages.requests import TrainRequest
from oncofed.messages.results import Refusal, Result, TrainResult
from oncofed.messages.secure_aggregation import (
    MOST_REDONE,
    ConfirmRequest,
    MaskedResult,
    MaskRequest,
    RevealRequest,
    SecureStep,
    SecureStepResult,
    ShareKeysRequest,
    base_digest,
    protocol_round,
    read_ready,
)
from oncofed.privacy.secure_aggregation import (
    AggregationFailed,
    Aggregator,
    Confirmation,
    KeyShares,
    Layout,
    MaskedInput,
    ProtocolError,
    Reveal,
    Rules,
    Sum,
    threshold,
)
from oncofed.privacy.secure_aggregation.rules import FEWEST_SITES
from oncofed.rounds.context import RoundContext
from oncofed.rounds.events import SumFailed, Summed
from oncofed.rounds.intake import checked
from oncofed.rounds.round_state import RoundState
from oncofed.rounds.run_state import RunState
from oncofed.rounds.schedules import SynchronousRunner
from oncofed.rounds.site_step import SiteStep
from oncofed.rounds.site_task import SiteTask
from oncofed.rounds.sums import KeptSum, Sums
from oncofed.rounds.training import RoundResult, Training

# A step takes a site milliseconds once it is asked.
_STEP_SECONDS = 60.0
# A site that fails so often after it was ready is left out of the round.
_MOST_FAILURES = 2
# So often a round is tried with new keys.
_MOST_ATTEMPTS = 20

MessageT = TypeVar("MessageT", KeyShares, Confirmation, Reveal)
SentT = TypeVar("SentT", KeyShares, Confirmation, Reveal, MaskedInput)


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
        failures, lengths = Counter[str](), list(state.lengths)
        while True:
            current = RoundState(started=current.started, asked=current.asked)
            sums.require_steps(number)
            attempt = self._attempt(number, sums.next_attempt(number), state, current)
            attempt.train()
            for site in sorted(failures):
                if failures[site] >= _MOST_FAILURES:
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
                return attempt.run(ready)
            except AggregationFailed as failure:
                failures.update(failure.sites)
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
            self._sums.redo(number, attempt.survivors)
        if attempt.number >= _MOST_ATTEMPTS or self._sums.redone(number) > MOST_REDONE:
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
        survivors: sites whose masked updates arrived, once they are settled.
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
        self.survivors: Sequence[str] = ()
        self._context, self._sums, self._algorithm = context, sums, algorithm
        self._round, self._state, self._current = number, state, current
        self._redone = sums.redone(number)
        self._outgoing, self._extra = context.outgoing(state.model), algorithm.for_clients()
        self._started = context.clock()
        federation = context.federation
        self._aggregator = Aggregator(
            sums.job,
            sums.plan_digest,
            Rules(minimum_sites=federation.smallest_roster or FEWEST_SITES, lost=federation.lost),
            verify=sums.verify,
            # Another one: ``select`` changes an algorithm's state.
            weigh=partial(shares_in_sum, federation.algorithm(), federation.exchange.largest_weight),
        )

    def train(self) -> None:
        """Have the sites train, or offer new keys for the update that they have."""
        context = self._context
        _MaskedTraining(
            context,
            self._sums.required(self._round),
            request=TrainRequest(
                weights=self._outgoing,
                round=self._round,
                extra=self._extra,
                repeat=self._redone,
                attempt=self.number,
            ),
            sites=self._current.asked,
            current=self._current,
            expected=context.intake.expected(self._round, self._state.model),
        ).run()

    def run(self, updates: Sequence[Update]) -> RoundResult:
        """Add up the updates of sites that are ready.

        Raises:
            AggregationFailed: too few sites took all steps.
        """
        aggregator, ready = self._aggregator, {update.site for update in updates}
        self._started = self._context.clock()
        messages = [self._current.ready[site] for site in sorted(ready)]
        peers = aggregator.peers([advertisement for advertisement, _ in messages])
        digest = base_digest(self._outgoing, self._extra)
        aggregator.begin(protocol_round(self._round, self._redone), self.number, digest, self._layout())
        roster = aggregator.roster([one for _, one in messages])
        sites = [one.site for one in roster.readies]
        needed = threshold(len(sites))
        content = {"peers": [peer.to_fields() for peer in peers], "roster": roster.to_fields()}
        shares: dict[str, KeyShares] = {}
        self._step(dict.fromkeys(sites, self._request(ShareKeysRequest, content)), KeyShares, shares, needed)
        forwarded = aggregator.forward([shares[site] for site in sorted(shares)])
        requests = {site: self._request(MaskRequest, one.to_fields()) for site, one in forwarded.items()}
        SiteStep(
            self._context, requests, self._add, needed=needed, seconds=self._context.federation.rounds.return_s
        ).run()
        aggregator.survivors()
        kept = KeptSum(self.number, needed, sum(roster.weights.values()), aggregator.state(), self._current)
        self._sums.keep(self._round, kept)
        return self._unmask(kept)

    def finish(self, kept: KeptSum) -> RoundResult:
        """Finish the sum of an earlier process.

        Raises:
            AggregationFailed: too few of its sites are left.
        """
        self._aggregator.restore(kept.state)
        return self._unmask(kept)

    def _unmask(self, kept: KeptSum) -> RoundResult:
        context, aggregator, needed = self._context, self._aggregator, kept.needed
        survivors = aggregator.survivors()
        sites = self.survivors = survivors.sites
        seconds = context.federation.rounds.return_s
        signed: dict[str, Confirmation] = {}
        asked = self._request(ConfirmRequest, survivors.to_fields())
        self._step(dict.fromkeys(sites, asked), Confirmation, signed, needed, seconds)
        confirmations = aggregator.confirmations(list(signed.values()))
        revealed: dict[str, Reveal] = {}
        asked = self._request(RevealRequest, confirmations.to_fields())
        self._step(dict.fromkeys(sites, asked), Reveal, revealed, needed, seconds)
        return self._result(aggregator.unmask(list(revealed.values())), kept.shares)

    def _result(self, found: Sum, shares: float) -> RoundResult:
        """Return a sum as the round's only update."""
        context, current = self._context, self._current
        for site in sorted({update.site for update in current.updates} - set(found.sites)):
            current.leave_out(site)
            context.intake.refuse(current, site, "its masked update is not in the round's sum", self._round)
        context.record(
            Summed(
                round=self._round,
                attempt=self.number,
                sites=list(found.sites),
                lost=list(found.lost),
                threshold=found.threshold,
                seconds=context.clock() - self._started,
            )
        )
        smallest = self._state.smallest_sum
        self._state.smallest_sum = min(smallest or len(found.sites), len(found.sites))
        self._state.threshold = min(self._state.threshold or found.threshold, found.threshold)
        self._state.summed += 1
        model = {name: self._state.model[name] for name in context.layout.travelling}
        mean = {n: v if n.startswith(PLAIN) else v.mul_(shares) for n, v in found.mean().items()}
        return RoundResult(current, [update_of_sum(mean, model, current.updates)])

    def _layout(self) -> Layout:
        layout = self._context.layout
        extra = self._algorithm.from_clients(layout)
        shapes, factors = summands(self._algorithm, layout.sent, extra, layout.trained)
        return Layout({name: tuple(value.shape) for name, value in shapes.items()}, factors)

    # --- steps

    def _request(self, kind: type[SecureStep], content: Mapping[str, Any]) -> SecureStep:
        return kind(round=self._round, attempt=self.number, content=content)

    def _step(
        self,
        requests: Mapping[str, SecureStep],
        kind: type[MessageT],
        answers: dict[str, MessageT],
        needed: int,
        seconds: float = _STEP_SECONDS,
    ) -> None:
        """Have sites do a step, and collect their messages."""

        def take(site: str, result: Result | Refusal) -> None:
            message = kind.from_fields(checked(result, SecureStepResult, lambda found: dict(found.content)))
            answers[site] = _of_sender(message, site)

        SiteStep(self._context, requests, take, needed=needed, seconds=seconds).run()

    def _add(self, site: str, result: Result | Refusal) -> None:
        masked = checked(result, MaskedResult, lambda found: {**found.content, "words": dict(found.words)})
        self._aggregator.add(_of_sender(MaskedInput.from_fields(masked), site))


def _of_sender(message: SentT, site: str) -> SentT:
    """Return a message that its own site sent.

    Raises:
        ProtocolError: another site's name is in it.
    """
    if message.site != site:
        raise ProtocolError("name", f"{site} sends a message of another site")
    return message
