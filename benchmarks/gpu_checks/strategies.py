"""Cost per step of strategies that correct gradients."""

from __future__ import annotations

import torch

from gpu_checks.context import Context
from gpu_checks.data import CT, trainer_of
from oncofed.algorithms.feddyn import DynamicRegulariser
from oncofed.algorithms.fedprox import Proximal
from oncofed.algorithms.scaffold import ControlVariates
from oncofed.training.gradient_hook import GradientHook

_MOST = 1.1


def check(context: Context) -> None:
    """Compare steps with and without each correction."""
    few, steps = (5, 20) if context.cuda else (1, 1)
    corrections: dict[str, GradientHook | None] = {
        "none": None,
        "fedprox": Proximal(0.01),
        "scaffold": ControlVariates(),
        "feddyn": DynamicRegulariser(0.01),
    }
    trainer = trainer_of(context, CT, {"training": {"compile": "never"}})
    trainer.train(few)
    plain = 0.0
    for name, correction in corrections.items():
        trainer.gradient_hook = correction
        given = {f"control.{n}": torch.zeros_like(v, device="cpu") for n, v in trainer.network.named_parameters()}
        with context.report.attempt("corrections", name):
            if correction:  # the second round starts from the state of the first
                correction.start(trainer.network, given)
                trainer.train(few)
                correction.finish(trainer.network)
                correction.start(trainer.network, given)
            ms = context.median_seconds(lambda: trainer.train(steps)) / steps * 1e3
            plain = plain or ms
            if correction:
                context.report.claim(
                    "corrections", ms <= _MOST * plain, name, ms=ms, ms_without=plain, times=ms / plain
                )
