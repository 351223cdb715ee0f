"""A site's half of the protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from oncofed.privacy.secure_aggregation import checks, keys, ring, shamir
from oncofed.privacy.secure_aggregation.failures import ProtocolError
from oncofed.privacy.secure_aggregation.masks import Mask, add_masks, pair_sign
from oncofed.privacy.secure_aggregation.messages import (
    PROTOCOL,
    SHARE_BYTES,
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
from oncofed.privacy.secure_aggregation.summands import Summands


@dataclass
class _Attempt:
    """What a site knows of an attempt; its secrets are in memory only.

    Attributes:
        session: round, attempt and model.
        ready: what the site said.
        private: s_i, the private key of the pair masks; empty once revealed.
        seed: b_i, of its own mask; empty once revealed.
        roster: as the server told.
        shares: what the site answered to it.
        held: by owner, its share of the seed and its share of the private key.
        shared: whose shares it holds, sorted: U2.
        digest: of its masked update.
        update: fingerprint of the plain update.
        survivors: that it signed.
        confirmation: its signature.
        reveal: what it revealed.
    """

    session: checks.Session
    ready: Ready
    private: bytes = field(repr=False)
    seed: bytes = field(default=b"", repr=False)
    roster: Roster | None = None
    shares: KeyShares | None = None
    held: dict[str, tuple[bytes, bytes]] = field(default_factory=dict, repr=False)
    shared: tuple[str, ...] = ()
    digest: bytes = b""
    update: bytes = b""
    survivors: Survivors | None = None
    confirmation: Confirmation | None = None
    reveal: Reveal | None = None

    def way(self, sender: str, receiver: str) -> tuple[str | int, ...]:
        """Return what a sealed share is bound to."""
        return self.session.job, self.session.round, self.session.attempt, sender, receiver

    def forget(self) -> None:
        """Drop the secrets; nothing of this attempt can be masked again."""
        self.private = self.seed = b""
        self.held = {}


class Participant:
    """One site in the sums of one job.

    Each step accepts one message an attempt: asked again with the same one it gives the same answer, so that a lost
    answer can be fetched, and with another one it refuses.

    Args:
        job: its identifier.
        plan_digest: of what the job's sites run.
        site: its name, as in its certificate.
        sign: signs bytes with the site's certified key (RSA-PSS, SHA-256).
        verify: gives the key of the site that an advertisement names, or raises ProtocolError.
        rules: of the job and of the site's policy.
        certificates: the site's certificate in PEM, with its chain.
        weigh: each site's share of the mean from all READYs; the same function at all sites and at the server.
    """

    def __init__(
        self,
        job: str,
        plan_digest: str,
        site: str,
        sign: Callable[[bytes], bytes],
        verify: Verify,
        rules: Rules,
        *,
        certificates: bytes,
        weigh: Weigh = by_cases,
    ) -> None:
        self._job, self._plan_digest, self._site = job, plan_digest, site
        self._sign, self._verify, self._rules, self._weigh = sign, verify, rules, weigh
        self._private = keys.new_secret()
        unsigned = KeyAdvertisement(
            PROTOCOL, job, plan_digest, site, keys.public_key(self._private), b"unsigned", certificates
        )
        self._advertisement = dataclasses.replace(unsigned, signature=sign(unsigned.signed_part()))
        self._peers: dict[str, KeyAdvertisement] = {}
        self._keys: dict[str, VerifyKey] = {}
        self._attempt: _Attempt | None = None
        self._last = (-1, 0)
        self._revealed_round = -1
        self._revealed_updates: set[bytes] = set()

    def advertise(self) -> KeyAdvertisement:
        """Return the site's key for this job, signed."""
        return self._advertisement

    def learn_peers(self, advertisements: Sequence[KeyAdvertisement]) -> None:
        """Learn the keys of all sites of the job, its own among them.

        May be called again, for a site that was started again has a new key. An attempt in which this site has shared
        its keys ends, if they are others'.

        Raises:
            ProtocolError: a key is not of a certified site of this job, or its own is missing or another.
        """
        known = checks.check_advertisements(advertisements, self._job, self._plan_digest, self._verify)
        peers = {one.site: one for one in advertisements}
        if peers.get(self._site) != self._advertisement:
            raise ProtocolError("own entry", f"the server passes on another key of {self._site} than its own")
        now = self._attempt
        if peers != self._peers and now is not None and now.roster is not None and now.reveal is None:
            self._attempt = None
        self._peers, self._keys = peers, known

    def ready(
        self,
        round: int,  # noqa: A002
        attempt: int,
        base_digest: str,
        cases: int,
        steps: int,
        norm: float,
        figures: bytes = b"",
    ) -> Ready:
        """Offer a new key for an attempt at a round's sum.

        Args:
            round: number.
            attempt: number, from 1; higher than any before in this round.
            base_digest: of the model with which it began, and of all else that sites must share (factors, bounds).
            cases: training cases.
            steps: optimizer steps.
            norm: Euclidean norm of the update, over all tensors without a factor of their own.
            figures: as ``Ready.figures``.

        Raises:
            ProtocolError: the attempt is not a new one, or this round was revealed.
        """
        private = keys.new_secret()
        unsigned = Ready(
            self._site,
            round,
            attempt,
            base_digest,
            cases,
            steps,
            float(norm),
            keys.public_key(private),
            b"unsigned",
            figures,
        )
        last = self._attempt
        if last is not None and last.reveal is None and _same_offer(last.ready, unsigned):
            return last.ready
        self._check_new(round, attempt)
        signed = dataclasses.replace(unsigned, signature=self._sign(unsigned.signed_part(self._job, self._plan_digest)))
        session = checks.Session(self._job, self._plan_digest, round, attempt, base_digest)
        self._attempt, self._last = _Attempt(session, signed, private), (round, attempt)
        return signed

    def share_keys(self, roster: Roster) -> KeyShares:
        """Check who takes part, and share its two secrets with them.

        Raises:
            ProtocolError: names the rule that the roster breaks.
        """
        now = self._under_way("ShareKeys")
        if now.roster is not None and now.shares is not None:
            if now.roster != roster:
                raise ProtocolError("second roster", "the server sends two rosters in one attempt, expected one")
            return now.shares
        checks.check_roster(roster, now.ready, now.session, self._keys, self._rules, self._weigh)
        sites = [ready.site for ready in roster.readies]
        seed, needed = keys.new_secret(), threshold(len(sites))
        parts = zip(
            sites,
            shamir.split(seed, needed, len(sites)).values(),
            shamir.split(now.private, needed, len(sites)).values(),
            strict=True,
        )
        sealed = {}
        for site, of_seed, of_private in parts:
            if site == self._site:
                now.held[site] = of_seed, of_private
            else:
                sealed[site] = keys.seal(self._channel(site), of_seed + of_private, *now.way(self._site, site))
        now.seed, now.roster = seed, roster
        proof = keys.commitment(seed, self._job, roster.round, self._site)
        now.shares = KeyShares(self._site, roster.round, roster.attempt, proof, sealed)
        return now.shares

    def mask(
        self,
        forwarded: ForwardedShares,
        tensors: Mapping[str, Tensor],
        factors: Mapping[str, float] | None = None,
        bounds: Mapping[str, float] | None = None,
        left_over: MutableMapping[str, Tensor] | None = None,
    ) -> MaskedInput:
        """Return the update, weighted, rounded and masked.

        Args:
            forwarded: what others shared with this site.
            tensors: of the update by name, floating-point, on the CPU; not changed.
            factors: prefix of names -> factor in place of the site's share of the mean, such as 1/sites for SCAFFOLD's
                controls. The same at all sites and at the server.
            bounds: name -> largest absolute value, for tensors of 16-bit words (``ring.bounds_of`` the last mean).
                Others have 32 bits. The same at all sites and at the server.
            left_over: takes by name what was cut and rounded off each tensor, for error feedback (float32).

        Raises:
            ProtocolError: names the rule that the shares, the bounds or the update break.
        """
        now = self._under_way("MaskedInput")
        if now.roster is None:
            raise ProtocolError("order", "asked for a masked update before the roster was known")
        now.session.check_attempt("the shares", forwarded.round, forwarded.attempt)
        shared = checks.check_forwarded(forwarded, self._site, now.roster, self._keys, self._rules)
        if now.shared and shared != now.shared:
            raise ProtocolError("masked once", "asked to mask for two sets of sites in one attempt, expected one")
        update = self._update(now, tensors, summands := Summands(factors or {}, bounds or {}, self._rules.bits))
        for sender, sealed in forwarded.sealed.items():
            plain = keys.unseal(self._channel(sender), sealed, *now.way(sender, self._site))
            now.held[sender] = plain[:SHARE_BYTES], plain[SHARE_BYTES:]
        now.shared = shared
        summands.check_fit(tensors, weights := now.roster.weights)
        masks = _masks_of(now, self._job, self._site)
        words = {}
        for name in sorted(tensors):
            rest = None if left_over is None else torch.empty(tensors[name].shape)
            scale, factor = summands.scale(name, weights), summands.factor(name, weights[self._site])
            words[name] = ring.quantise(tensors[name], factor, scale, rest)
            add_masks(ring.unsigned(words[name]), masks)
            if left_over is not None and rest is not None:
                left_over[name] = rest
        digest = ring.words_digest(words)
        if now.digest and digest != now.digest:
            raise ProtocolError("masked once", "asked to mask two updates with the same keys, expected one an attempt")
        now.digest, now.update = digest, update
        return MaskedInput(self._site, now.session.round, now.session.attempt, words, digest)

    def confirm(self, survivors: Survivors) -> Confirmation:
        """Sign whose updates are in the sum; one set an attempt.

        Raises:
            ProtocolError: the sum should not be known, or another set was signed before.
        """
        now = self._under_way("ConsistencyCheck")
        if now.roster is None or not now.digest:
            raise ProtocolError("order", "asked to confirm survivors before it masked its update")
        now.session.check_attempt("THERE", survivors.round, survivors.attempt)
        if now.survivors is not None and now.confirmation is not None:
            if now.survivors != survivors:
                raise ProtocolError("second survivors", "the server names two sets of survivors, expected one")
            return now.confirmation
        checks.check_survivors(survivors, self._site, now.roster, now.shared, self._keys, self._rules)
        now.survivors = survivors
        signature = self._sign(self._statement(now, now.roster, survivors))
        now.confirmation = Confirmation(self._site, survivors.round, survivors.attempt, signature)
        return now.confirmation

    def reveal(self, confirmations: Confirmations) -> Reveal:
        """Give the shares that unmask the sum, once a round.

        The secrets are dropped. Asked again it gives the same answer.

        Raises:
            ProtocolError: fewer than t sites have signed the survivors that this site signed.
        """
        now = self._under_way("Unmasking")
        if now.roster is None or now.survivors is None:
            raise ProtocolError("order", "asked to reveal shares before it confirmed the survivors")
        now.session.check_attempt("SIGNATURES", confirmations.round, confirmations.attempt)
        if now.reveal is not None:
            return now.reveal
        statement = self._statement(now, now.roster, now.survivors)
        checks.check_confirmations(confirmations, self._site, now.roster, now.survivors, statement, self._keys)
        there = set(now.survivors.sites)
        seeds = {site: now.held[site][0] for site in now.shared if site in there}
        lost = {site: now.held[site][1] for site in now.shared if site not in there}
        now.reveal = Reveal(self._site, now.session.round, now.session.attempt, seeds, lost)
        self._revealed_round = now.session.round
        self._revealed_updates.add(now.update)
        now.forget()
        return now.reveal

    def state(self) -> dict[str, Any]:
        """Return what a restarted site must remember; no secrets.

        Keep it before an answer of ``ready`` or ``reveal`` leaves: a site that forgot that it revealed could be asked
        to mask the same update again.
        """
        return {
            "last": list(self._last),
            "revealed_round": self._revealed_round,
            "revealed_updates": sorted(self._revealed_updates),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Remember what an earlier process did.

        Its keys are gone: it takes no more part in an attempt that was under way.
        """
        self._attempt = None
        # Never back: the same attempt twice would seal other shares with the same nonces.
        self._last = max(self._last, (int(state["last"][0]), int(state["last"][1])))
        self._revealed_round = max(self._revealed_round, int(state["revealed_round"]))
        self._revealed_updates |= {bytes(update) for update in state["revealed_updates"]}

    def _check_new(self, number: int, attempt: int) -> None:
        site, (last_round, last_attempt) = self._site, self._last
        if number <= self._revealed_round:
            raise ProtocolError(
                "revealed",
                f"{site} has helped to unmask a sum of round {self._revealed_round}, and offers no update of round "
                f"{number} again: train anew in a later round",
            )
        if (number, attempt) <= self._last:
            raise ProtocolError(
                "attempt",
                f"found round {number}, attempt {attempt} after round {last_round}, attempt {last_attempt}: expected a "
                "higher one",
            )

    def _under_way(self, step: str) -> _Attempt:
        if self._attempt is None:
            raise ProtocolError(
                "order", f"{step}: {self._site} has no attempt under way: it was started again, or never was ready"
            )
        return self._attempt

    def _channel(self, site: str) -> bytes:
        return keys.channel_key(self._private, self._peers[site].public_key, self._job, (self._site, site))

    def _statement(self, now: _Attempt, roster: Roster, survivors: Survivors) -> bytes:
        return confirmed_part(self._job, roster.digest(self._job, self._plan_digest), now.shared, survivors)

    def _update(self, now: _Attempt, tensors: Mapping[str, Tensor], summands: Summands) -> bytes:
        """Check an update, and return its fingerprint."""
        update = _fingerprint(now, tensors, summands)
        if update in self._revealed_updates:
            raise ProtocolError(
                "revealed", f"{self._site} has helped to unmask a sum of this very update: it is never masked again"
            )
        return update


def _fingerprint(now: _Attempt, tensors: Mapping[str, Tensor], summands: Summands) -> bytes:
    """Return an update's fingerprint; refuse one that is not as it was declared."""
    plain = {name: value for name, value in tensors.items() if not summands.is_factored(name)}
    checks.check_types(tensors)
    checks.check_norm(ring.norm_of(plain), now.ready.norm, len(plain))
    # Terms beside it follow from the update, and with other scores it is the same one.
    return ring.fingerprint(plain or tensors)


def _masks_of(now: _Attempt, job: str, site: str) -> list[Mask]:
    """Return a site's own mask, and one for each other site."""
    assert now.roster is not None
    if not now.seed:
        raise ProtocolError("revealed", f"{site} has dropped the keys of this attempt")
    number = now.session.round
    masks = [Mask(keys.own_key(now.seed, job, number, site))]
    for ready in now.roster.readies:
        if ready.site in now.shared and ready.site != site:
            key = keys.pair_key(now.private, ready.public_key, job, number, (site, ready.site))
            masks.append(Mask(key, pair_sign(site, ready.site)))
    return masks


def _same_offer(said: Ready, now: Ready) -> bool:
    """Return whether two READYs differ in key and signature alone."""
    return dataclasses.replace(said, public_key=now.public_key, signature=now.signature) == now
