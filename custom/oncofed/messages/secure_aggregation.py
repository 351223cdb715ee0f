"""Steps of a round's secure aggregation, after its sites are ready.

The contents are the fields of ``privacy.secure_aggregation.messages``; what they mean is known to the protocol alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oncofed.algorithms.plan import FederationPlan
from oncofed.algorithms.sums import PLAIN, summands
from oncofed.messages.compression import with_extra
from oncofed.messages.requests import Request, Split
from oncofed.models.weights import WeightLayout, digest_of
from oncofed.privacy.secure_aggregation import KeyAdvertisement, ProtocolError, Ready
from oncofed.privacy.secure_aggregation.ring import NOT_IN_16_BITS
from oncofed.privacy.summed_scores import ScoreForm
from oncofed.tasks import metrics_that_may_leave
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


def score_form(plan: Plan, federation: FederationPlan) -> ScoreForm | None:
    """Return how a job's scores are added up; None: they leave each site as its own."""
    if not federation.sums_scores:
        return None
    by_cases = federation.evaluation.select == "weighted"
    return ScoreForm(plan.task.figure_names, metrics_that_may_leave(plan.task), by_cases)


def summed_bytes(plan: Plan, federation: FederationPlan, layout: WeightLayout, bits: int = 32) -> int:
    """Return the bytes of a site's masked words in a round.

    Args:
        plan: of the job.
        federation: of the job, with secure aggregation.
        layout: of the plan's weights.
        bits: of the words of an update; in the first round, and of all else, they have 32.
    """
    algorithm, form = federation.algorithm(), score_form(plan, federation)
    tensors = summands(algorithm, layout.sent, algorithm.from_clients(layout), layout.trained)
    sizes = {name: value.numel() * (4 if name.startswith(PLAIN) else bits // 8) for name, value in tensors.items()}
    return sum(sizes.values()) + (4 * form.words if form else 0)


def scoring_round(rounds: int, split: Split) -> int:
    """Return the number of the sum of a model's scores, after those of a job's rounds: each split is scored once.

    Args:
        rounds: of the job.
        split: of the cases.
    """
    return rounds + (1 if split == "validation" else 2)


def scoring_digest(weights: Mapping[str, Tensor], split: Split) -> str:
    """Return the digest of a model to be scored: of no round's, nor of another split's."""
    return base_digest(weights, {"@scored " + split: torch.zeros(1)})


def bounds_in_digest(bounds: Mapping[str, float]) -> dict[str, Tensor]:
    """Return bounds of 16-bit words as part of what all sites share."""
    if not bounds:
        return {}
    names = sorted(bounds)
    return {"@bounds " + " ".join(names): torch.tensor([bounds[name] for name in names], dtype=torch.float64)}


def needs_32_bits(reason: str) -> bool:
    """Return whether a site refused 16-bit words that do not fit its update, and would take part with 32 bits."""
    return f"({NOT_IN_16_BITS})" in reason


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
