"""A site's half of the protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor

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
)
from oncofed.privacy.secure_aggregation.rules import Rules, Verify, Weigh, by_cases


class Participant:
    """One site in the sums of one job.

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
        self._sign, self._verify, self._rules = sign, verify, rules
        self._certificates, self._weigh = certificates, weigh

    def advertise(self) -> KeyAdvertisement:
        """Return the site's key for this job, signed."""
        raise NotImplementedError

    def learn_peers(self, advertisements: Sequence[KeyAdvertisement]) -> None:
        """Learn the keys of all sites of the job, its own among them.

        May be called again between rounds, for a site that was started again has a new key.
        """
        raise NotImplementedError

    def ready(self, round: int, attempt: int, base_digest: str, cases: int, steps: int, norm: float) -> Ready:  # noqa: A002
        """Offer a new key for an attempt at a round's sum.

        Args:
            round: number.
            attempt: number, from 1; higher than any before in this round.
            base_digest: of the model with which it began, and of all else that sites must share (factors, bounds).
            cases: training cases.
            steps: optimizer steps.
            norm: Euclidean norm of the update, over all tensors without a factor of their own.
        """
        raise NotImplementedError

    def share_keys(self, roster: Roster) -> KeyShares:
        """Check who takes part, and share its two secrets with them."""
        raise NotImplementedError

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
            tensors: of the update by name, floating-point, on the CPU; read once each in name order, not changed.
            factors: prefix of names -> factor in place of the site's share of the mean, such as 1/sites for SCAFFOLD's
                controls. The same at all sites and at the server.
            bounds: name -> largest absolute value, for tensors of 16-bit words (``ring.bounds_of`` the last mean).
                Others have 32 bits. The same at all sites and at the server.
            left_over: takes by name what was cut and rounded off each tensor, for error feedback (float32).
        """
        raise NotImplementedError

    def confirm(self, survivors: Survivors) -> Confirmation:
        """Sign whose updates are in the sum; one set an attempt."""
        raise NotImplementedError

    def reveal(self, confirmations: Confirmations) -> Reveal:
        """Give the shares that unmask the sum, once a round.

        The secrets are dropped. Asked again with signatures of the same survivors it gives the same answer.
        """
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        """Return what a restarted site must remember; no secrets.

        Keep it before an answer of ``ready`` or ``reveal`` leaves: a site that forgot that it revealed could be asked
        to mask the same update again.
        """
        raise NotImplementedError

    def restore(self, state: Mapping[str, Any]) -> None:
        """Remember what an earlier process did."""
        raise NotImplementedError
