"""Evaluates a model on a labelled dataset."""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from oncofed.data.case import Case
from oncofed.data.case_checks import Problem, check_cases
from oncofed.data.cases import Cases, deal_cases
from oncofed.data.decisions import decided
from oncofed.data.grouping import counted, finding_lines
from oncofed.data.layouts.base import distinct_names
from oncofed.data.manifest import MANIFEST_FILE, Manifest, read_manifest
from oncofed.data.patients import whole_patients
from oncofed.errors import DataError, SpecError
from oncofed.machine import environment
from oncofed.prediction.evaluation import caveats
from oncofed.prediction.evaluation.shareable import comparison_record, scores_record, subgroups_record
from oncofed.prediction.evaluation.subgroup_columns import (
    SIZES,
    ColumnChoice,
    Values,
    group_cases,
    known_columns,
    table_columns,
)
from oncofed.prediction.evaluation.subgroups import Outcomes, Subgroups, by_subgroup
from oncofed.prediction.model import TrainedModel
from oncofed.prediction.outputs.tables import write_rows
from oncofed.report.evaluation import EvaluationRecord
from oncofed.tasks import Scores, Task
from oncofed.tasks.comparison import Comparison, compare
from oncofed.tasks.deletion import deletion
from oncofed.tasks.resampling import figure_intervals

CASES_FILE = "cases.csv"  # names cases, so it stays at the site
Lists = Literal["test", "validation", "training", "all"]
LISTS: tuple[Lists, ...] = get_args(Lists)
# Columns analysed by default.
_USUAL = ("vendor", "modality", "slices", "colour", *SIZES)

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate, on what, and how.

    Attributes:
        model: model to evaluate.
        folder: labelled dataset.
        split: which patients, as the job's seed splits them.
        by: columns that define subgroups; empty: those of scanner, image and reference.
        table: table with further columns.
        against: another model to compare with on the same patients.
        margin: non-inferiority margin; None: the job's.
    """

    model: TrainedModel
    folder: Path
    split: Lists = "test"
    by: tuple[ColumnChoice, ...] = ()
    table: Path | None = None
    against: TrainedModel | None = None
    margin: float | None = None


@dataclass(frozen=True)
class ScoredCase:
    """One scored case.

    Attributes:
        case: the case.
        list: its split in the job.
        figures: metrics by name; they stay at the site.
        score: of this case alone, higher is better; None if undefined.
    """

    case: Case
    list: str
    figures: Mapping[str, float | str]
    score: float | None


@dataclass(frozen=True)
class EvaluationResult:
    """Result of an evaluation.

    Attributes:
        record: what may leave the site.
        scores: over all cases; they stay at the site.
        interval: 95 % interval of the metric.
        intervals: the same of each named target and its members.
        patients: number of patients.
        scored_cases: all cases, worst first; those without a score last.
        subgroups: by column.
        comparison: with another model.
        set_aside: cases that could not be used.
        columns: all available columns.
    """

    record: EvaluationRecord
    scores: Scores
    interval: tuple[float, float] | None
    intervals: Mapping[str, tuple[float, float]]
    patients: int
    scored_cases: tuple[ScoredCase, ...]
    subgroups: tuple[Subgroups, ...] = ()
    comparison: Comparison | None = None
    set_aside: tuple[Problem, ...] = ()
    columns: tuple[str, ...] = ()


def evaluate(request: EvaluationRequest, device: torch.device, progress: Progress | None = None) -> EvaluationResult:
    """Score a model on a dataset's labelled cases.

    Args:
        request: what to evaluate.
        device: to compute on.
        progress: called with (step, number done, total).

    Raises:
        DataError: no case of the dataset can be scored, or its table does not match.
        SpecError: a column is missing, or the models cannot be compared.
    """
    progress = progress or (lambda what, done, total: None)
    model, task = request.model, request.model.task
    _require_comparable(request)
    manifest, digest = decided(read_manifest(request.folder)), digest_of_dataset(request.folder)
    lists, dealt = _dealt(request, manifest)
    cases, aside = _usable(request, [case for case in dealt if request.split in ("all", lists[case.name])], progress)
    lists |= {case.name: lists[case.slides[0].name] for case in cases}
    known, unmatched = _known_columns(request, cases)
    wanted = _wanted(request, known)
    network = model.network(device)
    kept: list[tuple[str, Any]] = []
    scored = task.evaluate(network, cases, device, True, progress=partial(progress, "scoring"), keep=kept)
    found = [outcome for _, outcome in kept]
    outcomes = Outcomes(tuple(c.name for c in cases), tuple(c.patient for c in cases), tuple(found))
    intervals = figure_intervals(task, kept) if task.label_kind == "targets" else {}
    subgroups = _by_columns(task, outcomes, wanted, known, progress)
    if not request.by:
        subgroups = [one for one in subgroups if len(one.groups) > 1]
    comparison = _compare(request, cases, outcomes, device, progress)
    attention = deletion(task, network, cases, device, model.job.seed)
    told = scores_record(task, outcomes, scored.interval, intervals)
    remarks = [
        *caveats.of_mean(task, scored, told),
        *caveats.of_calibration(model),
        *caveats.of_training(model.provenance, digest, lists, cases),
        *([f"{counted(unmatched, 'row')} of the table are of no case that was scored"] if unmatched else []),
        *caveats.of_withheld(subgroups),
        *caveats.of_many(subgroups),
        *([] if attention else caveats.of_attention(model.job, cases)),
    ]
    if comparison and request.against:
        remarks += caveats.of_comparison(model.job, request.against.job, comparison)
    scored_cases = [
        ScoredCase(c, lists[c.name], task.case_metrics(o), task.case_score(o))
        for c, o in zip(cases, found, strict=True)
    ]
    record = EvaluationRecord(
        job=model.job.name,
        title=model.job.title,
        model=model.digest,
        dataset=manifest.name or model.job.data.dataset,
        dataset_digest=digest,
        split=request.split,
        metric=task.metric,
        metric_name=task.metric_name,
        temperature=model.temperature if task.label_kind == "class" else None,
        set_aside=len(aside),
        scores=told,
        subgroups=[subgroups_record(task, one) for one in subgroups],
        comparison=comparison_record(comparison, request.against.digest) if comparison and request.against else None,
        attention=attention,
        remarks=remarks,
        ended=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        environment=environment(),
    )
    return EvaluationResult(
        record=record,
        scores=scored,
        interval=scored.interval,
        intervals=intervals,
        patients=len(set(outcomes.patients)),
        scored_cases=tuple(
            sorted(scored_cases, key=lambda one: (math.inf if one.score is None else one.score, one.case.name))
        ),
        subgroups=tuple(subgroups),
        comparison=comparison,
        set_aside=tuple(aside),
        columns=tuple(known),
    )


def digest_of_dataset(folder: Path) -> str:
    """Return a registered dataset's digest, as in ``provenance.json``."""
    return hashlib.sha256((folder / MANIFEST_FILE).read_bytes()).hexdigest()


def write_cases(evaluated: EvaluationResult, folder: Path) -> Path:
    """Write ``cases.csv`` with each case's metrics, for the owner only."""
    names = list(dict.fromkeys(name for one in evaluated.scored_cases for name in one.figures))
    rows = (
        [
            *(one.case.name, one.case.patient, one.list, _cell(one.score)),
            *(_cell(one.figures.get(name)) for name in names),
        ]
        for one in evaluated.scored_cases
    )
    path = folder / CASES_FILE
    write_rows(path, ["case", "patient", "list", "score", *names], rows)
    return path


def _cell(value: float | str | None) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return value if isinstance(value, str) else f"{value:.6g}"


# --- which cases


def _by_list(cases: Cases) -> dict[str, tuple[Case, ...]]:
    return {"test": cases.test, "validation": cases.validation, "training": cases.train}


def _dealt(request: EvaluationRequest, manifest: Manifest) -> tuple[dict[str, str], list[Case]]:
    """Return each case's split, and the labelled cases, uniquely named.

    Raises:
        DataError: none has a label that the job can be scored by.
    """
    job = request.model.job
    supervision = job.plan().supervision()
    if not any(key in job.data.splits and supervision.of_entry(manifest, entry) for key, entry in manifest.by_split()):
        raise DataError(
            f"{request.folder}: none of its {counted(len(manifest.entries), 'case')} has {supervision.in_words}, by "
            f"which the job {job.name} is scored. Register labels with the images, or name another dataset"
        )
    cases = deal_cases(manifest, request.folder, job.data.split, job.seed, supervision, job.data.splits)
    if request.split != "all" and not _by_list(cases)[request.split]:
        found = ", ".join(f"{len(part)} {name}" for name, part in _by_list(cases).items())
        raise DataError(
            f"{request.folder}: it has no {request.split} case, found {found}. Score all of them: --split all"
        )
    by_list = [(name, case) for name, part in _by_list(cases).items() for case in part]
    names = distinct_names([(case.name, str(case.image)) for _, case in by_list])
    named = [(name, replace(case, name=own)) for (name, case), own in zip(by_list, names, strict=True)]
    return {case.name: name for name, case in named}, [case for _, case in named]


def _usable(request: EvaluationRequest, cases: Sequence[Case], progress: Progress) -> tuple[list[Case], list[Problem]]:
    """Return usable cases, and problems of the others.

    Raises:
        DataError: none can.
    """
    models = [model for model in (request.model, request.against) if model]
    done, counting = 0, threading.Lock()

    def advance() -> None:
        nonlocal done
        with counting:
            done += 1
            progress("checking images", done, len(cases) * len(models))

    found: list[Problem] = []
    for model in models:
        found += check_cases(cases, list(model.job.task.vocabulary), model.job.data, progress=advance)
    problems = {one.case: one for one in found if not one.of_mask}
    masks = {one.case for one in found if one.of_mask}
    left = [case.without_mask() if case.name in masks else case for case in cases if case.name not in problems]
    if request.model.job.task.whole_patients:
        columns = request.model.job.data.covariates
        left, differing = whole_patients(left, columns, request.model.job.task.vocabulary)
        problems |= {problem.case: problem for problem in differing}
    if not left:
        listed = "\n  ".join(finding_lines((problem.case, problem.what) for problem in problems.values()))
        raise DataError(f"{request.folder}: none of its {counted(len(cases), 'case')} fits the job:\n  {listed}")
    return left, list(problems.values())


# --- subgroups


def _known_columns(request: EvaluationRequest, cases: Sequence[Case]) -> tuple[dict[str, Values], int]:
    """Return all columns, and the table's number of unmatched rows."""
    known = known_columns(cases, request.model.job.task.vocabulary)
    if request.table is None:
        return known, 0
    more, unmatched = table_columns(request.table, cases, request.folder)
    return known | more, unmatched


def _wanted(request: EvaluationRequest, known: Mapping[str, Values]) -> list[ColumnChoice]:
    """Return the columns to analyse.

    Raises:
        SpecError: one is not there.
    """
    missing = [wanted.name for wanted in request.by if wanted.name not in known]
    if missing:
        raise SpecError(f"no column {missing[0]!r}; known are {', '.join(sorted(known)) or 'none'}. More: --table FILE")
    return list(request.by) or [ColumnChoice(name) for name in _USUAL if name in known]


def _by_columns(
    task: Task[Any], outcomes: Outcomes, wanted: Sequence[ColumnChoice], known: Mapping[str, Values], progress: Progress
) -> list[Subgroups]:
    """Return the subgroups of each column."""
    columns = [group_cases(one, known[one.name], outcomes.cases, 3 if one.name in SIZES else 4) for one in wanted]
    return by_subgroup(task, outcomes, columns, lambda done: progress("subgroups", done, len(columns)))


# --- another model


def _require_comparable(request: EvaluationRequest) -> None:
    other = request.against
    if other is None:
        if request.margin is not None:
            raise SpecError("--margin is for two models: name the other one with --against")
        return
    mine, its = request.model, other
    if type(mine.task) is not type(its.task) or mine.task.classes != its.task.classes:
        raise SpecError(
            f"the models answer different questions: {mine.job.name} tells {', '.join(mine.task.classes.values())} "
            f"({mine.task.metric_name}), {its.job.name} {', '.join(its.task.classes.values())} "
            f"({its.task.metric_name}). Expected two models of one task and the same classes"
        )
    if mine.job.task.whole_patients != its.job.task.whole_patients:
        raise SpecError(
            "one of the models answers for slides, the other for patients (task.bag). Expected two models of one kind"
        )
    targets, others = (model.job.task.named_targets for model in (mine, its))
    if [target.question for target in targets] != [target.question for target in others]:
        named = [
            target.name for target, other in zip(targets, others, strict=True) if target.question != other.question
        ]
        raise SpecError(
            f"the models answer {', '.join(named)} otherwise: unit, range, horizon or another setting differs. "
            "Expected two models whose jobs set their targets alike"
        )
    if mine.digest == its.digest:
        raise SpecError(
            f"--against {its.folder}: it is the same model (weights {its.digest[:12]}…). Name another model's folder"
        )


def _compare(
    request: EvaluationRequest, cases: Sequence[Case], outcomes: Outcomes, device: torch.device, progress: Progress
) -> Comparison | None:
    other, task = request.against, request.model.task
    if other is None:
        return None
    scoring, kept = partial(progress, "scoring the other model"), list[tuple[str, Any]]()
    other.task.evaluate(other.network(device), cases, device, progress=scoring, keep=kept)
    theirs = [outcome for _, outcome in kept]
    margin = request.margin if request.margin is not None else request.model.job.evaluation.margin
    compared = compare(task, outcomes.patients, outcomes.found, theirs, margin)
    may_leave = task.may_leave(outcomes.patient_outcomes()) and task.may_leave(kept)
    return compared if may_leave else replace(compared, first=None, second=None, interval=None)
