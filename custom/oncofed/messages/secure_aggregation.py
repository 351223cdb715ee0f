"""Steps of a round's secure aggregation, after its sites are ready.

The contents are the fields of ``privacy.secure_aggregation.messages``; what they mean is known to the protocol alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from oncofed.algorithms.plan import FederationPlan
from oncofed.messages.compression import with_extra
from oncofed.messages.requests import Request
from oncofed.models.weights import digest_of
from oncofed.privacy.secure_aggregation import KeyAdvertisement, ProtocolError, Ready
from oncofed.training import Plan

_NUMBERS_OF_A_ROUND = 1 << 10
# So often a round is trained anew: each time its sum tells of the same patients once more.
MOST_REDONE = 2


@dataclass(frozen=True, kw_only=True)
class SecureStep(Request):
    """Base class of the steps.

    Attributes:
        round: number of the round.
        attempt: of the round, from 0.
        content: the protocol's message, as plain values.
    """

    round: int
    attempt: int
    content: Mapping[str, Any]


class ShareKeysRequest(SecureStep):
    """Share the round's keys with the roster's sites."""

    task = "share_keys"


class MaskRequest(SecureStep):
    """Send the masked update."""

    task = "mask"


class ConfirmRequest(SecureStep):
    """Sign whose masked updates arrived."""

    task = "confirm"


class RevealRequest(SecureStep):
    """Reveal the shares that take the masks off the sum."""

    task = "reveal"


SECURE_STEPS: tuple[type[SecureStep], ...] = (ShareKeysRequest, MaskRequest, ConfirmRequest, RevealRequest)


@dataclass(frozen=True)
class SecureStepResult:
    """A site's answer to a step.

    Attributes:
        content: the protocol's message, as plain values.
    """

    content: Mapping[str, Any]


@dataclass(frozen=True)
class MaskedResult:
    """A site's masked update.

    Attributes:
        words: by name, in the ring; each alone is uniformly random. They may be read from a file on access.
        content: what else belongs to the protocol's message, as plain values.
    """

    words: Mapping[str, Tensor]
    content: Mapping[str, Any]


def plan_digest(plan: Plan, federation: FederationPlan) -> str:
    """Return SHA-256 of all that a job's sites run by; its sites sign it."""
    settings = {"plan": plan.model_dump(mode="json"), "federation": federation.model_dump(mode="json")}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def base_digest(weights: Mapping[str, Tensor], extra: Mapping[str, Tensor]) -> str:
    """Return the digest of all that a site is sent to train with.

    Sites add up only what began with the same. A server that sends one of them another model, so that the sum is this
    one's update, is found so (Pasquini et al., CCS 2022).
    """
    return str(digest_of(with_extra(dict(weights), dict(extra))))


def protocol_round(number: int, redone: int) -> int:
    """Return a round's number in the protocol, in which no update of a round is masked twice.

    Args:
        number: of the round.
        redone: how often it is trained anew.
    """
    return number * _NUMBERS_OF_A_ROUND + redone


def ready_content(advertisement: KeyAdvertisement, ready: Ready) -> dict[str, Any]:
    """Return ``TrainResult.ready``."""
    return {"advertisement": advertisement.to_fields(), "ready": ready.to_fields()}


def read_ready(content: Mapping[str, Any], site: str) -> tuple[KeyAdvertisement, Ready]:
    """Read ``TrainResult.ready``.

    Raises:
        ProtocolError: it is malformed, or of another site.
    """
    advertisement = KeyAdvertisement.from_fields(content.get("advertisement"))
    ready = Ready.from_fields(content.get("ready"))
    if {advertisement.site, ready.site} != {site}:
        raise ProtocolError("name", f"{site} offers the keys of another site")
    return advertisement, ready
