"""Scores of a run's models, asked of its sites."""

from __future__ import annotations

import dataclasses
import math

from oncofed.messages.requests import EvaluateRequest, Split, SumsAsked
from oncofed.models.weights import Weights
from oncofed.rounds.context import RoundContext, moved
from oncofed.rounds.evaluation import Evaluation
from oncofed.rounds.events import CrossSite, Finished
from oncofed.rounds.pooled_scores import calibration_of, together
from oncofed.rounds.round_state import RoundState
from oncofed.rounds.run_state import RunState
from oncofed.rounds.store import RunStore
from oncofed.rounds.summed_scores import score_in_sum
from oncofed.tasks import sums_that_may_leave
from oncofed.tasks.calibration import Calibration
from oncofed.training import Plan


class Scoring:
    """Scores a run's models on its sites' cases.

    Args:
        context: of the run.
        plan: the job's.
        store: keeps the calibration, and holds the small files that sites keep with the model.
        calibration: of the job's model; None where unknown.
    """

    def __init__(
        self, context: RoundContext, plan: Plan, store: RunStore, calibration: Calibration | None = None
    ) -> None:
        self._context, self._plan, self._store = context, plan, store
        self._task = plan.build_task()
        self._calibration = calibration

    def score(
        self, weights: Weights, number: int, split: Split, sums: SumsAsked | None = None, keep: bool = False
    ) -> RoundState:
        """Have the sites score a model.

        Args:
            weights: of the model.
            number: of the round that it comes from.
            split: of the cases.
            sums: wanted beside the scores, if any.
            keep: the sites keep the model for their own use.
        """
        request = EvaluateRequest(
            weights=self._context.outgoing(weights),
            round=number,
            split=split,
            sums=sums,
            keep=keep,
            artifacts=self._store.artifacts() if keep else {},
        )
        if self._context.scores:
            return score_in_sum(self._context, request)
        return Evaluation(self._context, request).run()

    def cross_site(self, state: RunState) -> dict[str, dict[str, float | None]]:
        """Return test scores of each site's last local model.

        Keys are the model's site, then the testing site.
        """
        matrix: dict[str, dict[str, float | None]] = {}
        base = state.last_from or state.model
        for site, update in sorted(state.last.items()):
            current = self.score(moved(base, update.delta), state.round, "test")
            matrix[site] = {s: n["evaluation"]["mean"] for s, n in sorted(current.numbers.items())}
            self._context.record(CrossSite(model=site, scores=matrix[site]))
        return matrix

    def calibrate(self, model: Weights, number: int) -> None:
        """Calibrate a classifier, or choose thresholds, on the sites' validation patients."""
        task = self._task
        if self._context.scores:
            return  # it takes sums of each site
        if task.label_kind == "class" or task.chooses_thresholds or task.learns_temperatures:
            numbers = self.score(model, number, "validation", SumsAsked()).numbers
            self._keep_calibration(calibration_of(numbers, sums_that_may_leave(self._plan.task)))

    def test(
        self,
        weights: Weights,
        number: int,
        validation: float | None,
        *,
        against: str | None = None,
        cross_site: dict[str, dict[str, float | None]] | None = None,
        keep: bool = True,
    ) -> None:
        """Score the job's model on test cases, which ends the run.

        Args:
            weights: of the model.
            number: of the round that it comes from.
            validation: its score on validation cases; None where unknown.
            against: digest of a model that it is compared with, if any.
            cross_site: as ``cross_site`` returns them; None where the job does not ask.
            keep: the sites keep the model for their own use.
        """
        known = self._calibration
        asked = SumsAsked(known.temperature, known.thresholds, known.temperatures) if known else SumsAsked()
        current = self.score(weights, number, "test", None if self._context.scores else asked, keep=keep)
        numbers, summed = current.numbers, current.summed
        margin = self._context.federation.evaluation.margin
        targets = sums_that_may_leave(self._plan.task)
        found = together(numbers, known, self._task.metric, margin, against, targets)
        self._keep_calibration(found.calibration)
        self._context.record(
            Finished(
                best_round=number,
                best_validation=validation if validation is not None and math.isfinite(validation) else None,
                test={site: n["evaluation"] for site, n in sorted(numbers.items())},
                personal={site: n["personal"] for site, n in sorted(numbers.items()) if "personal" in n},
                cross_site=cross_site,
                summed=dataclasses.asdict(summed) if summed else None,
                gains={site: n["gain"] for site, n in sorted(numbers.items()) if "gain" in n},
                **found.recorded(),
            )
        )

    def finish_untested(self, number: int, validation: float) -> None:
        """End the run without a look at test cases.

        Args:
            number: of the round that the model comes from.
            validation: its score on validation cases.
        """
        known = validation if math.isfinite(validation) else None
        self._context.record(Finished(best_round=number, best_validation=known, test={}))

    def _keep_calibration(self, calibration: Calibration | None) -> None:
        self._calibration = calibration
        if calibration:
            self._store.write_calibration(calibration)
