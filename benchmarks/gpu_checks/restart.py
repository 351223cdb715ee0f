"""A process is killed, and another goes on from its checkpoint to the same bits."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from gpu_checks.context import Context
from gpu_checks.data import BRAIN, CT, SLIDES, XRAYS, trainer_of
from gpu_checks.forks import Fork

_BEFORE, _AFTER = 4, 3
_SECONDS = 70.0
# (job, optimizer, torch.compile): SGD and AdamW keep different state.
_GPU_CASES = (
    (CT, "sgd", "never"),
    (BRAIN, "adamw", "never"),
    (XRAYS, "adamw", "never"),
    (SLIDES, "adamw", "never"),
    (BRAIN, "adamw", "always"),
)
_CPU_CASES = ((CT, "sgd", "never"), (BRAIN, "adamw", "never"))


def check(context: Context) -> None:
    """Kill a training, and resume it."""
    for job, optimizer, compile_ in _GPU_CASES if context.cuda else _CPU_CASES:
        text = f"{job}, {optimizer}, compile {compile_}"
        with context.report.attempt("restart", text):
            _compare(context, job, optimizer, compile_, text)


def _compare(context: Context, job: str, optimizer: str, compile_: str, text: str) -> None:
    training = {"optimizer": optimizer, "compile": compile_, "deterministic": True, "steps_per_round": _BEFORE + _AFTER}
    folder = context.folder / text.replace(" ", "-").replace(",", "")
    folder.mkdir()
    checkpoint = folder / "checkpoint.safetensors"
    whole, resumed = folder / "whole.safetensors", folder / "resumed.safetensors"

    def act(checkpoint: Path | None, turns: tuple[int, ...], keep: Path | None) -> None:
        trainer = trainer_of(context, job, {"training": training}, checkpoint)
        for steps in turns:
            trainer.train(steps)
        if keep is None:
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            save_file(trainer.weights(), keep)

    # Each in a separate process, as at a site; this one never touches CUDA, so it can fork.
    for program, expected in (
        (partial(act, None, (_BEFORE, _AFTER), whole), ""),
        (partial(act, checkpoint, (_BEFORE,), None), "ended by signal SIGKILL"),
        (partial(act, checkpoint, (_AFTER,), resumed), ""),
    ):
        ended = Fork(program).wait(_SECONDS)
        if ended.timed_out:
            context.report.skip("restart", f"{text}: {ended.error}")
            return
        if ended.error != expected:
            raise RuntimeError(ended.error or "the process was not killed")
    one, two = load_file(whole), load_file(resumed)
    differing = [name for name, values in one.items() if not torch.equal(values, two[name])]
    context.report.claim("restart", not differing, text, tensors=len(one), differing=differing[:3])
