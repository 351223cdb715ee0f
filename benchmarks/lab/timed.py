"""Trainings of a given time."""

from __future__ import annotations

import time
from collections.abc import Callable

from oncofed.data.cases import Cases
from oncofed.job.spec import JobSpec
from oncofed.training import Trainer


def steps_within(spec: JobSpec, cases: Cases, seconds: float, clock: Callable[[], float] = time.perf_counter) -> int:
    """Return how many steps fit into some seconds of a clock, by measuring some; 20 at least."""
    begun = clock()
    probe = Trainer(with_steps(spec, 1000).plan(), cases, "probe")
    probe.train(3)
    prepared = clock()
    probe.train(20)
    each = (clock() - prepared) / 20
    probe.close()
    return max(20, int((seconds - 2 * (prepared - begun)) / each))


def with_steps(spec: JobSpec, steps: int) -> JobSpec:
    """Return a job of one round with a number of steps."""
    return spec.changed({"training": {"steps_per_round": steps}, "rounds": {"number": 1}})
