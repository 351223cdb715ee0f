"""A site's part in secure aggregation.

The update stays in this process until the round's roster is known, and leaves it masked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from oncofed.algorithms.plan import FederationPlan
from oncofed.algorithms.shared_noise import cases_of_roster
from oncofed.algorithms.sums import shares_in_sum, summands
from oncofed.atomic import write_whole
from oncofed.errors import FederationError, StateError
from oncofed.messages.plain_values import plain_value, restored_value
from oncofed.messages.requests import TrainRequest
from oncofed.messages.results import TrainResult
from oncofed.messages.secure_aggregation import (
    ConfirmRequest,
    MaskedResult,
    MaskRequest,
    RevealRequest,
    SecureStep,
    SecureStepResult,
    ShareKeysRequest,
    base_digest,
    protocol_round,
    ready_content,
)
from oncofed.models.weights import WeightLayout, Weights, sum_of_squares
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
from oncofed.privacy.secure_aggregation.rules import FEWEST_SITES
from oncofed.training.shared_noise import SharedNoise

_FILE = "secure_aggregation.json"
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
    ) -> None:
        self._trained, self._noise = layout.trained, noise
        self._federation, self._algorithm = federation, federation.algorithm()
        self._path = folder / _FILE
        self._participant = Participant(
            job,
            plan_digest,
            identity.site,
            identity.sign,
            identity.verify,
            Rules(
                minimum_sites=federation.smallest_roster or FEWEST_SITES,
                lost=federation.lost,
                smallest_sum=leaves.smallest_sum,
                peers=fingerprints(leaves.peers),
            ),
            certificates=identity.certificates,
            weigh=partial(shares_in_sum, federation.algorithm(), federation.exchange.largest_weight),
        )
        if self._path.is_file():
            self._participant.restore(_read(self._path))
        self._held: tuple[Weights, dict[str, float]] | None = None

    def hold(self, result: TrainResult, request: TrainRequest) -> TrainResult:
        """Hold an update back; return what the server is told of it.

        Raises:
            ProtocolError: this update was masked before, and a share of its sum was revealed.
            OSError: what must be remembered cannot be written.
            FederationError: the model is too large for the noise that sites make together.
        """
        tensors, factors = summands(self._algorithm, dict(result.delta), dict(result.extra), self._trained)
        plain = tuple(factors)
        weighted = [value for name, value in tensors.items() if not name.startswith(plain)]
        ready = self._participant.ready(
            protocol_round(request.round, request.repeat),
            request.attempt,
            base_digest(request.weights, request.extra),
            result.cases,
            result.steps,
            self._declared_norm(weighted, request, result.cases),
        )
        self._remember()
        self._held = tensors, factors
        content = ready_content(self._participant.advertise(), ready)
        return replace(result, delta={}, extra={}, ready=content)

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
            signed = self._participant.confirm(Survivors.from_fields(request.content))
            return SecureStepResult(signed.to_fields())
        if isinstance(request, RevealRequest):
            revealed = self._participant.reveal(Confirmations.from_fields(request.content))
            self._remember()  # before it leaves
            return SecureStepResult(revealed.to_fields())
        raise FederationError(f"it does not know the step {request.task!r}")

    def _declared_norm(self, weighted: list[Tensor], request: TrainRequest, cases: int) -> float:
        """Return how long the update is, or may be where its own length would tell of patients."""
        if self._noise is None:
            return math.sqrt(sum(sum_of_squares(value) for value in weighted))
        start = {name: request.weights[name].float() for name in self._trained}
        self._noise.require_fine(start, self._trained, cases)
        return self._noise.longest(start, self._trained)

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
        shares = self._participant.share_keys(roster)
        return SecureStepResult(shares.to_fields())

    def _mask(self, request: MaskRequest) -> MaskedResult:
        forwarded = ForwardedShares.from_fields(request.content)
        if self._held is None:
            raise FederationError("its process was started again after it was ready: it waits for the next attempt")
        tensors, factors = self._held
        masked = self._participant.mask(forwarded, tensors, factors)
        fields = masked.to_fields()
        return MaskedResult(fields.pop("words"), fields)

    def _remember(self) -> None:
        write_whole(self._path, json.dumps(plain_value(self._participant.state())), mode=0o600)


def fingerprints(peers: tuple[str, ...] | None) -> frozenset[str] | None:
    """Return a policy's fingerprints as certificates have them, ``AB:CD:...``."""
    if peers is None:
        return None
    plain = [peer.replace(":", "").upper() for peer in peers]
    return frozenset(":".join(one[i : i + 2] for i in range(0, len(one), 2)) for one in plain)


def _read(path: Path) -> Mapping[str, object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StateError(
            f"{path} cannot be read ({type(error).__name__}): it says which sums this site took part in. Without it "
            "the site stays out of this job."
        ) from None
    return dict(restored_value(found))
