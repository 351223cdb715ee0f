"""What the server keeps of a run after each round, so that a later process goes on with the next one."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from oncofed.federation.strategies import Update
from oncofed.models.weights import Weights

_FILE = "server.safetensors"
_MODEL, _STRATEGY = "model.", "strategy."


@dataclass
class Memory:
    """The state of a run between two rounds.

    Attributes:
        model: the global model.
        round: the last round that ended.
        strategy: the strategy's state.
        best_round: whose model scored best; 0: none was scored yet.
        best_score: its score.
        lengths: of the updates of the last rounds, by round.
        sites: who took part.
        last: each site's update of the last round, where the job wants to score them; not kept.
        last_from: the model that they started from; not kept.
    """

    model: Weights
    round: int = 0
    strategy: Weights = field(default_factory=dict)
    best_round: int = 0
    best_score: float = -math.inf
    lengths: list[list[float]] = field(default_factory=list)
    sites: list[str] = field(default_factory=list)
    last: dict[str, Update] = field(default_factory=dict)
    last_from: Weights | None = None


def write_memory(folder: Path, memory: Memory) -> None:
    """Write a run's state; the file of the round before stands until the new one is complete."""
    tensors = {_MODEL + name: value.contiguous() for name, value in memory.model.items()}
    tensors |= {_STRATEGY + name: value.contiguous() for name, value in memory.strategy.items()}
    facts: dict[str, Any] = {
        "round": memory.round,
        "best_round": memory.best_round,
        "best_score": memory.best_score if math.isfinite(memory.best_score) else None,
        "lengths": memory.lengths,
        "sites": memory.sites,
    }
    unfinished = folder / f"{_FILE}.unfinished"
    save_file(tensors, unfinished, {"facts": json.dumps(facts)})
    unfinished.replace(folder / _FILE)


def read_memory(folder: Path) -> Memory | None:
    """Return the state that an earlier process of this run left, or None without one."""
    path = folder / _FILE
    if not path.is_file():
        return None
    model: Weights = {}
    strategy: Weights = {}
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
        for name in file.keys():  # noqa: SIM118 - not a dictionary
            part, rest = (model, _MODEL) if name.startswith(_MODEL) else (strategy, _STRATEGY)
            part[name.removeprefix(rest)] = file.get_tensor(name)
    best = facts["best_score"]
    return Memory(
        model,
        facts["round"],
        strategy,
        facts["best_round"],
        -math.inf if best is None else best,
        facts["lengths"],
        facts["sites"],
    )
