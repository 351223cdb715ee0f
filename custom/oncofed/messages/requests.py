"""Requests that the server sends to sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

Split = Literal["validation", "test"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """Base class of requests.

    Attributes:
        task: name of the task.
    """

    task: ClassVar[str]


@dataclass(frozen=True, kw_only=True)
class PrepareRequest(Request):
    """Load the data and report facts about it.

    Attributes:
        profile: add histograms of the training images (``artifacts.training_profile``), and sums of the table's numbers
            (``data.moments``).
    """

    task = "prepare"

    profile: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainRequest(Request):
    """Score the global model on validation cases, then train it.

    Attributes:
        weights: the model, by name; bfloat16 if the job says so.
        round: number of the round, from 1.
        extra: tensors of ``Algorithm.for_clients``, by name.
        refusal: why this site's last update did not count; None where it did.
        collector: site to send the update to; None for the server.
        repeat: updates that the site has given from this very model; it trains on from its next batches.
        attempt: of the round's secure aggregation, from 1; 0 without.
        bounds: largest values of tensors whose masked words have 16 bits, by name.
    """

    task = "train"

    weights: Mapping[str, Tensor]
    round: int
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    refusal: str | None = None
    collector: str | None = None
    repeat: int = 0
    attempt: int = 0
    bounds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SumsAsked:
    """Request for counts and sums with a score.

    Attributes:
        temperature: of the model, for calibrated probabilities; None where unknown.
        thresholds: target -> finding -> threshold of its probability; empty if unknown.
        temperatures: target -> finding, or "" -> temperature of its logits; empty if unknown.
    """

    temperature: float | None = None
    thresholds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    temperatures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest(Request):
    """Score a model.

    Attributes:
        weights: the model, by name.
        round: the round that made it.
        split: which cases to score it on.
        sums: counts and sums for figures over all sites; None for none.
        keep: the site may keep the model, as the job's result.
        artifacts: contents of the model's small files, by file name.
        attempt: at the sum of the sites' scores, from 1; 0: each site tells its own.
    """

    task = "validate"

    weights: Mapping[str, Tensor]
    round: int
    split: Split = "validation"
    sums: SumsAsked | None = None
    keep: bool = False
    artifacts: Mapping[str, str] = field(default_factory=dict)
    attempt: int = 0


@dataclass(frozen=True)
class PeerUpdate:
    """An update that a site sent to its collector.

    Attributes:
        digest: SHA-256 of its bytes, as that site reported it.
        cases: training cases behind it.
    """

    digest: str
    cases: int


@dataclass(frozen=True, kw_only=True)
class CombineRequest(Request):
    """Average the updates that peers sent to this site.

    Attributes:
        updates: those to average, by site.
        round: number of the round.
    """

    task = "combine"

    updates: Mapping[str, PeerUpdate]
    round: int
