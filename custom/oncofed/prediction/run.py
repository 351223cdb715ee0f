"""Predicts cases into a folder, resuming earlier calls."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import oncofed
from oncofed.prediction.case_prediction import CasePrediction
from oncofed.prediction.inference import Inference
from oncofed.prediction.inputs import HIDDEN_FOLDER
from oncofed.prediction.model import TrainedModel
from oncofed.prediction.outputs.records import json_text
from oncofed.prediction.outputs.registry import select_outputs
from oncofed.prediction.predictions import Predictions
from oncofed.prediction.results_folder import ResultsFolder
from oncofed.prediction.sources import SetAside, Sources
from oncofed.prediction.trust.checks import TrustChecks

# Called with (number of cases done, total).
Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class Options:
    """Prediction options.

    Attributes:
        outputs: names of the outputs; see ``outputs``.
        batch: images per forward pass for whole-image tasks; None: as in scoring.
        ensemble: also predict with the run's other models if kept, and report their disagreement.
        refuse_outside: leave images unlike the training images to a person.
    """

    outputs: tuple[str, ...] = field(default_factory=select_outputs)
    batch: int | None = None
    ensemble: bool = True
    refuse_outside: bool = False


def predict(
    model: TrainedModel,
    sources: Sources,
    out: Path,
    device: torch.device,
    options: Options | None = None,
    advance: Advance | None = None,
    within: Callable[[str, int, int], None] | None = None,
) -> Predictions:
    """Predict new or changed cases, and write the summary files.

    Args:
        model: model that predicts.
        sources: see ``gather``.
        out: folder of the predictions.
        device: to compute on.
        options: prediction options.
        advance: called after each case.
        within: called with (case, part of it done, parts in all) where a case takes long, as a slide does.

    Raises:
        SpecError: the folder holds predictions of another model, or another process works in it.
        OSError: the folder is not writable; finished cases stay complete.
    """
    options, advance = options or Options(), advance or (lambda done, total: None)
    folder = ResultsFolder(out)
    with folder.locked():
        folder.clean()
        folder.require_model(model.digest)
        found = Predictions(out, set_aside=list(sources.set_aside), notes=list(sources.notes))
        checks = TrustChecks(model, device, options.ensemble)
        settings = _settings(model, options, checks)
        folder.remove_stale(sources)
        if options.refuse_outside:
            sources = _without_outside(sources, checks, folder, found)
        todo = []
        for source in sources.cases:
            if folder.is_done(source, model.digest, settings, model.job.data.covariates):
                found.kept.append(source.name)
            else:
                todo.append(source)
        advance(len(found.kept), len(sources.cases))
        found.write_summary(model, settings, complete=False)
        scratch = out / HIDDEN_FOLDER / "strips"
        words = json_text(settings)
        results = Inference(model, device, checks, options.batch, scratch, words, within).run(todo)
        try:
            for done, result in enumerate(_written(results, folder, model, settings), start=len(found.kept) + 1):
                if isinstance(result, SetAside):
                    found.set_aside.append(result)
                    folder.remove(result.name)
                else:
                    found.made.append(result.source.name)
                advance(done, len(sources.cases))
        except BaseException:
            with contextlib.suppress(OSError):  # the disk may be full
                found.write_summary(model, settings, complete=False)
            raise
        shutil.rmtree(scratch, ignore_errors=True)  # they are in the cases' files now
        found.write_summary(model, settings, complete=True)
    return found


def _written(
    results: Iterator[CasePrediction | SetAside], folder: ResultsFolder, model: TrainedModel, settings: dict[str, Any]
) -> Iterator[CasePrediction | SetAside]:
    """Yield results once written, while the network computes the next."""
    with ThreadPoolExecutor(1, "write") as pool:
        pending: tuple[CasePrediction, Future[None]] | None = None
        for result in results:
            if isinstance(result, SetAside):
                yield result
                continue
            if pending:
                pending[1].result()
                yield pending[0]
            pending = result, pool.submit(folder.write_case, result, model, settings)
        if pending:
            pending[1].result()
            yield pending[0]


def _without_outside(sources: Sources, checks: TrustChecks, folder: ResultsFolder, found: Predictions) -> Sources:
    """Set aside out-of-distribution images and remove their earlier predictions."""
    inside = []
    for source in sources.cases:
        reasons, _ = checks.check_image(source)
        if reasons:
            why = "; ".join(reason.words for reason in reasons)
            found.set_aside.append(SetAside(source.name, f"left to a person: {why}", source.entry.source or ""))
            folder.remove(source.name)
        else:
            inside.append(source)
    return replace(sources, cases=inside)


def _settings(model: TrainedModel, options: Options, checks: TrustChecks) -> dict[str, Any]:
    """Return all that determines a case's files.

    Besides image and weights.
    """
    return {
        "oncofed": oncofed.__version__,
        "job": model.job.name,
        "task": model.job.task.model_dump(mode="json"),
        "outputs": list(options.outputs),
        "members": list(checks.members),
        "temperature": model.temperature,
        "thresholds": model.thresholds,
        "temperatures": model.temperatures,
        **({"harmonizer": harmonizer.digest} if (harmonizer := model.task.data.harmonizer) else {}),
    }
