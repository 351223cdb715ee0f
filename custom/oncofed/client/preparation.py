"""Checks of a site's cases and files before training."""

from __future__ import annotations

import logging
from pathlib import Path

from safetensors.torch import load_file

from oncofed.client.local_training import ProgressReporter, SiteContext
from oncofed.client.progress import ThrottledProgress
from oncofed.data.case import Case
from oncofed.data.cases import Usable, usable_cases
from oncofed.data.grouping import finding_lines
from oncofed.data.sample import sample_cases
from oncofed.models.weights import Weights, exchanged_names
from oncofed.training import Plan, Trainer
from oncofed.training.checkpoint import is_whole


def check_cases(plan: Plan, context: SiteContext, progress: ThrottledProgress, reporter: ProgressReporter) -> Usable:
    """Check a site's cases, and set bad ones aside.

    Args:
        plan: what to train.
        context: where the site trains.
        progress: of the checks.
        reporter: receives a line for each kind of problem.

    Raises:
        DataError: the dataset cannot be used, or too much of it is bad.
    """
    usable = usable_cases(
        context.data,
        plan.data,
        plan.supervision(),
        plan.seed,
        context.site,
        progress.counter("checking data"),
    )
    for line in finding_lines((problem.case, problem.what) for problem in usable.set_aside):
        reporter.note(f"set aside {line}", logging.WARNING)
    return usable


def set_broken_files_aside(folder: Path, reporter: ProgressReporter) -> None:
    """Rename broken state files, as after a bad disk.

    Args:
        folder: of the state.
        reporter: receives a line for each.
    """
    for path in folder.glob("*.safetensors"):
        if not is_whole(path):
            reporter.note(f"{path} is broken and set aside: this site begins anew", logging.ERROR)
            path.replace(path.with_suffix(".broken"))


def draw_validation_cases(
    cases: tuple[Case, ...], most: int, seed: int, reporter: ProgressReporter
) -> tuple[Case, ...]:
    """Return the cases that each round is scored on.

    Args:
        cases: all validation cases.
        most: how many at most; 0: all.
        seed: of the draw.
        reporter: receives a line where not all are drawn.
    """
    drawn = sample_cases(cases, most, seed)
    if len(drawn) < len(cases):
        note = f"each round is scored on {len(drawn)} of {len(cases)} validation cases (evaluation.most_cases)"
        reporter.note(note, logging.INFO)
    return drawn


def untrained_weights(trainer: Trainer, plan: Plan, initial: Path | None) -> Weights:
    """Return the weights that no site trains.

    Each site has them from the job, so they do not travel.

    Args:
        trainer: of the job's network.
        plan: whose seed gives the weights where no file does.
        initial: file of the job's initial weights, or None.
    """
    exchanged = exchanged_names(trainer.network)
    return {name: value for name, value in initial_weights(plan, initial).items() if name not in exchanged}


def initial_weights(plan: Plan, initial: Path | None) -> Weights:
    """Return the weights that a job's training begins with.

    Args:
        plan: whose seed gives them where no file does.
        initial: file of the job's initial weights, or None.
    """
    return load_file(initial) if initial else plan.initial_weights()
