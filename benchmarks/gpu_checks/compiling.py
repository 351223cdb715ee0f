"""From how many steps on ``torch.compile`` pays, and whether oncofed decides accordingly."""

from __future__ import annotations

import math
import os

from gpu_checks.context import Context
from gpu_checks.data import BRAIN, CT, TILES, XRAYS, trainer_of
from gpu_checks.support import is_compiled

# After so many it has decided.
_DECIDED = 120


def check(context: Context) -> None:
    """Measure each job with and without."""
    for job in (BRAIN, TILES, XRAYS, CT) if context.cuda else (BRAIN,):
        # What an earlier check or run compiled would not be compiled again.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(context.folder / f"inductor-{job}")
        with context.report.attempt("compiling", job):
            _compare(context, job)


def _compare(context: Context, job: str) -> None:
    first, ms, worked = {}, {}, False
    steps = 30 if context.cuda else 1
    for how in ("never", "always") if context.cuda else ("never",):
        trainer = trainer_of(context, job, {"training": {"compile": how}})
        trainer.prepare()
        first[how] = context.seconds(lambda trainer=trainer: trainer.train(3))  # type: ignore[misc]
        ms[how] = context.median_seconds(lambda trainer=trainer: trainer.train(steps)) / steps * 1e3  # type: ignore[misc]
        worked = is_compiled(trainer)
    auto = trainer_of(context, job, {"training": {"compile": "auto"}})
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
        is_compiled(auto) == pays,
        job,
        eager_ms=ms["never"],
        compiled_ms=ms["always"],
        compiling_s=cost,
        pays_from_steps=pays_from,
        steps=total,
        it_worked=worked,
        auto_compiles=is_compiled(auto),
    )
