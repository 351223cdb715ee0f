"""A site's state between rounds, for restarts."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oncofed.errors import StateError
from oncofed.messages.results import TrainResult
from oncofed.models.weights import Weights
from oncofed.training import checkpoint

_FILE = "site.safetensors"


class SiteState:
    """A site's last result and state for the next round.

    One file holds both, so that a result is never ahead of the state behind it.

    Args:
        folder: of this job at this site; None keeps the result in memory only.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._path = folder / _FILE if folder else None
        self._tensors: Weights = {}
        self._result: TrainResult | None = None
        if self._path and self._path.is_file():
            self._tensors, facts = checkpoint.read_checkpoint(self._path)
            self._result = _result_in(self._tensors, facts) if facts else None

    def part(self, name: str) -> Weights:
        """Return kept tensors of a part; empty if none."""
        return checkpoint.without_prefix(self._tensors, name)

    def result_of(self, turn_key: str) -> TrainResult | None:
        """Return the result of a repeated request, if any.

        A server that is killed while it keeps a round resumes from the round before. It then requests that round again,
        also from sites that have already trained the next one.
        """
        if self._result and self._result.turn_key == turn_key:
            return self._result
        return self._previous(turn_key)

    def write(self, result: TrainResult, parts: Mapping[str, Weights]) -> None:
        """Keep a result, and tensors by part and name.

        The previous round's file stays until the new one is complete, and next to it from then on.

        Raises:
            OSError: they are kept in memory only.
        """
        self._result = result
        if self._path:
            every = {**parts, "delta": result.delta, "extra": result.extra}
            tensors = {f"{part}.{name}": value for part, ws in every.items() for name, value in ws.items()}
            checkpoint.write_checkpoint(self._path, tensors, _facts_of(result))

    def forget_result(self) -> None:
        """Release the memory of the last result."""
        self._result = None

    def _previous(self, turn_key: str) -> TrainResult | None:
        path = checkpoint.previous_of(self._path) if self._path else None
        if path is None or not path.is_file():
            return None
        with contextlib.suppress(StateError):
            # Its tensors are as large as the model, and seldom needed.
            if checkpoint.read_facts(path).get("asked") == turn_key:
                return _result_in(*checkpoint.read_checkpoint(path))
        return None


def _facts_of(result: TrainResult) -> dict[str, Any]:
    """Return a result's facts, without tensors."""
    return {"asked": result.turn_key, "cases": result.cases, "steps": result.steps, "numbers": result.numbers}


def _result_in(tensors: Weights, facts: Mapping[str, Any]) -> TrainResult:
    return TrainResult(
        turn_key=facts["asked"],
        delta=checkpoint.without_prefix(tensors, "delta"),
        extra=checkpoint.without_prefix(tensors, "extra"),
        cases=facts["cases"],
        steps=facts["steps"],
        numbers=facts["numbers"],
    )
