"""What a restarted server must know of a round's masked sum."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from oncofed.algorithms import Update
from oncofed.atomic import write_whole
from oncofed.rounds.round_state import RoundState
from oncofed.training.checkpoint import read_checkpoint, write_checkpoint

_SUM_FILE = "sum.safetensors"
_COUNT_FILE = "sums.json"
# No other text begins so.
_BYTES, _TENSOR = "\0bytes:", "\0tensor:"


@dataclass(frozen=True)
class KeptSum:
    """A sum whose survivors are settled.

    Attributes:
        attempt: of the round.
        redone: as ``SumStore.redone``.
        state: of the aggregator.
        current: what the round's sites declared.
    """

    attempt: int
    redone: int
    state: Mapping[str, Any]
    current: RoundState


class SumStore:
    """Keeps a round's sum and counts its attempts.

    Args:
        folder: of the run's state.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        path = folder / _COUNT_FILE
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self._counts: dict[str, int] = {"round": 0, "attempt": 0, "redone": 0} | found

    def next_attempt(self, number: int) -> int:
        """Return the number of a new attempt at a round's sum.

        Sites refuse the number of an earlier one, also of an earlier process.
        """
        self._of_round(number)
        self._counts["attempt"] += 1
        self._write()
        return self._counts["attempt"]

    def redone(self, number: int) -> int:
        """Return how often a round is trained anew, for its sum was lost half revealed."""
        self._of_round(number)
        return self._counts["redone"]

    def redo(self, number: int) -> None:
        """Have a round trained anew."""
        self._of_round(number)
        self._counts["redone"] += 1
        self._counts["attempt"] = 0
        self._write()
        self.forget()

    def keep(self, number: int, attempt: int, state: Mapping[str, Any], current: RoundState) -> None:
        """Keep a sum before anything of it is revealed.

        Raises:
            OSError: it cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        facts = {
            "round": number,
            "attempt": attempt,
            "redone": self.redone(number),
            "state": _plain(dict(state), tensors),
            "asked": current.asked,
            "updates": [[u.site, u.cases, u.steps, u.norm] for u in current.updates],
            "numbers": current.numbers,
            "refused": current.refused,
        }
        write_checkpoint(self._folder / _SUM_FILE, tensors, facts)

    def read(self, number: int) -> KeptSum | None:
        """Return the sum of a round that an earlier process kept.

        Raises:
            StateError: the file is broken.
        """
        path = self._folder / _SUM_FILE
        if not path.is_file():
            return None
        tensors, facts = read_checkpoint(path)
        if facts["round"] != number or facts["redone"] != self.redone(number):
            return None
        updates = [Update(site, {}, cases, steps=steps, norm=norm) for site, cases, steps, norm in facts["updates"]]
        current = RoundState(asked=facts["asked"], updates=updates, numbers=facts["numbers"], refused=facts["refused"])
        return KeptSum(facts["attempt"], facts["redone"], _restored(facts["state"], tensors), current)

    def forget(self) -> None:
        """Remove what was kept."""
        (self._folder / _SUM_FILE).unlink(missing_ok=True)

    def _of_round(self, number: int) -> None:
        if self._counts["round"] != number:
            self._counts = {"round": number, "attempt": 0, "redone": 0}

    def _write(self) -> None:
        write_whole(self._folder / _COUNT_FILE, json.dumps(self._counts))


def _plain(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return a value as JSON holds it; its tensors go into ``tensors``."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return _TENSOR + name
    if isinstance(value, bytes):
        return _BYTES + base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {key: _plain(one, tensors) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, tensors) for one in value]
    return value


def _restored(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what ``_plain`` was given, lists in place of tuples."""
    if isinstance(value, str) and value.startswith(_TENSOR):
        return tensors[value.removeprefix(_TENSOR)]
    if isinstance(value, str) and value.startswith(_BYTES):
        return base64.b64decode(value.removeprefix(_BYTES))
    if isinstance(value, dict):
        return {key: _restored(one, tensors) for key, one in value.items()}
    if isinstance(value, list):
        return [_restored(one, tensors) for one in value]
    return value
