"""Baselines of a federation: each site alone, and pooled data.

Each baseline takes as many optimizer steps as one site takes in the federation, with the same network, initial
weights, schedule and choice of the best round by validation.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import save_file

from oncofed.data.case import Case
from oncofed.data.cases import Cases
from oncofed.data.moments import own_moments
from oncofed.data.transforms import image_landmarks
from oncofed.errors import TrainingError
from oncofed.models.agreed import with_agreed
from oncofed.models.weights import Weights
from oncofed.packs.load import load_packs, loaded_packs
from oncofed.packs.pack import Pack
from oncofed.processes import block_interrupts, end_with_starter, ready_context
from oncofed.tasks import Evaluation
from oncofed.training.plan import Plan
from oncofed.training.trainer import Trainer


@dataclass(frozen=True)
class Baseline:
    """One baseline to train.

    Attributes:
        name: of the baseline and of its weights' file.
        cases: what it trains on.
        tests: site -> test cases that it is scored on.
        validation: cases that choose its best round.
        plan: what to train; None: as the federation does.
        keeps_last: the last round's weights are kept, whatever validation says.
    """

    name: str
    cases: Cases
    tests: dict[str, tuple[Case, ...]]
    validation: tuple[Case, ...]
    plan: Plan | None = None
    keeps_last: bool = False


def train_baseline(
    plan: Plan, baseline: Baseline, out: Path, threads: int | None, progress: Callable[[str, int], None] | None = None
) -> dict[str, Evaluation]:
    """Train one baseline, and return its scores by site.

    Its best weights go to ``out/NAME.safetensors``.

    Args:
        plan: what to train.
        baseline: on which cases.
        out: folder for the weights.
        threads: CPU threads of this process; None leaves them as they are.
        progress: called after each round with (name, steps done).
    """
    if threads:
        torch.set_num_threads(threads)
    plan = plan.model_copy(update={"privacy": plan.privacy.with_own_noise()})
    trainer = Trainer(plan, baseline.cases, baseline.name)
    columns = plan.data.agreed_columns
    if columns:
        measured = partial(image_landmarks, spec=plan.data) if plan.data.intensity_columns else None
        moments = own_moments(baseline.cases.train, columns, measured)
        trainer.load_weights(with_agreed(trainer.weights(), columns, moments))
    best: Weights = trainer.weights()
    best_score = -math.inf
    for _ in range(plan.rounds):
        trainer.train(plan.training.steps_per_round)
        score = trainer.evaluate(baseline.validation).mean
        if baseline.keeps_last or score is None or score > best_score:
            best, best_score = trainer.weights(), -math.inf if score is None else score
        if progress:
            progress(baseline.name, trainer.steps_done)
    trainer.load_weights(best)
    save_file(best, out / f"{baseline.name}.safetensors")
    return {site: trainer.evaluate(cases, detailed=True) for site, cases in baseline.tests.items()}


class BaselinePool:
    """Trains baselines in separate processes.

    A context manager, which ends them all on leaving.

    Args:
        plan: what each baseline trains.
        out: folder for their weights.
    """

    def __init__(self, plan: Plan, out: Path) -> None:
        self._plan = plan
        self._out = out
        # A GPU is given to one baseline at a time, a CPU core to each.
        self._workers = 1 if torch.cuda.is_available() else max(1, os.cpu_count() or 1)
        self._threads = None if torch.cuda.is_available() else 1
        self._pool: ProcessPoolExecutor | None = None
        self._futures: dict[str, Future[dict[str, Evaluation]]] = {}
        self._context = ready_context(forks=not torch.cuda.is_available())
        self._done: Any = self._context.SimpleQueue()

    def __enter__(self) -> BaselinePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is None:
            return
        processes = list(self._pool._processes.values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        if error is not None:
            for process in processes:
                process.kill()
        for process in processes:
            process.join()

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all baselines together."""
        return len(self._futures) * self._plan.total_steps

    def start(self, baselines: list[Baseline]) -> None:
        """Start to train, the longest baseline first.

        That is the one over all data.
        """
        self._pool = ProcessPoolExecutor(
            self._workers, mp_context=self._context, initializer=_start_worker, initargs=(self._done, loaded_packs())
        )
        with block_interrupts():
            for baseline in baselines:
                plan = baseline.plan or self._plan
                job = self._pool.submit(_train, plan, baseline, self._out, self._threads)
                self._futures[baseline.name] = job

    def collect(self, progress: Callable[[int], None] | None = None) -> dict[str, dict[str, Evaluation]]:
        """Wait for all and return scores by baseline and site.

        Args:
            progress: called with the steps done so far, of all baselines together.

        Raises:
            TrainingError: a baseline's process died, or its loss was not finite.
        """
        steps: dict[str, int] = {}
        while not all(future.done() for future in self._futures.values()):
            while not self._done.empty():
                name, done = self._done.get()
                steps[name] = done
            if progress:
                progress(sum(steps.values()))
            time.sleep(0.2)
        try:
            return {name: future.result() for name, future in self._futures.items()}
        except BrokenProcessPool:
            raise TrainingError(
                "a process that trained a baseline ended abruptly, perhaps for want of memory. "
                "Run again with fewer other programs, or without baselines: --no-baselines"
            ) from None


_report_steps: Any = None


def _start_worker(queue: Any, packs: tuple[Pack, ...]) -> None:
    load_packs(packs)
    global _report_steps  # noqa: PLW0603 - a pool hands its workers a queue in no other way
    _report_steps = queue
    end_with_starter()
    warnings.filterwarnings("ignore")


def _train(plan: Plan, baseline: Baseline, out: Path, threads: int | None) -> dict[str, Evaluation]:
    return train_baseline(plan, baseline, out, threads, lambda name, steps: _report_steps.put((name, steps)))
