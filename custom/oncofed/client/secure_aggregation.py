"""A site's part in secure aggregation.

The update stays in this process until the round's roster is known, and leaves it masked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from oncofed.algorithms.plan import FederationPlan
from oncofed.algorithms.shared_noise import cases_of_roster
from oncofed.algorithms.sums import FACTORS, SCORES, scores_of, shares_in_sum, summands
from oncofed.atomic import write_whole
from oncofed.client.bounds_check import BoundsCheck
from oncofed.client.left_over import LeftOver, Turn
from oncofed.client.revealed_sums import RevealedSums
from oncofed.errors import FederationError, StateError
from oncofed.messages.plain_values import plain_value, restored_value
from oncofed.messages.requests import EvaluateRequest, Split, TrainRequest
from oncofed.messages.results import EvaluateResult, TrainResult
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
    bounds_in_digest,
    protocol_round,
    ready_content,
    scoring_digest,
    scoring_round,
)
from oncofed.models.weights import WeightLayout, Weights, sum_of_squares
from oncofed.privacy.accountant import rounded_up
from oncofed.privacy.policy import LeavesSpec
from oncofed.privacy.secure_aggregation import (
    Confirmations,
    ForwardedShares,
    KeyAdvertisement,
    Participant,
    ProtocolError,
    Roster,
    Rules,
    Survivors,
    Verify,
)
from oncofed.privacy.secure_aggregation.figures import figures_summed
from oncofed.privacy.secure_aggregation.ring import NOT_IN_16_BITS
from oncofed.privacy.secure_aggregation.rules import FEWEST_SITES
from oncofed.privacy.summed_scores import SCORES as OF_SCORES
from oncofed.privacy.summed_scores import ScoreForm
from oncofed.training.shared_noise import SharedNoise

SUMS_FILE = "secure_aggregation.json"
# What any release wrote into it.
_REMEMBERED = {"participant", "sums", "base"}
_MOST_PEERS = 1000


@dataclass(frozen=True, kw_only=True)
class Identity:
    """By what a site's peers know it, and it them.

    Attributes:
        site: its name.
        sign: signs bytes with its certified key.
        certificates: its certificate, in PEM.
        verify: gives the key of the site that an advertisement names.
    """

    site: str
    sign: Callable[[bytes], bytes]
    certificates: bytes
    verify: Verify


@dataclass
class _Held:
    """What a site is to mask.

    Attributes:
        tensors: of the update, by name; none where scores alone are summed.
        bounds: of 16-bit words, by name.
        name: of the scores.
        split: of the cases behind them.
        scores: value and weight of each figure, by its index.
        turn: round, how often it was trained anew, and attempt.
        left_over: what its words lacked; empty with 32 bits.
    """

    turn: Turn = (0, 0, 0)
    tensors: Weights = field(default_factory=dict)
    bounds: Mapping[str, float] = field(default_factory=dict)
    name: str = SCORES
    split: Split = "validation"
    scores: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    left_over: Weights = field(default_factory=dict)


class MaskedUpdates:
    """Holds a site's update back, and sends it masked.

    Args:
        federation: how the job's sites train together, with secure aggregation.
        layout: of the model.
        job: its identifier.
        plan_digest: as ``messages.secure_aggregation.plan_digest``.
        identity: of the site.
        leaves: of the site's policy.
        folder: keeps which sums it took part in.
        noise: the site's part of what sites make together; None: each update has its own, or none.
        scores: how the job's scores are added up; None: each site tells its own.
    """

    def __init__(
        self,
        federation: FederationPlan,
        layout: WeightLayout,
        *,
        job: str,
        plan_digest: str,
        identity: Identity,
        leaves: LeavesSpec,
        folder: Path,
        noise: SharedNoise | None = None,
        scores: ScoreForm | None = None,
    ) -> None:
        self._site, self._trained, self._noise, self._form = identity.site, layout.trained, noise, scores
        self._federation, self._algorithm = federation, federation.algorithm()
        self._path = folder / SUMS_FILE
        self._rules = Rules(
            minimum_sites=federation.smallest_roster or FEWEST_SITES,
            lost=federation.lost,
            smallest_sum=leaves.smallest_sum,
            peers=fingerprints(leaves.peers),
            bits=federation.bits,
        )
        self._participant = Participant(
            job,
            plan_digest,
            identity.site,
            identity.sign,
            identity.verify,
            self._rules,
            certificates=identity.certificates,
            weigh=partial(shares_in_sum, federation.algorithm(), federation.exchange.largest_weight),
        )
        self._sums, self._base = RevealedSums(), ""
        self._scored: dict[str, tuple[str, ...]] = {}
        self._bounds = BoundsCheck(federation.bits)
        if self._path.is_file():
            kept = _read(self._path)
            self._participant.restore(kept["participant"])
            self._sums, self._base = RevealedSums(kept["sums"]), str(kept["base"])
            self._scored = {split: tuple(sites) for split, sites in kept.get("scored", {}).items()}
            self._bounds = BoundsCheck(federation.bits, kept.get("bounds"))
        self._left_over = LeftOver(folder) if federation.bits == 16 else None
        self._held: _Held | None = None
        self._roster: Roster | None = None

    def complete(self, result: TrainResult, request: TrainRequest) -> TrainResult:
        """Return an update with what the words of earlier ones lacked."""
        rest = self._left_over.before(request.round) if self._left_over else {}
        delta = {
            name: (value + rest[name]).to(value.dtype) if name in rest else value
            for name, value in result.delta.items()
        }
        return replace(result, delta=delta) if rest else result

    def hold(self, result: TrainResult, request: TrainRequest) -> TrainResult:
        """Hold an update back; return what the server is told of it.

        Args:
            result: as of ``complete``; its numbers are those that may leave.
            request: of the server.

        Raises:
            ProtocolError: this update was masked before, and a share of its sum was revealed; or bounds do not fit it.
            OSError: what must be remembered cannot be written.
            FederationError: the model is too large for the noise that sites make together.
        """
        self._check_turn(request)
        tensors = summands(self._algorithm, dict(result.delta), dict(result.extra), self._trained)
        base = base_digest(request.weights, request.extra)
        if request.bounds:
            try:
                self._bounds.check(request, base, tensors)
            finally:
                self._remember()
        weighted = [value for name, value in tensors.items() if not name.startswith(tuple(FACTORS))]
        shared = base_digest(request.weights, {**request.extra, **bounds_in_digest(request.bounds)})
        scores = self._scores(result.numbers)
        ready = self._participant.ready(
            protocol_round(request.round, request.repeat),
            request.attempt,
            shared,
            result.cases,
            result.steps,
            self._declared_norm(weighted, request, result.cases),
            self._figures(scores),
        )
        self._base = base
        self._remember()
        turn = request.round, request.repeat, request.attempt
        if self._left_over:
            self._left_over.begin(turn)
        self._held = _Held(turn, tensors, dict(request.bounds), scores=scores)
        content = ready_content(self._participant.advertise(), ready)
        return replace(result, delta={}, extra={}, numbers=self._without_scores(result.numbers), ready=content)

    def hold_scores(self, numbers: Mapping[str, Any], request: EvaluateRequest) -> EvaluateResult:
        """Hold a model's scores back; return what the server is told.

        Args:
            numbers: that may leave.
            request: of the server.

        Raises:
            ProtocolError: the server asks for the site's own scores, for others than a job's, or a second time.
            OSError: what must be remembered cannot be written.
        """
        if self._form is None or not request.attempt:
            raise ProtocolError("order", "asked for this site's own scores, expected scores of a sum alone")
        if request.split not in get_args(Split):
            raise ProtocolError("order", "asked for scores of other cases than those for validation or test")
        digest = scoring_digest(request.weights, request.split)
        number = protocol_round(scoring_round(self._federation.rounds.number, request.split), 0)
        scores = self._scores(numbers)
        ready = self._participant.ready(number, request.attempt, digest, 1, 1, 1.0, self._figures(scores))
        self._base = digest
        self._remember()
        self._held = _Held(name=scores_of(request.split), split=request.split, scores=scores)
        content = ready_content(self._participant.advertise(), ready)
        return EvaluateResult(self._without_scores(numbers), content)

    def bound(self, request: TrainRequest) -> float | None:
        """Return the length that is told of any update, by the round's model; None: each tells its own."""
        return self._noise.longest(self._start(request), self._trained) if self._noise else None

    def answer(self, request: SecureStep) -> SecureStepResult | MaskedResult:
        """Take a step of the protocol.

        Raises:
            FederationError: the step breaks a rule, or this process does not hold the update.
        """
        if isinstance(request, ShareKeysRequest):
            return self._share_keys(request)
        if isinstance(request, MaskRequest):
            return self._mask(request)
        if isinstance(request, ConfirmRequest):
            return self._confirm(request)
        if isinstance(request, RevealRequest):
            revealed = self._participant.reveal(Confirmations.from_fields(request.content))
            self._sums.note(self._base, revealed.seeds)
            self._remember()  # before it leaves
            return SecureStepResult(revealed.to_fields())
        raise FederationError(f"it does not know the step {request.task!r}")

    def _confirm(self, request: ConfirmRequest) -> SecureStepResult:
        survivors = Survivors.from_fields(request.content)
        self._sums.check(self._base, survivors.sites)
        confirmation = self._participant.confirm(survivors)
        # Its words are in the sum then, whether or not this site helps to unmask it.
        if self._left_over and self._held and self._held.tensors:
            self._left_over.keep(self._held.turn, self._held.left_over)
        if self._note_scored():
            self._remember()  # before it leaves: whatever becomes of this sum, none has scores of other sites
        return SecureStepResult(confirmation.to_fields())

    def _declared_norm(self, weighted: list[Tensor], request: TrainRequest, cases: int) -> float:
        """Return how long the update is, or may be where its own length would tell of patients."""
        bound = self.bound(request)
        if self._noise is None or bound is None:
            return told_norm(math.sqrt(sum(sum_of_squares(value) for value in weighted)))
        self._noise.require_fine(self._start(request), self._trained, cases)
        return bound

    def _start(self, request: TrainRequest) -> dict[str, Tensor]:
        return {name: request.weights[name].float() for name in self._trained}

    def _scores(self, numbers: Mapping[str, Any]) -> dict[int, tuple[float, float]]:
        return self._form.found_in(numbers) if self._form else {}

    def _figures(self, scores: Mapping[int, tuple[float, float]]) -> bytes:
        return self._form.bits(scores) if self._form else b""

    def _check_scored(self, roster: Roster) -> None:
        """Refuse a sum of this site's scores over other sites than in an earlier one.

        Models of two rounds are as alike as the server likes, so that the difference would be a site's score.
        """
        if self._held is None or self._site not in roster.scored:
            return
        before = self._scored.get(self._held.split, roster.scored)
        if before != roster.scored:
            raise ProtocolError(
                "scores",
                f"the sum has scores of {', '.join(roster.scored)}, expected those of {', '.join(before)} as before, "
                "or none",
            )

    def _note_scored(self) -> bool:
        """Note over which sites this site's scores are summed; return whether that is new."""
        held, roster = self._held, self._roster
        if not held or not roster or self._site not in roster.scored or held.split in self._scored:
            return False
        self._scored[held.split] = roster.scored
        return True

    def _without_scores(self, numbers: Mapping[str, Any]) -> dict[str, Any]:
        left_out = OF_SCORES if self._form else frozenset()
        return {name: value for name, value in numbers.items() if name not in left_out}

    def _require_noise(self, roster: Roster) -> None:
        """Refuse a roster over which noise that sites make together would be too little."""
        if self._noise is None:
            return
        cases, most = cases_of_roster({one.site: one for one in roster.readies}, roster.weights), self._noise.most_cases
        if cases > most:
            raise ProtocolError(
                "noise",
                f"the sites have {cases} training cases, expected at most {most}: beside more, masked updates are "
                "counted in steps too coarse for the noise. Raise training.learning_rate",
            )

    def _share_keys(self, request: ShareKeysRequest) -> SecureStepResult:
        peers = request.content.get("peers")
        if not isinstance(peers, list) or len(peers) > _MOST_PEERS:
            raise ProtocolError("message", "expected the advertisements of the job's sites")
        self._participant.learn_peers([KeyAdvertisement.from_fields(peer) for peer in peers])
        roster = Roster.from_fields(request.content.get("roster"))
        self._require_noise(roster)
        self._check_scored(roster)
        shares = self._participant.share_keys(roster)
        self._roster = roster
        return SecureStepResult(shares.to_fields())

    def _mask(self, request: MaskRequest) -> MaskedResult:
        forwarded = ForwardedShares.from_fields(request.content)
        held, roster = self._held, self._roster
        if held is None or roster is None:
            raise FederationError("its process was started again after it was ready: it waits for the next attempt")
        tensors, rest = dict(held.tensors), Weights()
        if self._form:
            only = figures_summed(roster, self._form.alone) if self._site in roster.scored else frozenset[int]()
            tensors[held.name] = self._form.encoded(held.scores, only)
        try:
            masked = self._participant.mask(forwarded, tensors, FACTORS, held.bounds, rest if held.bounds else None)
        except ProtocolError as error:
            if error.rule == NOT_IN_16_BITS:
                self._bounds.refuse()
                self._remember()
            raise
        held.left_over = {name: rest[name] for name in held.bounds if name in rest}
        fields = masked.to_fields()
        return MaskedResult(fields.pop("words"), fields)

    def _check_turn(self, request: TrainRequest) -> None:
        """Refuse rounds that the job does not have: each sum tells of the same patients once more."""
        rounds = self._federation.rounds.number
        if not 1 <= request.round <= rounds or not 0 <= request.repeat <= MOST_REDONE:
            raise ProtocolError(
                "round",
                f"found round {request.round}, trained anew {request.repeat} times: expected at most round {rounds}, "
                f"and {MOST_REDONE} times",
            )

    def _remember(self) -> None:
        kept: dict[str, Any] = {
            "participant": self._participant.state(),
            "sums": self._sums.state(),
            "base": self._base,
            "bounds": self._bounds.state(),
            "scored": {split: list(sites) for split, sites in self._scored.items()},
        }
        write_whole(self._path, json.dumps(plain_value(kept)), mode=0o600)


def told_norm(norm: float) -> float:
    """Return a norm rounded up to two digits: more would tell of the update, and nothing needs them.

    Example:
        >>> told_norm(0.12345), told_norm(0.0), told_norm(7.0)
        (0.13, 0.0, 7.0)
    """
    return max(rounded_up(norm, 2), norm)


def fingerprints(peers: tuple[str, ...] | None) -> frozenset[str] | None:
    """Return a policy's fingerprints as certificates have them, ``AB:CD:...``."""
    if peers is None:
        return None
    plain = [peer.replace(":", "").upper() for peer in peers]
    return frozenset(":".join(one[i : i + 2] for i in range(0, len(one), 2)) for one in plain)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        found = restored_value(json.loads(path.read_text(encoding="utf-8")))
        if not isinstance(found, dict) or not found.keys() >= _REMEMBERED:
            raise ValueError("another release wrote it")
        return found
    except (OSError, ValueError) as error:
        raise StateError(
            f"{path} cannot be read ({type(error).__name__}): it says which sums this site took part in. Without it "
            "the site stays out of this job."
        ) from None
