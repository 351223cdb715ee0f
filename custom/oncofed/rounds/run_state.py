"""The server's state after a round, for restarts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oncofed.algorithms import Update
from oncofed.models.weights import Weights
from oncofed.privacy.secure_aggregation import PROTOCOL
from oncofed.training.checkpoint import read_checkpoint, without_prefix, write_checkpoint

_FILE = "server.safetensors"
_OF_SUMS = ("smallest_sum", "threshold", "summed", "bounds")


@dataclass
class RunState:
    """The state of a run between two rounds.

    Attributes:
        model: the global model.
        round: the last round that ended.
        strategy: state of the algorithm.
        best_round: the round whose model scored best; 0 before any was scored.
        best_score: its score.
        scores: each site's last score, by which a round is judged in which the site is missing.
        best_scores: the same when the best round was judged.
        lengths: norms of the updates of the last rounds, by round.
        sites: those that took part.
        smallest_sum: fewest sites in a round's sum, with secure aggregation.
        threshold: fewest sites whose shares lift a sum's masks, of all rounds; None: no masks.
        summed: rounds whose updates were added up under masks.
        bounds: largest values of tensors for masked words of 16 bits, by the last mean; empty for words of 32.
        last: update of the last round by site, where the job scores sites' own models; not written.
        last_from: the model that they started from; not written.
    """

    model: Weights
    round: int = 0
    strategy: Weights = field(default_factory=dict)
    best_round: int = 0
    best_score: float = -math.inf
    scores: dict[str, float] = field(default_factory=dict)
    best_scores: dict[str, float] = field(default_factory=dict)
    lengths: list[list[float]] = field(default_factory=list)
    sites: list[str] = field(default_factory=list)
    smallest_sum: int | None = None
    threshold: int | None = None
    summed: int = 0
    bounds: dict[str, float] = field(default_factory=dict)
    last: dict[str, Update] = field(default_factory=dict)
    last_from: Weights | None = None

    def note_sum(self, sites: int, threshold: int) -> None:
        """Note a round's sum.

        Args:
            sites: in it.
            threshold: without whose shares no mask could be lifted.
        """
        self.smallest_sum = min(self.smallest_sum or sites, sites)
        self.threshold = min(self.threshold or threshold, threshold)
        self.summed += 1

    def of_sums(self) -> dict[str, Any]:
        """Return what provenance says of sums of masked updates; empty without."""
        if self.smallest_sum is None:
            return {}
        used = {"protocol": PROTOCOL, "threshold": self.threshold, "rounds": self.summed}
        return {"smallest_sum": self.smallest_sum, "secure_aggregation": used}


def write_run_state(folder: Path, state: RunState) -> None:
    """Write a run's state atomically."""
    tensors = {f"model.{name}": value for name, value in state.model.items()}
    tensors |= {f"strategy.{name}": value for name, value in state.strategy.items()}
    facts: dict[str, Any] = {
        "round": state.round,
        "best_round": state.best_round,
        "best_score": state.best_score if math.isfinite(state.best_score) else None,
        "scores": state.scores,
        "best_scores": state.best_scores,
        "lengths": state.lengths,
        "sites": state.sites,
        **({n: getattr(state, n) for n in _OF_SUMS} if state.smallest_sum else {}),
    }
    write_checkpoint(folder / _FILE, tensors, facts)


def read_run_state(folder: Path) -> RunState | None:
    """Return the state of an earlier process, if any."""
    path = folder / _FILE
    if not path.is_file():
        return None
    tensors, facts = read_checkpoint(path)
    best = facts["best_score"]
    return RunState(
        model=without_prefix(tensors, "model"),
        round=facts["round"],
        strategy=without_prefix(tensors, "strategy"),
        best_round=facts["best_round"],
        best_score=-math.inf if best is None else best,
        scores=facts.get("scores", {}),
        best_scores=facts.get("best_scores", {}),
        lengths=facts["lengths"],
        sites=facts["sites"],
        **{name: facts[name] for name in _OF_SUMS if name in facts},
    )
