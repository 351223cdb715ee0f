"""Which bounds of 16-bit words a site takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oncofed.algorithms.sums import FACTORS
from oncofed.messages.requests import TrainRequest
from oncofed.models.weights import Weights
from oncofed.privacy.secure_aggregation import ProtocolError
from oncofed.privacy.secure_aggregation.ring import not_in_16_bits
from oncofed.privacy.secure_aggregation.summands import Summands


class BoundsCheck:
    """Holds a round's first bounds against the site's update, and refuses all others in this round.

    Each further look would tell the server more of how large the update's values are.

    Args:
        bits: of the job's words.
        kept: of an earlier process, as ``state``.
    """

    def __init__(self, bits: int, kept: Mapping[str, Any] | None = None) -> None:
        self._bits = bits
        self._round, self._first, self._fit = 0, dict[str, float](), False
        if kept:
            self._round, self._first, self._fit = int(kept["round"]), dict(kept["first"]), bool(kept["fit"])

    def state(self) -> dict[str, Any]:
        """Return plain values; keep them before an answer leaves, also a refusal."""
        return {"round": self._round, "first": dict(self._first), "fit": self._fit}

    def check(self, request: TrainRequest, tensors: Weights) -> None:
        """Refuse bounds that the update does not fit, before the site is ready.

        Args:
            request: with the bounds; none are always right.
            tensors: of the update, as they enter the sum.

        Raises:
            ProtocolError: they do not fit, and the round may be had with 32 bits; or no job has such bounds.
        """
        if not request.bounds:
            return
        if request.round == 1:
            raise ProtocolError("bits", "found bounds in the first round, which has no mean before it: expected none")
        summands = Summands(FACTORS, request.bounds, self._bits)
        if request.round > self._round:
            self._round, self._first, self._fit = request.round, dict(request.bounds), False
            summands.check_fit(tensors, {})
            self._fit = True
        if not self._fit or (request.round, dict(request.bounds)) != (self._round, self._first):
            raise not_in_16_bits()
