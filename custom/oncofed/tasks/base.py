"""The interface of a task.

One object ties training input, loss, inference, scores and pictures together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from oncofed.data.augment import Augmentation, Batch
from oncofed.data.cases import Case
from oncofed.data.inputs import BatchSource, Preparation, Prepared
from oncofed.data.label_mapping import LabelKind
from oncofed.data.prepared import PreparedCases, passing, prepare_one
from oncofed.data.spec import DataSpec
from oncofed.devices import free_memory, is_out_of_memory
from oncofed.errors import SpecError, TrainingError
from oncofed.plugins import Kind
from oncofed.suppression import LEAST_PATIENTS
from oncofed.tasks.differences import Part
from oncofed.tasks.inferred import Inferred
from oncofed.tasks.metrics import Metric
from oncofed.tasks.pictures import Picture
from oncofed.tasks.pooled import MEAN
from oncofed.tasks.scores import Evaluation, Scores
from oncofed.tasks.settings import TaskSettings
from oncofed.tasks.site_sums import figure_sums

RESAMPLES = 500
TAIL = 0.025  # of a 95 % interval, at each end
_NO_WIDTH = 1e-9


Outcome = TypeVar("Outcome")
Item = TypeVar("Item")
Found = TypeVar("Found")


class Task(ABC, Generic[Outcome]):
    """A task: input, loss, inference, scores and pictures.

    A script, a notebook, a test and a federation use a task the same way: ``input`` makes batches, ``forward`` and
    ``loss`` make a training step, ``evaluate`` scores cases.

    Args:
        data: of the job.
        classes: label value -> name, as the job learns them.

    Attributes:
        Settings: of the job's section ``task``.
        is_installed: its code is a part of an installed package, not of a pack.
        metric: the figure that chooses the best round, as ``result.json`` names it.
        metric_name: the same for people.
        loss_name: what training makes small, for people.
        label_kind: what a case is labelled with.
        network_kind: of the networks that fit.
        cases_at_once: cases that ``evaluate_cases`` is given.
        extra_metrics: what ``Scores.extra_metrics`` may hold; nothing else leaves a site. The metric, and its value for
            each class, are shares of one.
        averages: the metric is the mean over patients of each one's own. It holds for the class that defines
            ``summarise`` beside it.
        temperature: by which scores and pictures of a classification divide its logits; ``infer`` leaves them alone.
    """

    Settings: ClassVar[type[TaskSettings]]
    is_installed: ClassVar[bool] = True
    metric: str
    metric_name: str
    extra_metrics: ClassVar[tuple[Metric, ...]] = ()
    loss_name = "the task's own"
    label_kind: LabelKind = "mask"
    network_kind: Kind = "dense"
    cases_at_once = 1
    averages = False
    temperature = 1.0

    def __init__(self, data: DataSpec, classes: dict[int, str]) -> None:
        self.data = data
        self.classes = classes
        self._held: PreparedCases | None = None

    @classmethod
    def build(cls, settings: Any, data: DataSpec, pack: str) -> Task[Any]:
        """Return the task of a job.

        Args:
            settings: the job's section ``task``.
            data: its section ``data``.
            pack: digest of the pack that the job brings; empty: none.
        """
        del pack
        return cls(settings, data)  # type: ignore[arg-type] # subclasses take (settings, data)

    @property
    @abstractmethod
    def out_channels(self) -> int:
        """Values that the network gives for each voxel, image or bag."""

    @property
    def in_channels(self) -> int:
        """Values that the network takes."""
        return len(self.data.channels)

    @abstractmethod
    def input(self, augmentation: Augmentation) -> BatchSource:
        """Return how cases become batches."""

    def forward(self, network: Callable[..., Tensor], batch: Batch) -> Tensor:
        """Return the network's output for a batch."""
        return network(batch["image"])

    @abstractmethod
    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the loss, a scalar, as a mean over samples.

        So the losses of half batches average to that of the whole one.
        """

    def scoring_preparation(self) -> Preparation | None:
        """Return the preparation of a case for ``evaluate_case``.

        None: ``evaluate_case`` reads files itself.
        """
        return None

    def prepared(self, case: Case) -> Prepared:
        """Return a case prepared by ``scoring_preparation``.

        It is cached, read ahead, or made now.
        """
        if self._held is not None and case in self._held:
            return self._held.of(case)
        preparation = self.scoring_preparation()
        assert preparation, "only a task with a preparation asks for it"
        return prepare_one(case, preparation, keep=preparation.costly)

    def inference_preparation(self) -> Preparation:
        """Return the preparation of an unlabelled case for ``infer``.

        Raises:
            SpecError: the task only scores.
        """
        raise SpecError(f"the task {type(self).__name__} has no predictions: it is one of a pack, and defines no infer")

    def infer(self, network: nn.Module, prepared: Prepared, device: torch.device) -> Inferred:
        """Return a network's answer for one prepared case.

        Args:
            network: on ``device``.
            prepared: by ``inference_preparation`` or ``scoring_preparation``.
            device: where the network is.

        Raises:
            SpecError: the task only scores.
        """
        raise SpecError(f"the task {type(self).__name__} has no predictions: it is one of a pack, and defines no infer")

    def infer_with_entropy(self, network: nn.Module, prepared: Prepared, device: torch.device) -> Inferred:
        """Return ``infer``'s answer, of maps with their entropy.

        A pack's task answers without it.
        """
        return self.infer(network, prepared, device)

    def infer_all(
        self, network: nn.Module, prepared: Sequence[Prepared], device: torch.device, entropy: bool = False
    ) -> list[Inferred]:
        """Return ``infer``'s answers for several cases.

        They are taken in halves where memory is short.

        Args:
            network: on ``device``.
            prepared: as ``infer`` takes it.
            device: where the network is.
            entropy: of maps find how unsure the network is of each voxel, too.

        Raises:
            TrainingError: one case alone does not fit into memory.
        """
        return _within_memory(lambda few: self._infer_few(network, few, device, entropy), prepared)

    def _infer_few(
        self, network: nn.Module, prepared: Sequence[Prepared], device: torch.device, entropy: bool
    ) -> list[Inferred]:
        infer = self.infer_with_entropy if entropy else self.infer
        return [infer(network, case, device) for case in prepared]

    @abstractmethod
    def evaluate_case(self, network: nn.Module, case: Case, device: torch.device, detailed: bool) -> Outcome:
        """Evaluate a network on one case.

        The network is in evaluation mode; ``detailed`` adds figures that take long.
        """

    def evaluate_cases(
        self, network: nn.Module, cases: Sequence[Case], device: torch.device, detailed: bool
    ) -> list[Outcome]:
        """Evaluate a network on several cases at once."""
        return [self.evaluate_case(network, case, device, detailed) for case in cases]

    @abstractmethod
    def summarise(self, outcomes: Sequence[tuple[str, Outcome]]) -> Scores:
        """Return the scores over cases, each with its patient's key."""

    @abstractmethod
    def case_metrics(self, outcome: Outcome) -> dict[str, float | str]:
        """Return one case's figures by name, for people."""

    def drawing(self, patients: Sequence[Sequence[Outcome]]) -> Callable[[NDArray[np.int64]], float | None]:
        """Return a function from drawn patients to the metric.

        It takes their numbers; a patient drawn twice counts as two.

        Args:
            patients: the outcomes of each.
        """

        def metric(drawn: NDArray[np.int64]) -> float | None:
            outcomes = [(f"{n}", outcome) for n, number in enumerate(drawn) for outcome in patients[number]]
            return self.summarise(outcomes).mean if outcomes else None

        if not vars(_defining(type(self), "summarise")).get("averages", False):
            return metric
        known = [
            self.summarise([("", outcome) for outcome in of_patient]).mean if of_patient else None
            for of_patient in patients
        ]
        values = np.array([np.nan if mean is None else mean for mean in known])

        def average(drawn: NDArray[np.int64]) -> float | None:
            present = values[drawn][~np.isnan(values[drawn])]
            return float(present.mean()) if present.size else None

        return average

    def classes_told(self, outcome: Outcome) -> set[str]:
        """Return the classes that one case contributes to.

        See ``Scores.by_class``.
        """
        return set(self.summarise([("", outcome)]).by_class)

    def kinds(self, outcomes: Sequence[tuple[str, Outcome]]) -> dict[str, set[str]]:
        """Return the patients whose cases have each class.

        Args:
            outcomes: of all cases, each with its patient's key.
        """
        found: dict[str, set[str]] = defaultdict(set)
        for patient, outcome in outcomes:
            for name in self.classes_told(outcome):
                found[name].add(patient)
        return dict(found)

    def patients_behind(self, outcomes: Sequence[tuple[str, Outcome]]) -> dict[str, set[str]]:
        """Return the patients behind each figure, by the names of ``Scores.by_class`` and ``Scores.extra_metrics``.

        Of a figure that compares two kinds of patients it is the fewer ones.

        Args:
            outcomes: of all cases, each with its patient's key.
        """
        found: dict[str, set[str]] = defaultdict(set)
        for patient, outcome in outcomes:
            scores = self.summarise([("", outcome)])
            for name, value in (*scores.by_class.items(), *scores.extra_metrics.items()):
                if not np.isnan(value):
                    found[name].add(patient)
        return dict(found)

    def pooled(
        self, outcomes: Sequence[tuple[str, Outcome]], temperature: float | None = None
    ) -> dict[str, Any] | None:
        """Return counts and sums to add to other sites'.

        None where fewer than five patients are behind.

        Args:
            outcomes: of all cases, each with its patient's key.
            temperature: of the model, where the task knows of one.
        """
        del temperature
        values: dict[str, dict[str, float]] = defaultdict(dict)
        for patient, scores in self._by_patient(outcomes).items():
            known = {**scores.by_class, **({} if scores.mean is None else {MEAN: scores.mean})}
            for name, value in known.items():
                if not np.isnan(value):
                    values[name][patient] = value
        return figure_sums(values, MEAN)

    def temperature_sums(self, outcomes: Sequence[tuple[str, Outcome]]) -> dict[str, Any] | None:
        """Return sums to fit a temperature; None without one.

        See ``tasks.calibration``.
        """
        del outcomes
        return None

    def paired(self, outcomes: Sequence[tuple[str, Outcome]], others: Sequence[tuple[str, Outcome]]) -> Part | None:
        """Return the metric's difference between two models.

        On the same cases.

        Args:
            outcomes: of the first model.
            others: of the second, in the same order.

        Returns:
            None where fewer than five patients tell it.
        """
        first, second = self._by_patient(outcomes), self._by_patient(others)
        pairs = [(scores.mean, second[patient].mean) for patient, scores in first.items()]
        known = [a - b for a, b in pairs if a is not None and b is not None and not np.isnan(a - b)]
        return Part.of_values(known) if len(known) >= LEAST_PATIENTS else None

    def _by_patient(self, outcomes: Sequence[tuple[str, Outcome]]) -> dict[str, Scores]:
        groups: dict[str, list[tuple[str, Outcome]]] = defaultdict(list)
        for patient, outcome in outcomes:
            groups[patient].append((patient, outcome))
        return {patient: self.summarise(of_patient) for patient, of_patient in groups.items()}

    @abstractmethod
    def picture(self, network: nn.Module, case: Case, device: torch.device) -> Picture:
        """Return a picture of a network's answer for one case."""

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
    ) -> Evaluation:
        """Score a network on cases.

        Args:
            network: on ``device``; it is left in evaluation mode.
            cases: of one site.
            device: where the network is.
            detailed: also find what takes long, and the interval of confidence.
            should_stop: called before each case; true ends the evaluation early.
            held: the cases as ``scoring_preparation`` makes them, where they are kept for another time.
            progress: called with (cases scored, cases in all).
            keep: gets what was found of each case, with its patient's key: for ``pooled`` and the like.
        """
        network.eval()
        preparation = self.scoring_preparation()
        self._held = held
        if held is None and preparation and not preparation.costly:
            self._held = PreparedCases(cases, preparation, device, plan=passing(cases))
        evaluate, at_once = self._evaluator()
        outcomes: list[tuple[str, Outcome]] = []
        by_case = []
        try:
            for first in range(0, len(cases), at_once):
                if should_stop and should_stop():
                    break
                batch = cases[first : first + at_once]
                if self._held:
                    self._held.ahead_of(cases[first : first + 2 * at_once])
                found = _within_memory(lambda some: evaluate(network, some, device, detailed), batch)
                outcomes += [(case.patient, outcome) for case, outcome in zip(batch, found, strict=True)]
                if detailed:
                    by_case += [(c.name, self.case_metrics(outcome)) for c, outcome in zip(batch, found, strict=True)]
                if progress:
                    progress(len(outcomes), len(cases))
        finally:
            self._held = None
        if keep is not None:
            keep += outcomes
        scores = self.summarise(outcomes)
        interval = confidence(self, outcomes) if detailed else None
        return Evaluation(
            scores.mean,
            scores.by_class,
            scores.extra_metrics,
            len(outcomes),
            interval,
            tuple(by_case),
            frozenset(patient for patient, _ in outcomes),
            {name: frozenset(patients) for name, patients in self.patients_behind(outcomes).items()},
        )

    def _evaluator(self) -> tuple[Callable[..., list[Outcome]], int]:
        """Return the function that evaluates cases, and its batch size.

        One where a subclass replaced ``evaluate_case`` alone.
        """
        batched, single = (_defining(type(self), name) for name in ("evaluate_cases", "evaluate_case"))
        if issubclass(batched, single):
            return self.evaluate_cases, self.cases_at_once
        return partial(Task.evaluate_cases, self), 1


def _within_memory(look: Callable[[Sequence[Item]], list[Found]], items: Sequence[Item]) -> list[Found]:
    """Evaluate cases, in halves where memory is short."""
    try:
        return look(items)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if len(items) == 1:
            raise TrainingError(
                "one case alone does not fit into memory while a model looks at it. Free the GPU of other programs "
                "(nvidia-smi), or make data.patch smaller"
            ) from None
    # Out of the except block: the error's traceback holds what the failed pass had in memory.
    free_memory()
    middle = len(items) // 2
    return [*_within_memory(look, items[:middle]), *_within_memory(look, items[middle:])]


def _defining(kind: type, name: str) -> type:
    """Return the class that defines a type's method."""
    return next(ancestor for ancestor in kind.__mro__ if name in vars(ancestor))


def confidence(task: Task[Outcome], outcomes: Sequence[tuple[str, Outcome]]) -> tuple[float, float] | None:
    """Return a metric's 95 % bootstrap interval over patients.

    Efron (1979), percentile method.

    Args:
        task: that the outcomes are of.
        outcomes: of all cases, each with its patient's key; a patient's cases are drawn together.
    """
    by_patient: dict[str, list[Outcome]] = defaultdict(list)
    for patient, outcome in outcomes:
        by_patient[patient].append(outcome)
    # So few say nothing about how far a mean may be off, and the ends of an interval would nearly be their scores.
    if len(by_patient) < LEAST_PATIENTS:
        return None
    rng, metric = np.random.default_rng(0), task.drawing(list(by_patient.values()))
    drawn = (metric(rng.integers(0, len(by_patient), len(by_patient))) for _ in range(RESAMPLES))
    return between(np.array([mean for mean in drawn if mean is not None], np.float64), TAIL)


def between(metrics: NDArray[np.float64], tail: float) -> tuple[float, float] | None:
    """Return the ends of a percentile interval; None without width.

    A metric that is alike however patients are drawn, such as an AUROC of one, gives the bootstrap nothing to vary: its
    interval would be a point, which says nothing of other patients (Obuchowski and Lieber, Academic Radiology 2002).

    Args:
        metrics: of each draw.
        tail: share of the draws beyond each end.
    """
    if not metrics.size:
        return None
    low, high = np.percentile(metrics, (100 * tail, 100 - 100 * tail))
    return (float(low), float(high)) if high - low > _NO_WIDTH else None


def mean_over_patients(outcomes: Sequence[tuple[str, dict[str, float]]]) -> dict[str, float]:
    """Return the mean of each figure over patients.

    A patient's cases count as one; NaN is left out.
    """
    by_name: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for patient, figures in outcomes:
        for name, value in figures.items():
            if not np.isnan(value):
                by_name[name][patient].append(value)
    return {
        name: float(np.mean([np.mean(values) for values in patients.values()])) for name, patients in by_name.items()
    }
