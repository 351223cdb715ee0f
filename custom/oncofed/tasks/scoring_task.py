"""The interface of a task for scoring."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import nn

from oncofed.data.case import Case
from oncofed.data.inputs import Preparation, Prepared
from oncofed.data.prepared import PreparedCases, passing, prepare_one
from oncofed.errors import DataError, UnreadableError
from oncofed.tasks.halving import within_memory
from oncofed.tasks.metrics import Metric
from oncofed.tasks.parts import Parts
from oncofed.tasks.patient_statistics import Outcome, PatientStatistics, confidence, defining_class
from oncofed.tasks.pooled_target import NO_TARGETS, TargetSums
from oncofed.tasks.scores import Evaluation
from oncofed.tasks.settings import TaskSettings


class ScoringTask(PatientStatistics[Outcome]):
    """A task's scoring half: the evaluation of cases.

    Attributes:
        metric: name in ``result.json`` of the metric that chooses the best round.
        metric_name: the same for people.
        cases_at_once: number of cases for ``evaluate_cases``.
        extra_metrics: metrics that ``Scores.extra_metrics`` may hold; no others leave a site. The metric, and its value
            for each class, are from ``lowest_metric`` to 1.
        lowest_metric: least value of ``metric``: 0 for a share, -1 for an agreement such as kappa.
    """

    metric: str
    metric_name: str
    extra_metrics: ClassVar[tuple[Metric, ...]] = ()
    lowest_metric: ClassVar[float] = 0.0
    cases_at_once = 1
    _held: PreparedCases | None = None

    @classmethod
    def declared_metrics(cls, settings: TaskSettings) -> tuple[Metric, ...]:
        """Return a job's extra metrics, with units and bounds.

        Args:
            settings: section ``task`` of the job.
        """
        del settings
        return cls.extra_metrics

    @classmethod
    def declared_sums(cls, settings: TaskSettings) -> Mapping[str, TargetSums]:
        """Return what checks each named target's sums; see ``pooled``.

        Args:
            settings: section ``task`` of the job.
        """
        del settings
        return NO_TARGETS

    @property
    def parts(self) -> Parts:
        """The figures whose mean the metric is; none if it is one of all patients."""
        return {}

    @property
    def chooses_thresholds(self) -> bool:
        """Whether sums over validation patients choose thresholds."""
        return False

    def use_thresholds(self, thresholds: Mapping[str, Mapping[str, float]]) -> None:
        """Use thresholds of probabilities; a task without targets has none.

        Args:
            thresholds: target -> member -> threshold.
        """

    @property
    def learns_temperatures(self) -> bool:
        """Whether sums over validation patients tell temperatures of targets."""
        return False

    def use_temperatures(self, temperatures: Mapping[str, Mapping[str, float]]) -> None:
        """Divide targets' logits by temperatures; a task without targets has none.

        Args:
            temperatures: target -> member, or "" -> temperature.
        """

    def scoring_preparation(self) -> Preparation | None:
        """Return the preparation of a case for ``evaluate_case``.

        None: ``evaluate_case`` reads files itself.
        """
        return None

    def prepared(self, case: Case) -> Prepared:
        """Return a case prepared by ``scoring_preparation``.

        It is cached, read ahead, or prepared now.
        """
        if self._held is not None and case in self._held:
            return self._held.of(case)
        preparation = self.scoring_preparation()
        assert preparation, "only a task with a preparation asks for it"
        return prepare_one(case, preparation, keep=preparation.costly)

    @abstractmethod
    def evaluate_case(self, network: nn.Module, case: Case, device: torch.device, detailed: bool) -> Outcome:
        """Evaluate a network on one case.

        The network is in evaluation mode; ``detailed`` adds slow figures.
        """

    def evaluate_cases(
        self, network: nn.Module, cases: Sequence[Case], device: torch.device, detailed: bool
    ) -> list[Outcome]:
        """Evaluate a network on several cases at once."""
        return [self.evaluate_case(network, case, device, detailed) for case in cases]

    @abstractmethod
    def case_metrics(self, outcome: Outcome) -> dict[str, float | str]:
        """Return one case's figures by name, for people."""

    def case_score(self, outcome: Outcome) -> float | None:
        """Return a single case's score, higher is better; None if undefined."""
        return self.summarise([("", outcome)]).mean

    def certainty(self, network: nn.Module, case: Case, device: torch.device) -> float | None:
        """Return how sure a network is of its own answer for a case, 0 to 1; None: it does not say.

        The network is in evaluation mode.
        """
        del network, case, device
        return None

    @torch.no_grad()
    def evaluate(
        self,
        network: nn.Module,
        cases: Sequence[Case],
        device: torch.device,
        detailed: bool = False,
        should_stop: Callable[[], bool] | None = None,
        held: PreparedCases | None = None,
        progress: Callable[[int, int], None] | None = None,
        keep: list[tuple[str, Outcome]] | None = None,
        set_aside: Callable[[Case, DataError], None] | None = None,
    ) -> Evaluation:
        """Score a network on cases.

        Args:
            network: on ``device``; it is left in evaluation mode.
            cases: of one site.
            device: where the network is.
            detailed: also compute slow figures, and the confidence interval.
            should_stop: called before each case; true ends the evaluation early.
            held: the prepared cases, if a caller keeps them for several evaluations.
            progress: called with (cases scored, cases in all).
            keep: called with each case's outcome and patient key, for ``pooled`` and the like.
            set_aside: called with a case whose file is damaged, and why; None: that ends the evaluation.
        """
        network.eval()
        preparation = self.scoring_preparation()
        self._held = held
        if held is None and preparation and not preparation.costly:
            self._held = PreparedCases(cases, preparation, device, plan=passing(cases))
        evaluate, at_once = self._evaluator()
        results: list[tuple[Case, Outcome]] = []
        try:
            for first in range(0, len(cases), at_once):
                if should_stop and should_stop():
                    break
                batch = cases[first : first + at_once]
                if self._held:
                    self._held.ahead_of(cases[first : first + 2 * at_once])
                try:
                    outcomes = within_memory(lambda part: evaluate(network, part, device, detailed), batch)
                except DataError as error:
                    # What may be readable again later, such as on a network drive, is worth another try.
                    if set_aside is None or len(batch) > 1 or isinstance(error, UnreadableError):
                        raise
                    set_aside(batch[0], error)
                    continue
                results += zip(batch, outcomes, strict=True)
                if progress:
                    progress(len(results), len(cases))
        finally:
            self._held = None
        if keep is not None:
            keep += [(case.patient, outcome) for case, outcome in results]
        return self._evaluation(results, detailed)

    def _evaluator(self) -> tuple[Callable[..., list[Outcome]], int]:
        """Return the function that evaluates cases, and its batch size.

        One case at a time if a subclass replaced only ``evaluate_case``.
        """
        batched, single = (defining_class(type(self), name) for name in ("evaluate_cases", "evaluate_case"))
        if issubclass(batched, single):
            return self.evaluate_cases, self.cases_at_once
        return partial(ScoringTask.evaluate_cases, self), 1

    def _evaluation(self, results: Sequence[tuple[Case, Outcome]], detailed: bool) -> Evaluation:
        outcomes = [(case.patient, outcome) for case, outcome in results]
        scores = self.summarise(outcomes)
        return Evaluation(
            mean=scores.mean,
            by_class=scores.by_class,
            extra_metrics=scores.extra_metrics,
            cases=len(outcomes),
            interval=confidence(self, outcomes) if detailed else None,
            by_case=tuple((case.name, self.case_metrics(outcome)) for case, outcome in results if detailed),
            patients=frozenset(patient for patient, _ in outcomes),
            behind={name: frozenset(patients) for name, patients in self.patients_behind(outcomes).items()},
            parts=self.parts,
            may_leave=self.may_leave(outcomes),
        )
