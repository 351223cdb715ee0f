"""Which bounds of 16-bit words a site takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from oncofed.algorithms.sums import FACTORS
from oncofed.messages.requests import TrainRequest
from oncofed.models.weights import Weights
from oncofed.privacy.secure_aggregation import ProtocolError
from oncofed.privacy.secure_aggregation.ring import not_in_16_bits
from oncofed.privacy.secure_aggregation.summands import Summands


@dataclass(frozen=True)
class _Look:
    """What a site held against each other.

    Attributes:
        round: number.
        repeat: how often it was trained anew.
        base: digest of the model with which the update began.
        bounds: by name.
    """

    round: int = 0
    repeat: int = 0
    base: str = ""
    bounds: Mapping[str, float] = field(default_factory=dict)


class BoundsCheck:
    """Holds a round's first bounds against the site's first update of it, and refuses all others in this round.

    Each further look, at other bounds or at what was trained from another model, would tell the server more of how
    large the values of updates are.

    Args:
        bits: of the job's words.
        kept: of an earlier process, as ``state``.
    """

    def __init__(self, bits: int, kept: Mapping[str, Any] | None = None) -> None:
        self._bits = bits
        self._first, self._fit = _Look(), False
        if kept:
            number, repeat, base = int(kept["round"]), int(kept.get("repeat", 0)), str(kept.get("base", ""))
            self._first, self._fit = _Look(number, repeat, base, dict(kept["first"])), bool(kept["fit"])

    def state(self) -> dict[str, Any]:
        """Return plain values; keep them before an answer leaves, also a refusal."""
        first = self._first
        return {
            "round": first.round,
            "repeat": first.repeat,
            "base": first.base,
            "first": dict(first.bounds),
            "fit": self._fit,
        }

    def check(self, request: TrainRequest, base: str, tensors: Weights) -> None:
        """Refuse bounds that the update does not fit, before the site is ready.

        Args:
            request: with the bounds; none are always right.
            base: digest of the model with which the update began.
            tensors: of the update, as they enter the sum.

        Raises:
            ProtocolError: they do not fit, and the round may be had with 32 bits; or no job has such bounds.
        """
        if not request.bounds:
            return
        if request.round == 1:
            raise ProtocolError("bits", "found bounds in the first round, which has no mean before it: expected none")
        summands = Summands(FACTORS, request.bounds, self._bits)
        look = _Look(request.round, request.repeat, base, dict(request.bounds))
        if look.round > self._first.round:
            self._first, self._fit = look, False
            summands.check_fit(tensors, {})
            self._fit = True
        if not self._fit or look != self._first:
            raise not_in_16_bits()

    def refuse(self) -> None:
        """Refuse bounds for the rest of the round: with the roster's weights they did not fit."""
        self._fit = False
