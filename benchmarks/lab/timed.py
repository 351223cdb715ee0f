"""Trainings of a given time."""

from __future__ import annotations

import time

from oncofed.data.cases import Cases
from oncofed.job.spec import JobSpec
from oncofed.training import Trainer


def steps_within(spec: JobSpec, cases: Cases, seconds: float) -> int:
    """Return how many steps fit into a time, by measuring some; 20 at least."""
    begun = time.perf_counter()
    probe = Trainer(with_steps(spec, 1000).plan(), cases, "probe")
    probe.train(3)
    prepared = time.perf_counter()
    probe.train(20)
    each = (time.perf_counter() - prepared) / 20
    probe.close()
    return max(20, int((seconds - 2 * (prepared - begun)) / each))


def with_steps(spec: JobSpec, steps: int) -> JobSpec:
    """Return a job of one round with a number of steps."""
    return spec.changed({"training": {"steps_per_round": steps}, "rounds": {"number": 1}})
