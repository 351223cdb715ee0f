"""Measures programs in turn, keeping all samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .limits import Limits
from .profiling import write_profile
from .results import Baseline, Better, Figure, Limit, Target

Program = Callable[[], object]
Settings = dict[str, str | int | float | bool | None]

_REPEATS, _REPEATS_QUICK = 7, 2
# Rounds of a federation that do not count: server and sites still take memory from the system, which later ones reuse.
WARM_UP_ROUNDS = 3


@dataclass
class Bench:
    """Measuring tools of a suite.

    Attributes:
        folder: for the suite's files; is deleted afterwards.
        device: to measure on.
        quick: little work: the suite should take less than a minute on two cores.
        limits: of this machine.
        keep: called with each figure as soon as it is known.
        doing: called with what is being measured.
        repeats: samples of each program; None: the default of the kind of run.
        first_use: also measure the first call (mostly compiling) as a separate figure.
        profile_to: folder for traces of oncofed's programs; None: no traces.
    """

    folder: Path
    device: torch.device
    quick: bool
    limits: Limits
    keep: Callable[[Figure], None]
    doing: Callable[[str], None] = lambda _: None
    repeats: int | None = None
    first_use: bool = False
    profile_to: Path | None = None

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def times(self) -> int:
        """Return the number of samples of each program."""
        return self.repeats or (_REPEATS_QUICK if self.quick else _REPEATS)

    def race(
        self,
        name: str,
        programs: Mapping[str, Program],
        *,
        unit: str = "s",
        amount: float | Mapping[str, float] | None = None,
        limit: Limit | None = None,
        target: Target | None = None,
        settings: Settings | None = None,
        missing: Mapping[str, str] | None = None,
        note: str = "",
    ) -> Figure:
        """Run programs in turn, and keep their samples.

        Each program is called once to warm it up. Then they run in turn, every other time in the opposite order:
        neither other work on the machine nor warm caches favour one.

        Args:
            name: of the figure.
            programs: name -> program; the first is oncofed's, the second the baseline, others follow.
            unit: of the figure: "s", or units of work a second.
            amount: units of work of one call; None: the figure is the seconds of a call.
            limit: in the figure's unit.
            target: to reach.
            settings: the figure's parameters other than the device.
            missing: program -> why it was not run.
            note: for the table.
        """
        self.doing(name)
        for index, (who, program) in enumerate(programs.items()):
            seconds = self.seconds(program)
            if index == 0 and self.first_use:
                first = Figure(name=f"{name}, first use", unit="s", better="lower", samples=[seconds])
                self.add(first, settings)
            if index == 0 and self.profile_to:
                write_profile(program, self.device, self.profile_to, f"{name} {who}")
        samples: dict[str, list[float]] = {who: [] for who in programs}
        for repeat in range(self.times()):
            order = list(programs)
            for who in order if repeat % 2 == 0 else reversed(order):
                seconds = self.seconds(programs[who])
                samples[who].append(seconds if amount is None else _of(amount, who) / seconds)
        ours, *others = samples
        beside = [Baseline(name=who, samples=samples[who]) for who in others]
        beside += [Baseline(name=who, missing=why) for who, why in (missing or {}).items()]
        better: Better = "lower" if amount is None else "higher"
        figure = Figure(
            name=name,
            unit=unit,
            better=better,
            samples=samples[ours],
            baseline=beside[0] if beside else None,
            others=beside[1:],
            limit=limit,
            target=target,
            note=note,
        )
        return self.add(figure, settings)

    def measured(
        self,
        name: str,
        samples: Sequence[float],
        unit: str,
        better: Better = "lower",
        settings: Settings | None = None,
        **more: Any,
    ) -> Figure:
        """Keep a figure with given samples.

        Such as the rounds of a federation.
        """
        return self.add(Figure(name=name, unit=unit, better=better, samples=list(samples), **more), settings)

    def skip(self, name: str, unit: str, why: str) -> Figure:
        """Keep a row with the reason why nothing was measured."""
        return self.add(Figure(name=name, unit=unit, skipped=why))

    def add(self, figure: Figure, settings: Settings | None = None) -> Figure:
        """Keep a figure.

        A quick run does not measure speed, so it has no target.
        """
        if self.quick:
            figure.target = None
        figure.settings = {"device": self.device.type, **(settings or {}), **figure.settings}
        self.keep(figure)
        return figure

    def best(self, program: Program, times: int = 5) -> float:
        """Return the fastest call's seconds, for limits."""
        self.seconds(program)
        return min(self.seconds(program) for _ in range(times))

    def seconds(self, program: Program) -> float:
        """Return the seconds of one call.

        On a GPU between CUDA events, gaps included.
        """
        if not self.cuda:
            begun = time.perf_counter()
            program()
            return time.perf_counter() - begun
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(self.device)
        start.record()
        program()
        end.record()
        torch.cuda.synchronize(self.device)
        return float(start.elapsed_time(end)) / 1000


def _of(amount: float | Mapping[str, float], who: str) -> float:
    return amount[who] if isinstance(amount, Mapping) else amount
