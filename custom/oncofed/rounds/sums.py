"""A job's sums of masked updates, as the server keeps them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from oncofed.algorithms import Update
from oncofed.atomic import write_whole
from oncofed.errors import StepsSpentError
from oncofed.messages.plain_values import plain_value, restored_value
from oncofed.messages.requests import Split
from oncofed.privacy.secure_aggregation import KeyAdvertisement, Verify, VerifyKey
from oncofed.privacy.summed_scores import SummedScores
from oncofed.rounds.round_state import RoundState
from oncofed.training.checkpoint import read_checkpoint, write_checkpoint

_SUM_FILE = "sum.safetensors"
_COUNT_FILE = "sums.json"


def unverified(advertisement: KeyAdvertisement) -> VerifyKey:
    """Take any key for the site's that it names: there are no certificates, as in a simulation."""
    del advertisement
    return VerifyKey("", lambda signed, signature: True)


@dataclass(frozen=True)
class KeptSum:
    """A sum whose survivors are settled.

    Attributes:
        attempt: of the round.
        needed: sites without whose shares no mask can be lifted.
        shares: of all sites of the roster, added up: 1 but for algorithms that scale the mean.
        state: of the aggregator.
        current: what the round's sites declared.
    """

    attempt: int
    needed: int
    shares: float
    state: Mapping[str, Any]
    current: RoundState


class Sums:
    """Keeps a round's sum, and counts its attempts.

    Args:
        folder: of the run's state.
        job: its identifier.
        plan_digest: as ``messages.secure_aggregation.plan_digest``.
        verify: gives the key of the site that an advertisement names.
        rounds: for whose steps a job with differential privacy was planned; None: a round can be trained anew.

    Attributes:
        job: likewise.
        plan_digest: likewise.
        verify: likewise.
    """

    def __init__(self, folder: Path, job: str, plan_digest: str, verify: Verify, rounds: int | None = None) -> None:
        self.job, self.plan_digest, self.verify = job, plan_digest, verify
        self._folder, self._rounds = folder, rounds
        path = folder / _COUNT_FILE
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self._counts: dict[str, Any] = {**_of_round(0), "redone_in_all": 0, "scores": {}, "scored": {}, **found}

    def next_attempt(self, number: int) -> int:
        """Return the number of a new attempt at a round's sum.

        Sites refuse the number of an earlier one, also of an earlier process.
        """
        self._of_round(number)
        self._counts["attempt"] += 1
        self._write()
        return int(self._counts["attempt"])

    def redone(self, number: int) -> int:
        """Return how often a round is trained anew, for its sum was lost half revealed."""
        self._of_round(number)
        return int(self._counts["redone"])

    def require_steps(self, number: int) -> None:
        """Refuse a round for which sites have no steps left, as they trained an earlier one anew.

        Raises:
            StepsSpentError: says how many rounds were trained anew.
        """
        anew = self._counts["redone_in_all"]
        if self._rounds is not None and number + anew > self._rounds:
            raise StepsSpentError(
                f"{anew} of {self._rounds} rounds had to be trained anew, and differential privacy was planned for "
                "no more steps than theirs. To train on, run a new job from this one's model (--model)"
            )

    def has_scores(self, number: int) -> bool:
        """Return whether a sum of scores was formed, or given up."""
        return str(number) in self._counts["scores"]

    def scores(self, number: int) -> SummedScores | None:
        """Return the scores of a sum that ended; None: it was given up."""
        found = self._counts["scores"][str(number)]
        return SummedScores(**found) if found else None

    def note_scores(self, number: int, scores: SummedScores | None) -> None:
        """Keep the scores of a sum that ended: sites form no second one."""
        self._counts["scores"] = {**self._counts["scores"], str(number): dataclasses.asdict(scores) if scores else None}
        self._write()
        self.forget()

    def scored(self, split: Split) -> list[str] | None:
        """Return the sites of the job's sums of scores; None: there was none."""
        found: list[str] | None = self._counts["scored"].get(split)
        return found

    def note_scored(self, split: Split, sites: Sequence[str]) -> None:
        """Note the sites of a sum of scores before they confirm it: they form none over others."""
        if sites and self.scored(split) is None:
            self._counts["scored"] = {**self._counts["scored"], split: list(sites)}
            self._write()

    def required(self, number: int) -> frozenset[str]:
        """Return the sites without which a round cannot be finished.

        They revealed shares of a sum that was lost, and unmask no other sum from the same model that lacks one of them.
        """
        self._of_round(number)
        return frozenset(self._counts["required"])

    def redo(self, number: int, sites: Collection[str]) -> None:
        """Have a round trained anew, by the sites of the lost sum and perhaps more."""
        self._of_round(number)
        required = sorted({*self._counts["required"], *sites})
        self._counts |= {"redone": self._counts["redone"] + 1, "attempt": 0, "required": required}
        self._counts["redone_in_all"] += 1
        self._write()
        self.forget()

    def keep(self, number: int, kept: KeptSum) -> None:
        """Keep a sum before anything of it is revealed.

        Raises:
            OSError: it cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        facts = {
            "round": number,
            "attempt": kept.attempt,
            "redone": self.redone(number),
            "needed": kept.needed,
            "shares": kept.shares,
            "state": plain_value(dict(kept.state), tensors),
            "asked": kept.current.asked,
            "updates": [[u.site, u.cases, u.steps, u.norm] for u in kept.current.updates],
            "numbers": kept.current.numbers,
            "refused": kept.current.refused,
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
        state = restored_value(facts["state"], tensors)
        return KeptSum(facts["attempt"], facts["needed"], facts["shares"], state, current)

    def forget(self) -> None:
        """Remove what was kept."""
        (self._folder / _SUM_FILE).unlink(missing_ok=True)

    def _of_round(self, number: int) -> None:
        if self._counts["round"] != number:
            self._counts |= _of_round(number)

    def _write(self) -> None:
        write_whole(self._folder / _COUNT_FILE, json.dumps(self._counts))


def _of_round(number: int) -> dict[str, Any]:
    return {"round": number, "attempt": 0, "redone": 0, "required": []}
