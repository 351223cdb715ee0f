"""What a suite measures with: programs that do the same work, in turn, warmed up, every sample kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .limits import Limits
from .profiling import write_profile
from .results import Beside, Better, Figure, Limit, Target

Program = Callable[[], object]
Settings = dict[str, str | int | float | bool | None]

_REPEATS, _REPEATS_QUICK = 7, 2
# Rounds of a federation that do not count: server and sites still take memory from the system, which later ones reuse.
WARM_UP_ROUNDS = 3


@dataclass
class Bench:
    """What a suite is given.

    Attributes:
        folder: for whatever it writes; it goes afterwards.
        device: to measure on.
        quick: little work: the suite is to take less than a minute on two cores.
        limits: of this machine.
        keep: takes each figure as soon as it is known.
        doing: is told what is being measured.
        repeats: samples of each program; None: as many as fit the kind of run.
        first_use: whether what a program does only when it is called first (compiling, above all) is measured too, as a
            figure of its own.
        profile_to: folder for traces of the programs that are oncofed's; None: no trace is made.
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
        """Return how many samples are taken of each program."""
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
        """Run programs in turn, and keep a figure with every sample.

        Each program is called once before, which warms it up. Then they run in turn, every other time in the opposite
        order, so that neither what the machine does meanwhile nor what a neighbour leaves in its caches favours one.

        Args:
            name: of the figure.
            programs: name -> program; the first is oncofed's, the second the baseline, others follow.
            unit: of the figure: "s", or what is done in a second.
            amount: what one call of a program does, in units; None: the figure is the seconds of a call.
            limit: in the figure's unit.
            target: what is to be reached.
            settings: what the figure depends on, beside the device.
            missing: name -> why a program could not take part.
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
        beside = [Beside(name=who, samples=samples[who]) for who in others]
        beside += [Beside(name=who, missing=why) for who, why in (missing or {}).items()]
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
        """Keep a figure whose samples come from elsewhere, such as the rounds of a federation."""
        return self.add(Figure(name=name, unit=unit, better=better, samples=list(samples), **more), settings)

    def skip(self, name: str, unit: str, why: str) -> Figure:
        """Keep a row that says why nothing was measured."""
        return self.add(Figure(name=name, unit=unit, skipped=why))

    def add(self, figure: Figure, settings: Settings | None = None) -> Figure:
        """Keep a figure. One of a quick run has no target: it says that something runs, not how fast."""
        if self.quick:
            figure.target = None
        figure.settings = {"device": self.device.type, **(settings or {}), **figure.settings}
        self.keep(figure)
        return figure

    def best(self, program: Program, times: int = 5) -> float:
        """Return the seconds of the fastest of some calls, after one that does not count: for limits."""
        self.seconds(program)
        return min(self.seconds(program) for _ in range(times))

    def seconds(self, program: Program) -> float:
        """Return the seconds of one call: on a GPU by CUDA events, from its first to its last work, gaps included."""
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
