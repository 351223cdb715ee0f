"""The GPU is busy throughout a round, with validation."""

from __future__ import annotations

import contextlib
import statistics
import threading
from collections.abc import Iterator
from typing import Any

import torch

from gpu_checks.context import Context
from gpu_checks.data import CT, cases_of, large_ct, plan_of
from oncofed.data.cases import Cases
from oncofed.training import Trainer

# Of 100 cases the job's split gives this number to validation.
_VALIDATION = 15
_BUSY = 0.9
_SECONDS_BETWEEN_LOOKS = 0.1


def check(context: Context) -> None:
    """Measure the second round.

    The first one also fills the caches.
    """
    steps = 250 if context.cuda else 2
    validation = large_ct(context, _VALIDATION if context.cuda else 1).validation
    cases = Cases(cases_of(context, CT).train, validation, ())
    # Compiling happens once in a run, and is no part of the measured round.
    plan = plan_of(context, CT, {"training": {"compile": "never"}})
    trainer = Trainer(plan, cases, "here", context.device)

    def one_round() -> None:
        trainer.evaluate(validation)
        trainer.train(steps)

    first = context.seconds(one_round)
    with _busy(context) as samples:
        second = context.seconds(one_round)
    scoring = context.seconds(lambda: trainer.evaluate(validation))
    numbers: dict[str, Any] = {
        "first_round_s": first,
        "round_s": second,
        "scoring_s": scoring,
        "steps": steps,
        "cases": len(validation),
    }
    if samples:
        busy = statistics.fmean(samples)
        context.report.claim("round-busy", busy >= _BUSY, busy=busy, samples=len(samples), **numbers)
    else:
        context.report.figure("a round", **numbers)
        context.report.skip(
            "round-busy", "the driver does not say how busy the GPU is" if context.cuda else "it needs a GPU"
        )


@contextlib.contextmanager
def _busy(context: Context) -> Iterator[list[float]]:
    """Sample the GPU's busy share; empty if unknown.

    The driver reports it.
    """
    samples: list[float] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(_SECONDS_BETWEEN_LOOKS):
            # The package is not there, or a slice of a GPU (MIG) has no such figure.
            with contextlib.suppress(Exception):
                samples.append(torch.cuda.utilization() / 100)

    thread = threading.Thread(target=look, daemon=True)
    if context.cuda:
        thread.start()
    try:
        yield samples
    finally:
        done.set()
        if context.cuda:
            thread.join()
