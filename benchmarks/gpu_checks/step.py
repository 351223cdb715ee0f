"""A step of the default CT job: time and limits."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch

from gpu_checks import support
from gpu_checks.context import GIB, Context
from gpu_checks.data import CT, dataset_of, large_ct, plan_of, trainer_of
from harness.profiling import busy_share, write_profile
from oncofed.training import Trainer
from train_step import network_alone
from volumes import tutorial_loop

# Steps that are not measured, and steps after which ``training.compile: auto`` has decided.
_WARM, _DECIDED = 12, 120
_MOST_OF_LIMIT, _TIMES_THE_LOOP = 1.15, 5.0
# A card of 16 GB (10^9 bytes), and the part that the context and the libraries' kernels take.
_CARD_GIB, _CONTEXT_GIB = 16e9 / GIB, 0.6


def check(context: Context) -> None:
    """Measure the default step, then one choice after the other."""
    steps = 25 if context.cuda else 1
    eager = _trainer(context, compile="never")
    step = _step_ms(context, eager, steps)
    context.report.figure("without compiling", **_facts(context, eager, step))
    limit = _ms(context, network_alone(eager), steps)
    context.report.figure("forward and backward alone, without compiling", ms=limit, step_is_times=step / limit)
    _input(context, eager, steps, step)
    _profile(context, eager)
    loop = _loop_ms(context)
    context.report.figure("MONAI's tutorial loop, in float32", ms=loop, step_is_times_as_fast=loop / step)
    del eager
    _free(context)
    _fits_16_gb(context)
    with context.report.attempt("step-limit", "the job as it is"):
        _as_it_is(context, steps, loop)
    for text, changes in (("deterministic", {"deterministic": True}), ("float32", {"precision": "float32"})):
        trainer = _trainer(context, compile="never", **changes)
        context.report.figure(text, **_facts(context, trainer, _step_ms(context, trainer, steps)))
        del trainer
        _free(context)


def _as_it_is(context: Context, steps: int, loop: float) -> None:
    """Measure the default: compiled if ``training.compile: auto`` decides so."""
    trainer = _trainer(context)
    trainer.train(_DECIDED if context.cuda else 1)
    step = _step_ms(context, trainer, steps)
    context.report.figure("the job as it is", **_facts(context, trainer, step))
    context.report.claim("step-loop", loop / step >= _TIMES_THE_LOOP, step_ms=step, loop_ms=loop, times=loop / step)
    limit = _ms(context, network_alone(trainer), steps)
    holds = step / limit <= _MOST_OF_LIMIT
    context.report.claim("step-limit", holds, step_ms=step, limit_ms=limit, times=step / limit)


def _trainer(context: Context, **training: Any) -> Trainer:
    return trainer_of(context, CT, {"training": training})


def _step_ms(context: Context, trainer: Trainer, steps: int) -> float:
    context.forget_peak()
    trainer.train(_WARM if context.cuda else 1)
    return context.median_seconds(lambda: trainer.train(steps)) / steps * 1e3


def _facts(context: Context, trainer: Trainer, ms: float) -> dict[str, Any]:
    return {
        "ms": ms,
        "patches_s": trainer.plan.training.batch_size / ms * 1e3,
        "compiled": support.is_compiled(trainer),
        "peak_gib": context.peak_gib(),
        "reserved_gib": context.peak_reserved_gib(),
    }


def _ms(context: Context, steps: Iterator[Any], times: int) -> float:
    next(steps)
    next(steps)
    return context.median_seconds(lambda: list(islice(steps, times))) / times * 1e3


def _input(context: Context, trainer: Trainer, steps: int, step: float) -> None:
    batches = trainer.prepare()
    resident = _ms(context, batches, steps)
    context.report.claim("input", resident < step, "as it is held", input_ms=resident, step_ms=step)
    in_memory = trainer_of(context, CT, {"data": {"cache": "memory"}}).prepare()
    ms = _ms(context, in_memory, steps)
    context.report.claim("input", ms < step, "held in memory", input_ms=ms, step_ms=step)


def _profile(context: Context, trainer: Trainer) -> None:
    with context.report.attempt("profile", "the trace of five steps"):
        text = write_profile(lambda: trainer.train(5), context.device, context.folder / "profiles", "step")
        parts = [part for part in ("input", "forward", "loss", "backward", "optimizer") if part in text]
        context.report.claim("profile", len(parts) == 5, parts=parts)
        print(text, flush=True)
    if context.cuda:
        context.report.figure("steps under the profiler", busy=busy_share(lambda: trainer.train(20), context.device))


def _loop_ms(context: Context) -> float:
    workers = min(8, os.cpu_count() or 1) if context.cuda else 0
    loop = tutorial_loop(plan_of(context, CT), dataset_of(context, CT), context.device, workers)
    return _ms(context, loop, 15 if context.cuda else 1)


def _fits_16_gb(context: Context) -> None:
    """Train and score with the memory of such a GPU."""
    with context.report.attempt("memory-16", "steps and a case of 512×512×100"):
        if context.cuda:
            total = torch.cuda.get_device_properties(0).total_memory / GIB
            torch.cuda.set_per_process_memory_fraction(min(1.0, (_CARD_GIB - _CONTEXT_GIB) / total))
        context.forget_peak()
        trainer = _trainer(context, compile="never")
        trainer.train(6 if context.cuda else 1)
        trained = context.peak_reserved_gib()
        whole = support.samples_at_once(trainer) == trainer.plan.training.batch_size
        trainer.evaluate(large_ct(context, 1).validation)
        peak = context.peak_reserved_gib()
        context.report.claim("memory-16", whole, training_gib=trained, with_scoring_gib=peak, batch_whole=whole)
    if context.cuda:
        torch.cuda.set_per_process_memory_fraction(1.0)
    _free(context)


def _free(context: Context) -> None:
    gc.collect()
    context.forget_peak()
