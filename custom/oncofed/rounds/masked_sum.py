"""One attempt at a sum of what sites hold back: keys, masked words, signatures, shares."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from oncofed.algorithms.sums import shares_in_sum
from oncofed.messages.requests import Split
from oncofed.messages.results import Refusal, Result
from oncofed.messages.secure_aggregation import (
    ConfirmRequest,
    MaskedResult,
    MaskRequest,
    RevealRequest,
    SecureStep,
    SecureStepResult,
    ShareKeysRequest,
)
from oncofed.privacy.secure_aggregation import (
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
from oncofed.rounds.events import Summed
from oncofed.rounds.intake import checked
from oncofed.rounds.round_state import RoundState
from oncofed.rounds.site_step import SiteStep
from oncofed.rounds.sums import KeptSum, Sums

_VALIDATION: Split = "validation"
# A step takes a site milliseconds once it is asked.
_STEP_SECONDS = 60.0
# A site that fails so often after it was ready is left out of the round.
MOST_FAILURES = 2
# So often a sum is tried with new keys.
MOST_ATTEMPTS = 20

MessageT = TypeVar("MessageT", KeyShares, Confirmation, Reveal)
SentT = TypeVar("SentT", KeyShares, Confirmation, Reveal, MaskedInput)


class MaskedSum:
    """One attempt at a sum.

    Args:
        context: of the run.
        sums: the job's.
        number: of the sum: of its round, or of a model's scores.
        attempt: its number, from 1.
        current: what the sites declared.
        shown: round that the run's record names.
        split: of the cases, for a sum of scores; None for one of updates.

    Attributes:
        attempt: likewise.
        survivors: sites whose masked words arrived, once they are settled.
        shares: of all sites of the roster, added up: 1 but for algorithms that scale the mean.
    """

    def __init__(
        self,
        context: RoundContext,
        sums: Sums,
        *,
        number: int,
        attempt: int,
        current: RoundState,
        shown: int,
        split: Split | None = None,
    ) -> None:
        self.attempt = attempt
        self.survivors: Sequence[str] = ()
        self.shares = 1.0
        self._context, self._sums = context, sums
        self._number, self._current, self._shown = number, current, shown
        # An update's scores are those on validation patients.
        self._split, self._scored_split = split or "", _VALIDATION if split is None else split
        self._started = context.clock()
        federation = context.federation
        self._aggregator = Aggregator(
            sums.job,
            sums.plan_digest,
            Rules(minimum_sites=federation.smallest_roster or FEWEST_SITES, lost=federation.lost, bits=federation.bits),
            verify=sums.verify,
            # Another one: ``select`` changes an algorithm's state.
            weigh=partial(shares_in_sum, federation.algorithm(), federation.exchange.largest_weight),
        )

    def run(self, ready: Sequence[str], protocol_number: int, digest: str, layout: Layout, score: bool = False) -> Sum:
        """Add up what sites that are ready hold back.

        Args:
            ready: their names.
            protocol_number: as ``messages.secure_aggregation.protocol_round``.
            digest: of what all of them share.
            layout: what is summed.
            score: whether their scores are.

        Raises:
            AggregationFailed: too few sites took all steps.
        """
        aggregator = self._aggregator
        self._started = self._context.clock()
        messages = [self._current.ready[site] for site in sorted(ready)]
        peers = aggregator.peers([advertisement for advertisement, _ in messages])
        aggregator.begin(protocol_number, self.attempt, digest, layout)
        over: Collection[str] | None = self._sums.scored(self._scored_split) if score else ()
        roster = aggregator.roster([one for _, one in messages], over)
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
        kept = KeptSum(self.attempt, needed, sum(roster.weights.values()), aggregator.state(), self._current)
        self._sums.keep(self._number, kept)
        return self._unmask(kept)

    def finish(self, kept: KeptSum) -> Sum:
        """Finish the sum of an earlier process.

        Raises:
            AggregationFailed: too few of its sites are left.
        """
        self._aggregator.restore(kept.state)
        return self._unmask(kept)

    def _unmask(self, kept: KeptSum) -> Sum:
        context, aggregator, needed = self._context, self._aggregator, kept.needed
        survivors = aggregator.survivors()
        sites = self.survivors = survivors.sites
        self.shares = kept.shares
        seconds = context.federation.rounds.return_s
        signed: dict[str, Confirmation] = {}
        asked = self._request(ConfirmRequest, survivors.to_fields())
        scored = aggregator.scored
        self._sums.note_scored(self._scored_split, scored)
        self._step(dict.fromkeys(sites, asked), Confirmation, signed, len(sites) if scored else needed, seconds)
        confirmations = aggregator.confirmations(list(signed.values()))
        revealed: dict[str, Reveal] = {}
        asked = self._request(RevealRequest, confirmations.to_fields())
        self._step(dict.fromkeys(sites, asked), Reveal, revealed, needed, seconds)
        found = aggregator.unmask(list(revealed.values()))
        context.record(
            Summed(
                round=self._shown,
                attempt=self.attempt,
                sites=list(found.sites),
                lost=list(found.lost),
                threshold=found.threshold,
                seconds=context.clock() - self._started,
                split=self._split,
                scored=len(scored),
            )
        )
        return found

    # --- steps

    def _request(self, kind: type[SecureStep], content: Mapping[str, Any]) -> SecureStep:
        return kind(round=self._shown, attempt=self.attempt, content=content)

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
