"""Each job's network learns as on a CPU, without waits."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from pathlib import Path

import torch

from gpu_checks.context import Context
from gpu_checks.data import CT, JOBS, cases_of, plan_of, trainer_of
from oncofed.data.prepared import PreparedCases
from oncofed.training import Trainer

_NEAR = 1e-3


def check(context: Context) -> None:
    """Train each job."""
    for job in JOBS:
        with context.report.attempt("trains", job):
            _learns(context, job)
    for job in JOBS if context.cuda else JOBS[:1]:
        with context.report.attempt("as-on-cpu", job):
            _as_on_cpu(context, job)
    with context.report.attempt("held", CT):
        _held(context)
    if not context.cuda:
        context.report.skip("no-waits", "it needs a GPU")


def _learns(context: Context, job: str) -> None:
    few, many = (10, 40) if context.cuda else (4, 8)
    training = {"compile": "never", "steps_per_round": 2 * few + many}
    context.forget_peak()
    trainer = trainer_of(context, job, {"training": training})
    batch = next(trainer.prepare())
    first = trainer.train(few)
    trainer.train(many)
    seconds = context.seconds(lambda: trainer.train(few))
    last = trainer.train(few)
    # The few steps that a CPU takes differ among themselves by more than is learned.
    most = first if context.cuda else 1.5 * first
    context.report.claim("trains", math.isfinite(last) and last < most, job, first=first, last=last)
    context.report.figure(job, ms_a_step=seconds / few * 1e3, peak_gib=context.peak_gib())
    if job == CT:
        devices = {values.device.type for values in batch.values()}
        context.report.claim("augmentation", devices == {"cuda"}, job, devices=sorted(devices))
    if context.cuda:
        # A round waits once, for its loss for example: with twice as many steps it waits as often.
        fewer, more = waits(trainer, few), waits(trainer, 2 * few)
        context.report.claim("no-waits", more == fewer, job, waits=dict(more), of_fewer_steps=dict(fewer))


def waits(trainer: Trainer, steps: int) -> Counter[str]:
    """Return where a round waits for the GPU.

    Each place with how often.
    """
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer.train(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = [f"{Path(one.filename).name}:{one.lineno}" for one in caught if "synchroniz" in str(one.message)]
    return Counter(places)


def _as_on_cpu(context: Context, job: str) -> None:
    """Compare the first losses with those of a CPU.

    Weights, patches and precision are equal.
    """
    training = {"compile": "never", "precision": "float32", "augmentation": "none", "deterministic": True}
    plan = plan_of(context, job, {"training": training}, small=True)
    cases = cases_of(context, job)
    devices = (context.device, torch.device("cpu"))
    here, there = (Trainer(plan, cases, "here", device).train(1) for device in devices)
    context.report.claim("as-on-cpu", abs(here - there) <= _NEAR * abs(there), job, here=here, on_the_cpu=there)


def _held(context: Context) -> None:
    trainer = trainer_of(context, CT)
    held = PreparedCases(trainer.cases.train, trainer.input, context.device)
    where = {values.device.type for name, values in held[0].items() if not name.startswith("centres.")}
    context.report.claim(
        "held", held.plan.held == "gpu" and where == {"cuda"}, held=held.plan.held, devices=sorted(where)
    )
