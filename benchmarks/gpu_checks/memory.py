"""Short GPU memory: halved batches and checkpointing."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gpu_checks import support
from gpu_checks.context import GIB, Context
from gpu_checks.data import BRAIN, CT, trainer_of
from oncofed.models.weights import Weights
from oncofed.training import Trainer

_NEAR = 1e-2
_SHARE = 0.6
_MOST_MEMORY, _MOST_TIME = 0.7, 1.5


def check(context: Context) -> None:
    """Run out of memory; then measure checkpointing."""
    with context.report.attempt("halving", BRAIN):
        _halves(context)
    gc.collect()
    with context.report.attempt("checkpointing", CT):
        _checkpointing(context)


def _halves(context: Context) -> None:
    batch, side = (16, 96) if context.cuda else (4, 16)
    # One step of SGD changes each weight in proportion to its gradient; AdamW's first changes all alike.
    training = {
        "batch_size": batch,
        "compile": "never",
        "precision": "float32",
        "deterministic": True,
        "optimizer": "sgd",
    }
    changes: dict[str, dict[str, Any]] = {"training": training, "data": {"patch": [side] * 3, "cache": "memory"}}
    context.forget_peak()
    whole = trainer_of(context, BRAIN, changes)
    before = whole.weights()
    loss = whole.train(1)
    wanted, peak = _moved(before, whole), context.peak_gib()
    del whole
    gc.collect()
    context.forget_peak()
    short = trainer_of(context, BRAIN, changes)
    short.prepare()
    let_go = _short_of_memory(context, short.network, peak, batch)
    halved = short.train(1)
    let_go()
    found = _moved(before, short)
    difference = max(float((found[n] - v).norm() / v.norm().clamp_min(1e-12)) for n, v in wanted.items())
    at_once = support.samples_at_once(short)
    holds = at_once < batch and abs(halved - loss) <= _NEAR * abs(loss) and difference <= _NEAR
    numbers: dict[str, Any] = {"loss": loss, "halved": halved, "difference": difference, "samples_at_once": at_once}
    context.report.claim("halving", holds, BRAIN, batch=batch, peak_gib=peak, **numbers)


def _moved(before: Weights, trainer: Trainer) -> Weights:
    return {name: value - before[name] for name, value in trainer.weights().items() if value.is_floating_point()}


def _short_of_memory(context: Context, network: nn.Module, peak_gib: float, batch: int) -> Callable[[], None]:
    """Limit memory to less than a batch needs.

    On a CPU the network raises the error itself. Returns a function that ends the limit.
    """
    if context.cuda:
        total = torch.cuda.get_device_properties(0).total_memory / GIB
        torch.cuda.set_per_process_memory_fraction(peak_gib * _SHARE / total)
        return lambda: torch.cuda.set_per_process_memory_fraction(1.0)

    def refuse(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs[0]) > batch // 2:
            raise torch.OutOfMemoryError

    return network.register_forward_pre_hook(refuse).remove


def _checkpointing(context: Context) -> None:
    measured = {}
    for on in (False, True):
        training = {"compile": "never", "recompute_activations": on, "batch_size": 4 if context.cuda else 2}
        trainer = trainer_of(context, CT, {"training": training})
        trainer.train(3 if context.cuda else 1)
        context.forget_peak()
        steps = 8 if context.cuda else 1
        seconds = context.median_seconds(lambda trainer=trainer, steps=steps: trainer.train(steps)) / steps  # type: ignore[misc]
        measured[on] = (seconds, context.peak_gib())
        del trainer
        gc.collect()
    (without_s, without_gib), (with_s, with_gib) = measured[False], measured[True]
    holds = with_gib <= _MOST_MEMORY * without_gib and with_s <= _MOST_TIME * without_s
    numbers = {"ms": with_s * 1e3, "gib": with_gib, "ms_without": without_s * 1e3, "gib_without": without_gib}
    context.report.claim("checkpointing", holds, CT, **numbers)
