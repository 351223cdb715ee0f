"""When ``torch.compile`` and CUDA graphs pay off."""

from __future__ import annotations

import math
import os
from typing import Any

from gpu_checks import support
from gpu_checks.context import Context
from gpu_checks.data import BRAIN, CT, TILES, XRAYS, cases_of, plan_of, trainer_of
from oncofed.training import Trainer
from oncofed.training.compiling import CACHE_VARIABLE, Form, can_compile

# Steps after which ``training.compile: auto`` has decided.
_DECIDED = 120
_NEAR = 1e-2


def check(context: Context) -> None:
    """Replay a launch-bound step; compare jobs with and without compiling."""
    with context.report.attempt("graphs", BRAIN):
        _replay(context)
    for job in (BRAIN, TILES, XRAYS, CT) if context.cuda else (BRAIN,):
        with context.report.attempt("compiling", job):
            _compare(context, job)


def _replay(context: Context) -> None:
    """Compare losses and times of the same steps.

    The network is so small that the GPU waits for the host.
    """
    if context.cuda and (why := can_compile()):
        context.report.skip("graphs", why)
        return
    _forget_compiled(context, "graphs")
    steps, few = (50, 8) if context.cuda else (1, 2)
    # A CPU has no graphs: there the same steps are taken twice as they are.
    forms: dict[str, Form] = {"eager": "eager", "replayed": "replayed" if context.cuda else "eager"}
    found: dict[str, Any] = {}
    for name, form in forms.items():
        trainer = _small(context)
        support.take_steps(trainer, form)
        losses: list[float] = []
        trainer.train(few, on_step=lambda step, loss, losses=losses: losses.append(loss()))  # type: ignore[misc]
        seconds = context.median_seconds(lambda trainer=trainer: trainer.train(steps))  # type: ignore[misc]
        found[name] = losses, seconds / steps * 1e3, support.form_of(trainer)
    (losses, ms, _), (replayed, replayed_ms, taken) = found["eager"], found["replayed"]
    near = all(math.isclose(one, two, rel_tol=_NEAR) for one, two in zip(losses, replayed, strict=True))
    holds = near and taken == "replayed" and replayed_ms < ms
    numbers = {"eager_ms": ms, "replayed_ms": replayed_ms, "form": taken, "losses": losses, "replayed": replayed}
    context.report.claim("graphs", holds, BRAIN, **numbers)


def _small(context: Context) -> Trainer:
    training = {"compile": "never", "deterministic": False, "precision": "float32", "steps_per_round": 500}
    plan = plan_of(context, BRAIN, {"training": training}, small=True)
    return Trainer(plan, cases_of(context, BRAIN), "here", context.device)


def _forget_compiled(context: Context, name: str) -> None:
    """Forget compiled code, which would hide the cost of compiling."""
    os.environ[CACHE_VARIABLE] = str(context.folder / f"inductor-{name}")


def _compare(context: Context, job: str) -> None:
    """Measure a job that need not be deterministic.

    A deterministic one decides by its length alone.
    """
    first, ms, worked = {}, {}, False
    steps = 30 if context.cuda else 1
    for how in ("never", "always") if context.cuda else ("never",):
        _forget_compiled(context, f"{job}-{how}")
        trainer = _trainer(context, job, compile=how)
        trainer.prepare()
        first[how] = context.seconds(lambda trainer=trainer: trainer.train(3))  # type: ignore[misc]
        ms[how] = context.median_seconds(lambda trainer=trainer: trainer.train(steps)) / steps * 1e3  # type: ignore[misc]
        worked = support.is_compiled(trainer)
    _forget_compiled(context, f"{job}-auto")
    repeats = support.is_compiled(_trainer(context, job, compile="auto", deterministic=True))
    auto = _trainer(context, job, compile="auto")
    total = auto.plan.total_steps
    if not context.cuda:
        context.report.claim("compiling", True, job, eager_ms=ms["never"], steps=total)
        return
    saved, cost = ms["never"] - ms["always"], first["always"] - first["never"]
    pays_from = cost / saved * 1e3 if saved > 0 else math.inf
    pays = worked and pays_from < total
    auto.train(_DECIDED)
    context.report.claim(
        "compiling",
        support.is_compiled(auto) == pays,
        job,
        eager_ms=ms["never"],
        compiled_ms=ms["always"],
        compiling_s=cost,
        pays_from_steps=pays_from,
        steps=total,
        it_worked=worked,
        auto_takes=support.form_of(auto),
        auto_compiles_where_bits_are_to_repeat=repeats,
    )


def _trainer(context: Context, job: str, **training: Any) -> Trainer:
    return trainer_of(context, job, {"training": {"deterministic": False, **training}})
