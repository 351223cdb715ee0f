"""The server's half of the protocol."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from oncofed.privacy.secure_aggregation import checks, ring, unmasking
from oncofed.privacy.secure_aggregation.failures import AggregationFailed, ProtocolError
from oncofed.privacy.secure_aggregation.figures import sites_scored
from oncofed.privacy.secure_aggregation.masks import add_masks
from oncofed.privacy.secure_aggregation.messages import (
    Confirmation,
    Confirmations,
    ForwardedShares,
    KeyAdvertisement,
    KeyShares,
    MaskedInput,
    Ready,
    Reveal,
    Roster,
    Survivors,
    confirmed_part,
)
from oncofed.privacy.secure_aggregation.rules import Rules, Verify, VerifyKey, Weigh, by_cases, threshold
from oncofed.privacy.secure_aggregation.server_attempt import ServerAttempt
from oncofed.privacy.secure_aggregation.summands import Summands
from oncofed.privacy.secure_aggregation.sums import Layout, Sum, check_sum_norm
from oncofed.privacy.secure_aggregation.unmasking import masks_left

_T = TypeVar("_T")


class Aggregator:
    """The server in the sums of one job.

    It holds one sum, whatever the number of sites. Sites whose messages break the protocol are left out
    (``refused``); an attempt fails only where too few are left.

    Args:
        job: its identifier.
        plan_digest: of what the job's sites run.
        rules: of the job; the peers of sites' policies are their own.
        verify: gives the key of the site that an advertisement names, or raises ProtocolError.
        weigh: each site's share of the mean from all READYs; the same function as at all sites.

    Attributes:
        refused: why a site was left out of this attempt, by its name.
    """

    def __init__(self, job: str, plan_digest: str, rules: Rules, *, verify: Verify, weigh: Weigh = by_cases) -> None:
        self._job, self._plan_digest, self._rules = job, plan_digest, rules
        self._verify, self._weigh = verify, weigh
        self._peers: dict[str, KeyAdvertisement] = {}
        self._keys: dict[str, VerifyKey] = {}
        self._attempt: ServerAttempt | None = None
        self.refused: dict[str, str] = {}

    def peers(self, advertisements: Sequence[KeyAdvertisement]) -> tuple[KeyAdvertisement, ...]:
        """Return the advertisements to relay to all sites, sorted.

        May be called again between rounds. A site whose key is not acceptable is left out.

        Raises:
            AggregationFailed: too few sites are left.
        """
        self._peers, self._keys = {}, {}
        for one in advertisements:
            with self._left_out_if_refused(one.site):
                key = checks.check_advertisement(one, self._job, self._plan_digest, self._verify)
                checks.check_new(
                    one.site, one.public_key, {site: peer.public_key for site, peer in self._peers.items()}
                )
                self._peers[one.site], self._keys[one.site] = one, key
        _check_enough("AdvertiseKeys", "keys came from", self._peers, self._rules.fewest, self.refused)
        return tuple(self._peers[site] for site in sorted(self._peers))

    def begin(self, round: int, attempt: int, base_digest: str, layout: Layout) -> None:  # noqa: A002
        """Begin an attempt at a round's sum.

        Args:
            round: number.
            attempt: number, from 1; higher than any before in this round.
            base_digest: as sites should state it in READY.
            layout: what is summed.

        Raises:
            AggregationFailed: shares of this round may have been revealed, so that a new attempt is not allowed.
        """
        last = self._attempt
        if last is not None and last.revealed and round <= last.session.round:
            raise AggregationFailed(
                "AdvertiseKeys",
                f"shares of round {last.session.round} may have been revealed: ask the same survivors again, or train "
                "anew in a later round",
                revealed=True,
            )
        Summands(layout.factors, layout.bounds, self._rules.bits)
        session = checks.Session(self._job, self._plan_digest, round, attempt, base_digest)
        self._attempt, self.refused = ServerAttempt(session, layout), {}

    def roster(self, readies: Sequence[Ready], score: Collection[str] | None = ()) -> Roster:
        """Return who takes part, for all of them.

        Args:
            readies: of sites that are ready.
            score: sites whose scores should be in the sum; None: all that have one.

        Raises:
            AggregationFailed: too few are left.
        """
        now = self._under_way("AdvertiseKeys")
        accepted: dict[str, Ready] = {}
        for ready in readies:
            with self._left_out_if_refused(ready.site):
                checks.check_ready(ready, now.session, self._keys)
                checks.check_new(ready.site, ready.public_key, {site: one.public_key for site, one in accepted.items()})
                accepted[ready.site] = ready
        missing = set(self._peers) - set(accepted)
        _check_enough("AdvertiseKeys", "READY came from", accepted, self._rules.fewest, missing)
        ordered = tuple(accepted[site] for site in sorted(accepted))
        session = now.session
        scored = sites_scored(ordered, score, self._rules.fewest_left)
        now.roster = Roster(session.round, session.attempt, ordered, self._weigh(accepted), scored)
        return now.roster

    @property
    def scored(self) -> tuple[str, ...]:
        """Sites whose scores are in the attempt's sum, sorted."""
        return _known(self._under_way("AdvertiseKeys").roster, "AdvertiseKeys").scored

    def forward(self, shares: Sequence[KeyShares]) -> dict[str, ForwardedShares]:
        """Return the sealed shares for each site that sent its own.

        Raises:
            AggregationFailed: too few sent any.
        """
        now = self._under_way("ShareKeys")
        roster = _known(now.roster, "ShareKeys")
        everybody = {ready.site for ready in roster.readies}
        accepted: dict[str, KeyShares] = {}
        for one in shares:
            fits = one.site in everybody and set(one.sealed) == everybody - {one.site}
            if fits and (one.round, one.attempt) == (roster.round, roster.attempt):
                accepted[one.site] = one
            else:
                self.refused[one.site] = "its shares are not those of this roster"
        needed = max(threshold(len(everybody)), self._rules.fewest_left)
        _check_enough("ShareKeys", "shares came from", accepted, needed, everybody - set(accepted))
        _check_scored("ShareKeys", roster, accepted)
        now.commitments = {site: accepted[site].commitment for site in sorted(accepted)}
        return {
            site: ForwardedShares(
                site,
                roster.round,
                roster.attempt,
                {sender: one.sealed[site] for sender, one in sorted(accepted.items()) if sender != site},
            )
            for site in sorted(accepted)
        }

    def add(self, masked: MaskedInput) -> None:
        """Add a site's masked update.

        Raises:
            ProtocolError: it does not fit; the sum is unchanged, the site is left out.
        """
        now = self._under_way("MaskedInput")
        self._check_masked(now, masked)
        for name, words in masked.words.items():
            if name not in now.total:
                now.total[name] = torch.zeros_like(words, memory_format=torch.contiguous_format)
            total = ring.unsigned(now.total[name])
            total += ring.unsigned(words.contiguous())
        now.digests[masked.site] = masked.digest

    def survivors(self) -> Survivors:
        """Return whose updates came; nothing is added any more.

        From here on ``state`` can be kept.

        Raises:
            AggregationFailed: fewer than t came.
        """
        now = self._under_way("MaskedInput")
        if now.survivors is None:
            roster = _known(now.roster, "MaskedInput")
            needed = max(threshold(len(roster.readies)), self._rules.fewest_left)
            missing = set(now.commitments) - set(now.digests)
            _check_enough("MaskedInput", "masked updates came from", now.digests, needed, missing)
            _check_scored("MaskedInput", roster, now.digests)
            now.survivors = Survivors(roster.round, roster.attempt, tuple(sorted(now.digests)))
        return now.survivors

    def confirmations(self, confirmations: Sequence[Confirmation]) -> Confirmations:
        """Return the valid signatures, for all survivors.

        Raises:
            AggregationFailed: fewer than t are valid; nothing was revealed.
        """
        now = self._under_way("ConsistencyCheck")
        roster, survivors = _known(now.roster, "ConsistencyCheck"), _known(now.survivors, "ConsistencyCheck")
        digest = roster.digest(self._job, self._plan_digest)
        statement = confirmed_part(self._job, digest, tuple(sorted(now.commitments)), survivors)
        for one in confirmations:
            fits = (one.round, one.attempt) == (survivors.round, survivors.attempt) and one.site in survivors.sites
            if fits and self._keys[one.site].is_signed(statement, one.signature):
                now.signatures[one.site] = one.signature
            else:
                self.refused[one.site] = "its confirmation is not of the roster and the survivors that it was sent"
        needed = threshold(len(roster.readies))
        missing = set(survivors.sites) - set(now.signatures)
        _check_enough(
            "ConsistencyCheck", "confirmations came from", now.signatures, needed, missing, revealed=now.revealed
        )
        _check_scored("ConsistencyCheck", roster, now.signatures, revealed=now.revealed)
        now.revealed = True
        return Confirmations(survivors.round, survivors.attempt, dict(now.signatures))

    def unmask(self, reveals: Sequence[Reveal]) -> Sum:
        """Remove the masks, and check the sum.

        Raises:
            AggregationFailed: fewer than t revealed their shares, and the same survivors may be asked again; or shares
                or sum are wrong, and the round is lost.
        """
        now = self._under_way(unmasking.STEP)
        roster, survivors = _known(now.roster, unmasking.STEP), _known(now.survivors, unmasking.STEP)
        shared, there = set(now.commitments), set(survivors.sites)
        accepted: dict[str, Reveal] = {}
        for one in reveals:
            fits = one.site in there and set(one.seeds) == there and set(one.keys) == shared - there
            if fits and (one.round, one.attempt) == (survivors.round, survivors.attempt):
                accepted[one.site] = one
            else:
                self.refused[one.site] = "it did not reveal the shares that it was asked for"
        needed = threshold(len(roster.readies))
        _check_enough(unmasking.STEP, "shares came from", accepted, needed, there - set(accepted), revealed=True)
        masks = masks_left(
            self._job, roster, sorted(shared), survivors.sites, now.commitments, [accepted[s] for s in sorted(accepted)]
        )
        summands = Summands(now.layout.factors, now.layout.bounds, self._rules.bits)
        tensors: dict[str, Tensor] = {}
        for name in sorted(now.total):
            words = now.total.pop(name)
            add_masks(ring.unsigned(words), masks)
            tensors[name] = ring.dequantise(words, summands.scale(name, roster.weights))
        result = Sum(
            tensors=tensors,
            sites=survivors.sites,
            lost=tuple(ready.site for ready in roster.readies if ready.site not in there),
            weights={site: roster.weights[site] for site in survivors.sites},
            threshold=needed,
            digests={site: now.digests[site].hex() for site in survivors.sites},
            factored=frozenset(name for name in tensors if summands.is_factored(name)),
        )
        check_sum_norm(result, roster, summands)
        return result

    def state(self) -> dict[str, Any]:
        """Return the attempt: plain values and tensors, no secrets.

        The tensors are those of the sum, not copies: write them down before ``unmask`` takes them.

        Raises:
            AggregationFailed: the survivors are not known yet; a restarted server begins a new attempt instead.
        """
        now = self._under_way("ConsistencyCheck")
        _known(now.survivors, "ConsistencyCheck")
        peers = [self._peers[site].to_fields() for site in sorted(self._peers)]
        return {"job": self._job, "plan_digest": self._plan_digest, "peers": peers, **now.to_state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with an earlier process's attempt: same survivors only.

        ``survivors``, ``confirmations`` and ``unmask`` follow as before.

        Raises:
            AggregationFailed: it is of another job or plan.
        """
        if (state["job"], state["plan_digest"]) != (self._job, self._plan_digest):
            raise AggregationFailed("ConsistencyCheck", "what was kept is of another job or plan", revealed=True)
        self.peers([KeyAdvertisement.from_fields(one) for one in state["peers"]])
        self._attempt, self.refused = ServerAttempt.from_state(state, self._job, self._plan_digest), {}

    @contextlib.contextmanager
    def _left_out_if_refused(self, site: str) -> Iterator[None]:
        try:
            yield
        except ProtocolError as error:
            self.refused[site] = error.text

    def _check_masked(self, now: ServerAttempt, masked: MaskedInput) -> None:
        now.session.check_attempt(f"the masked update of {masked.site}", masked.round, masked.attempt)
        if masked.site not in now.commitments or now.roster is None:
            raise ProtocolError("unknown site", f"{masked.site} sends a masked update, but has not shared its keys")
        if masked.site in now.digests or now.survivors is not None:
            raise ProtocolError("masked once", f"the masked update of {masked.site} comes twice or too late")
        shapes, summands = now.layout.shapes, Summands(now.layout.factors, now.layout.bounds, self._rules.bits)
        if set(masked.words) != set(shapes):
            raise ProtocolError(
                "layout", f"{masked.site} sends {len(masked.words)} tensors, expected the model's {len(shapes)} by name"
            )
        for name, words in masked.words.items():
            scale = summands.scale(name, now.roster.weights)
            if tuple(words.shape) != tuple(shapes[name]) or words.dtype != scale.dtype:
                raise ProtocolError(
                    "layout",
                    f"{masked.site} sends {name} as {words.dtype} {tuple(words.shape)}, expected {scale.dtype} "
                    f"{tuple(shapes[name])}",
                )
        if ring.words_digest(masked.words) != masked.digest:
            raise ProtocolError("digest", f"the masked update of {masked.site} was changed on its way")

    def _under_way(self, step: str) -> ServerAttempt:
        if self._attempt is None:
            raise AggregationFailed(step, "no attempt is under way: begin one")
        return self._attempt


def _check_enough(
    step: str,
    what: str,
    found: Collection[str],
    needed: int,
    missing: Collection[str],
    *,
    revealed: bool = False,
) -> None:
    if len(found) < needed:
        text = f"{what} {len(found)} sites, expected at least {needed}"
        raise AggregationFailed(step, text, missing, revealed=revealed)


def _check_scored(step: str, roster: Roster, found: Collection[str], *, revealed: bool = False) -> None:
    if missing := sorted(set(roster.scored) - set(found)):
        text = f"{', '.join(missing)} did not take the step, and a sum of scores needs all of its sites"
        raise AggregationFailed(step, text, missing, revealed=revealed)


def _known(value: _T | None, step: str) -> _T:
    if value is None:
        raise AggregationFailed(step, "the step before was left out")
    return value
