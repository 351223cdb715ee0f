"""Processes train one model together, each with a GPU."""

from __future__ import annotations

import math

import torch

from gpu_checks.context import Context
from gpu_checks.data import BRAIN, cases_of, plan_of
from oncofed.training import Trainer, start_trainer
from oncofed.training.parallel import Group

_STEPS = 5


def check(context: Context) -> None:
    """Train with two GPUs if present.

    With one GPU the group has one process, which shows less.
    """
    gpus = torch.cuda.device_count() if context.cuda else 2
    with context.report.attempt("group", f"{min(gpus, 2)} processes"):
        if gpus > 1:
            _several(context)
        else:
            _one(context)


def _several(context: Context) -> None:
    plan = plan_of(context, BRAIN, {"training": {"compile": "never"}, "resources": {"gpus": 2}})
    with start_trainer(plan, cases_of(context, BRAIN), "here", devices=context.device.type) as trainer:
        first, last = trainer.train(_STEPS), trainer.train(_STEPS)
    context.report.claim("group", math.isfinite(last) and last < first * 1.5, "2 processes", first=first, last=last)


def _one(context: Context) -> None:
    group = Group(0, 1, torch.device("cuda", 0), context.folder / "meeting")
    try:
        for compile_ in ("never", "always"):
            plan = plan_of(context, BRAIN, {"training": {"compile": compile_, "micro_batch": 1}})
            trainer = Trainer(plan, cases_of(context, BRAIN), "here", group.device, None, group)
            loss = trainer.train(_STEPS)
            context.report.figure(f"a group of one, compile {compile_}", loss=loss)
    finally:
        group.leave()
    context.report.skip("group", "it needs two GPUs; a group of one is above")
