"""Sites share one GPU: turns, and memory while waiting."""

from __future__ import annotations

import os
import time
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from gpu_checks.context import GIB, Context
from gpu_checks.data import CT, cases_of, plan_of
from gpu_checks.forks import Fork
from oncofed.client.compute_slot import ComputeSlot
from oncofed.processes import AT_ONCE_VARIABLE, SHARED_VARIABLE, TURN_VARIABLE
from oncofed.training import Trainer

_SECONDS = 20.0
_ROUNDS = 2
# PyTorch's cache keeps this much: a segment that holds a tensor is not released.
_MOST_KEPT_GIB = 0.5


def check(context: Context) -> None:
    """Train several sites in turn, each in a process."""
    cases_of(context, CT)  # generated before all of them need it
    os.environ[TURN_VARIABLE] = str(context.folder / "turn")
    os.environ[AT_ONCE_VARIABLE] = "1"
    count = 4 if context.cuda else 2
    os.environ[SHARED_VARIABLE] = str(count)
    with context.report.attempt("sharing", f"{count} sites"):
        free_before = Fork(partial(_free_gib, context)).wait(_SECONDS).value
        sites = [Fork(partial(_site, context, number, count)) for number in range(count)]
        ended = [site.wait(2 * _SECONDS) for site in sites]
        errors = [site.error for site in ended if site.error]
        told = [site.value for site in ended if not site.error]
        free = [site["free_gib"] for site in told]
        numbers = {"sites": told, "errors": errors, "free_before_gib": free_before}
        if context.cuda and free:
            numbers["held_by_each_waiting_gib"] = (free_before - min(free)) / count
        kept = max((site["reserved_gib"] - site["allocated_gib"] for site in told), default=0.0)
        numbers["kept_by_one_waiting_gib"] = kept
        holds = not errors and not _overlap(told) and kept <= _MOST_KEPT_GIB
        context.report.claim("sharing", holds, f"{count} sites", **numbers)


def _site(context: Context, number: int, count: int) -> dict[str, Any]:
    turn = ComputeSlot()
    plan = plan_of(context, CT, {"training": {"compile": "never"}})
    trainer: Trainer | None = None
    turns = []
    for _ in range(_ROUNDS):
        with turn.hold(lambda: False):
            begun = time.monotonic()
            trainer = trainer or Trainer(plan, cases_of(context, CT), f"site-{number}", context.device)
            trainer.train(8 if context.cuda else 1)
            context.synchronize()
            turns.append((begun, time.monotonic()))
    # All wait, trained and in memory, until the last one has looked how much is free.
    _meet(context, number, count, "trained")
    memory = {
        "reserved_gib": torch.cuda.memory_reserved() / GIB if context.cuda else 0.0,
        "allocated_gib": torch.cuda.memory_allocated() / GIB if context.cuda else 0.0,
        "reserved_in_its_turn_gib": context.peak_reserved_gib(),
        "free_gib": _free_gib(context),
    }
    _meet(context, number, count, "looked")
    return {"turns": turns, **memory}


def _meet(context: Context, number: int, count: int, what: str) -> None:
    """Wait for all sites, within the check's time limit."""
    (context.folder / f"{what}-{number}").touch()
    until = time.monotonic() + _SECONDS
    while len(list(context.folder.glob(f"{what}-*"))) < count and time.monotonic() < until:
        time.sleep(0.1)


def _free_gib(context: Context) -> float:
    return torch.cuda.mem_get_info()[0] / GIB if context.cuda else 0.0


def _overlap(sites: list[dict[str, Any]]) -> bool:
    """Return whether two sites used the GPU at once."""
    turns = sorted(turn for site in sites for turn in site["turns"])
    return any(after[0] < before[1] for before, after in pairwise(turns))
