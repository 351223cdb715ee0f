"""Time and memory of scoring on a GPU."""

from __future__ import annotations

import gc
from pathlib import Path

import torch

from gpu_checks.context import GIB, Context
from gpu_checks.data import BRAIN, CT, large_ct, plan_of, trainer_of, write_ct
from oncofed.models.weights import load_weights
from oncofed.tasks.windows import Windows

_NEAR = 0.01
_MOST_BYTES = 12e9
# How much longer the sides of a voxel are on the network's grid than in the file.
_COARSER = 1.9


def check(context: Context) -> None:
    """Compare scores, profile a case, score many classes."""
    with context.report.attempt("scores", BRAIN):
        _same_scores(context)
    _one_case(context)
    gc.collect()
    for coarser in (1.0, _COARSER):
        text = "on a coarser grid than the label's file" if coarser > 1 else "on the grid of the label's file"
        with context.report.attempt("many-classes", text):
            _many_classes(context, coarser, text)
        gc.collect()


def _same_scores(context: Context) -> None:
    trainer = trainer_of(context, BRAIN, {"training": {"compile": "never"}})
    trainer.train(60 if context.cuda else 4)
    cases = trainer.cases.test or trainer.cases.validation
    here = trainer.evaluate(cases, detailed=True)
    network = trainer.plan.build_network()
    load_weights(network, trainer.weights())
    there = trainer.plan.build_task().evaluate(network, cases, torch.device("cpu"), detailed=True)
    assert here.mean is not None
    assert there.mean is not None
    context.report.claim("scores", abs(here.mean - there.mean) <= _NEAR, BRAIN, here=here.mean, on_the_cpu=there.mean)


def _one_case(context: Context) -> None:
    """Time a case: first, again, detailed, and the network."""
    case = large_ct(context, 1).validation
    trainer = trainer_of(context, CT, {"training": {"compile": "never"}})
    trainer.evaluate(trainer.cases.validation)  # warms up
    first = context.seconds(lambda: trainer.evaluate(case))
    again = context.seconds(lambda: trainer.evaluate(case))
    detailed = context.seconds(lambda: trainer.evaluate(case, detailed=True))
    windows = Windows(trainer.plan.data, trainer.plan.task.overlap, False)  # type: ignore[attr-defined]
    image = torch.randn(1, *((274, 274, 125) if context.cuda else (24, 24, 24)))
    with torch.no_grad():
        network = context.seconds(lambda: windows(trainer.network, image, context.device))
    context.report.figure(
        "a case of 512×512×100, seconds", first=first, again=again, detailed=detailed, network=network
    )


def _many_classes(context: Context, coarser: float, text: str) -> None:
    count, shape = (105, (512, 512, 400)) if context.cuda else (5, (40, 40, 24))
    classes = {value: f"c{value}" for value in range(1, count + 1)}
    plan = plan_of(context, CT, {"task": {"classes": classes, "keep_largest": []}})
    spacing = plan.data.spacing
    assert spacing
    image, label = (Path(context.folder) / f"many-{name}.nii" for name in ("image", "label"))
    case = write_ct(image, label, shape, count, tuple(side / coarser for side in spacing))
    network, task = plan.build_network().to(context.device), plan.build_task()
    context.forget_peak()
    seconds = context.seconds(lambda: task.evaluate(network, (case,), context.device))
    peak = context.peak_reserved_gib() * GIB
    context.report.claim("many-classes", peak <= _MOST_BYTES, text, peak_gb=peak / 1e9, seconds=seconds, classes=count)
