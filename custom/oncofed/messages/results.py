"""Results that sites send to the server.

They are not trusted: ``rounds.intake`` checks each before it counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor

from oncofed.messages.secure_aggregation import MaskedResult, SecureStepResult


@dataclass(frozen=True)
class SiteFacts:
    """A site's data.

    Attributes:
        numbers: those of ``privacy.outbound.check_counts``.
    """

    numbers: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """A site's update.

    Attributes:
        delta: trained weights minus received weights, by name, as compressed by ``messages.compression``; for integer
            counters the value itself. Empty if sent to a peer. Tensors may be read from a file on access.
        extra: tensors of ``Algorithm.from_clients``, by name.
        cases: training cases.
        steps: optimizer steps.
        numbers: those of ``privacy.outbound.check_numbers``.
        turn_key: round, and digest of the model that it started from. It stays at the site.
        ready: under secure aggregation, the site's part of the round's roster, as plain values; its update follows
            masked. Else empty.
    """

    delta: Mapping[str, Tensor]
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    cases: int
    steps: int
    numbers: dict[str, Any]
    turn_key: str = ""
    ready: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluateResult:
    """A model's score at a site.

    Attributes:
        numbers: those of ``privacy.outbound.check_numbers``, with sums if the server requested them.
        ready: where scores are summed, the site's part of the sum's roster; the scores follow masked. Else empty.
    """

    numbers: Mapping[str, Any]
    ready: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CombineResult:
    """The mean of a round's updates, from their collector.

    Attributes:
        mean: weighted by cases, by name; empty where updates are missing. Tensors may be read from a file on access.
        cases: behind the mean.
        missing: sites whose update did not arrive, or was lost with an earlier process.
        left_out: reasons of updates that do not count, by site.
    """

    mean: Mapping[str, Tensor]
    cases: int
    missing: Sequence[str] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Refusal:
    """A site failed to do its task.

    Attributes:
        reason: one line that may leave the site.
        may_pass: it may be able to later, as after a full disk.
    """

    reason: str
    may_pass: bool = False


Result: TypeAlias = SiteFacts | TrainResult | EvaluateResult | CombineResult | SecureStepResult | MaskedResult
