"""Scores of models on a site's cases."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

from safetensors.torch import load_file

from oncofed.client.case_sums import patients_of_sums, sums_of
from oncofed.client.case_table import write_case_table
from oncofed.client.first_asked import FirstAsked
from oncofed.client.folder import CASES_FILE
from oncofed.client.local_training import LocalScore, ProgressReporter, SiteContext, Stop
from oncofed.client.personal import PersonalModel
from oncofed.client.preparation import draw_validation_cases
from oncofed.client.progress import SECONDS_BETWEEN_REPORTS, ThrottledProgress
from oncofed.messages.requests import EvaluateRequest, Split, SumsAsked
from oncofed.models.weights import Weights
from oncofed.privacy.evaluations import evaluation_numbers, without_thresholded
from oncofed.tasks import attention_may_leave, metrics_that_may_leave
from oncofed.tasks.deletion import curves_by_patient, site_sums, slides_to_delete_from
from oncofed.tasks.scores import Evaluation
from oncofed.training import Trainer

Outcomes = list[tuple[str, Any]]


class LocalScoring:
    """Scores models on a site's cases, as it may tell.

    Args:
        trainer: holds the cases, and takes each model's weights.
        context: where the site trains.
        most_cases: validation cases that a model is scored on, at most; 0: all.
        first: what the job asked first.
        progress: of the scores.
        reporter: receives log lines.

    Attributes:
        validation: cases that models are scored on.
    """

    def __init__(
        self,
        *,
        trainer: Trainer,
        context: SiteContext,
        most_cases: int,
        first: FirstAsked,
        progress: ThrottledProgress,
        reporter: ProgressReporter,
    ) -> None:
        self._trainer, self._context, self._first = trainer, context, first
        self._progress, self._reporter = progress, reporter
        validation, seed = trainer.cases.validation, trainer.plan.seed
        self.validation = draw_validation_cases(validation, most_cases, seed, reporter)
        # Duration of the last score: phases shorter than a report's interval are not reported.
        self._seconds = math.inf

    def score(
        self, request: EvaluateRequest, weights: Weights, personal: PersonalModel | None, stop: Stop
    ) -> LocalScore:
        """Score the model of a request.

        Args:
            request: of the server.
            weights: all of the model's, as this site uses it.
            personal: tested beside it, if any.
            stop: polled; true ends it early.
        """
        task, outcomes = self._trainer.task, Outcomes()
        accepted = self._first.accepted(request.sums)
        task.use_thresholds(accepted.thresholds)
        task.use_temperatures(accepted.temperatures)
        tested = self._first.is_tested(request, weights, chooses_thresholds=task.chooses_thresholds)
        numbers, patients = self.evaluate(request.split, weights, stop, outcomes, tested), []
        if request.sums and not stop():
            sums = self._sums(request.split, outcomes, weights, request.sums, stop)
            patients = patients_of_sums(task, outcomes) if sums else []
            if request.split == "test" and sums:
                sums |= self._attention(outcomes, patients, stop)
            numbers |= sums
        if request.split == "test" and personal:
            numbers["personal"] = self._told(personal.test(stop), tested)
        return LocalScore(numbers, patients)

    def evaluate(
        self, split: Split, weights: Weights, stop: Stop, outcomes: Outcomes | None = None, tested: bool = False
    ) -> dict[str, Any]:
        """Return a model's figures on a split, and the seconds they took.

        Args:
            split: of the cases.
            weights: all of the model's.
            stop: polled; true ends it early.
            outcomes: filled with patient and outcome of each case.
            tested: it is the job's tested model; see ``FirstAsked.is_tested``.
        """
        trainer = self._trainer
        phase = "testing" if split == "test" else "validating"
        if split == "test" or self._seconds >= SECONDS_BETWEEN_REPORTS:
            self._progress.report(phase=phase)
        started, count = time.monotonic(), self._progress.counter(phase)

        def on_case(done: int, total: int) -> None:
            if time.monotonic() - started >= SECONDS_BETWEEN_REPORTS:
                count(done, total)

        cases = trainer.cases.test if split == "test" else self.validation
        trainer.load_weights(weights)
        known = dict(trainer.damaged)
        evaluation = trainer.evaluate(cases, stop, split == "test", on_case, outcomes)
        for name in trainer.damaged.keys() - known:
            self._reporter.note(f"set aside {name} while it was scored: {trainer.damaged[name]}", logging.WARNING)
        self._seconds = time.monotonic() - started
        if evaluation.by_case:
            path = self._context.state / CASES_FILE
            try:
                write_case_table(path, evaluation.by_case)
            except OSError as error:
                self._reporter.note(f"{path} could not be written: {error}", logging.ERROR)
        return {"evaluation": self._told(evaluation, tested), "validate_s": time.monotonic() - started}

    def _told(self, evaluation: Evaluation, tested: bool) -> dict[str, Any]:
        """Return an evaluation as it may leave; of a tested model with figures that depend on a threshold."""
        numbers = evaluation_numbers(evaluation)
        return numbers if tested else without_thresholded(numbers, metrics_that_may_leave(self._trainer.plan.task))

    def _sums(self, split: Split, outcomes: Outcomes, weights: Weights, asked: SumsAsked, stop: Stop) -> dict[str, Any]:
        against = self._outcomes_of_other(stop) if split == "test" else None
        sums = sums_of(self._trainer.task, split, outcomes, against, asked)
        if against is not None:
            self._trainer.load_weights(weights)
        return sums

    def _attention(self, outcomes: Outcomes, patients: list[list[str]], stop: Stop) -> dict[str, Any]:
        """Return sums of how far answers move without attended tiles; their patients join those of other sums."""
        trainer = self._trainer
        if not attention_may_leave(trainer.plan.task):
            return {}
        slides = slides_to_delete_from(trainer.cases.test)
        found = curves_by_patient(
            trainer.task, trainer.network, slides, trainer.device, trainer.plan.seed, should_stop=stop
        )
        sums = site_sums(found, len({patient for patient, _ in outcomes})) if not stop() else None
        if sums is None:
            return {}
        if sorted(found) not in patients:
            patients.append(sorted(found))
        return {"attention": sums}

    def _outcomes_of_other(self, stop: Stop) -> Outcomes | None:
        """Return the other model's test outcomes, if any."""
        if self._context.against is None:
            return None
        trainer, outcomes = self._trainer, Outcomes()
        trainer.load_weights(load_file(self._context.against))
        trainer.evaluate(trainer.cases.test, stop, False, None, outcomes)
        return None if stop() else outcomes
