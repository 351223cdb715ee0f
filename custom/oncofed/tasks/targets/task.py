"""A task that learns named targets, whatever its input."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from oncofed.data.augment import Batch
from oncofed.data.case import Case
from oncofed.data.inputs import Preparation, Prepared
from oncofed.data.label_mapping import LabelKind
from oncofed.data.spec import DataSpec
from oncofed.data.targets import Target, is_known, unknown
from oncofed.models.answers import TargetAnswer
from oncofed.models.mil.own_loss import own_loss, without_own_loss
from oncofed.suppression import LEAST_PATIENTS
from oncofed.tasks.base import Task
from oncofed.tasks.differences import Part
from oncofed.tasks.inferred import TargetScores
from oncofed.tasks.metrics import Metric
from oncofed.tasks.parts import Parts
from oncofed.tasks.pooled_target import TargetSums
from oncofed.tasks.scores import Scores
from oncofed.tasks.settings import TaskSettings
from oncofed.tasks.sum_forms import is_part
from oncofed.tasks.targets.base import TargetFigures, TargetHead, TargetSection, figure_name, head_of, known_rows
from oncofed.tasks.targets.outcome import TargetOutcome

# Groups in which patients are left out for the variance of a difference.
_JACKKNIFE_GROUPS = 200


class TargetsSpec(TaskSettings):
    """Settings of a task with named targets.

    Its classes are the names of its figures: each target's, and those of its members.
    """

    targets: tuple[TargetSection, ...] = Field(max_length=32, description="what is learned")
    classes: dict[int, str] = Field(
        default_factory=dict, description="names of the figures; they follow from the targets"
    )

    @field_validator("targets")
    @classmethod
    def _have_names_of_their_own(cls, targets: tuple[Target, ...]) -> tuple[Target, ...]:
        # A least length of the field would be missed, too, where a target has a mistake.
        if not targets:
            raise ValueError("name at least one target")
        names = [target.name for target in targets]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two targets are called {twice[0]}; give each a name of its own")
        return targets

    @model_validator(mode="after")
    def _classes_follow(self) -> Self:
        names = []
        for target in self.targets:
            names += [target.name, *(f"{target.name}.{member}" for member in target.members)]
        found = dict(enumerate(names))
        if self.classes not in ({}, found):
            raise ValueError("the classes of a job with targets follow from them: leave them out")
        object.__setattr__(self, "classes", found)  # the settings are frozen once they are made
        return self

    @property
    def vocabulary(self) -> dict[int, str]:
        """Empty: cases state targets, not label values."""
        return {}

    @property
    def least_batch(self) -> int:
        """The most that one of the targets needs."""
        return max(target.least_batch for target in self.targets)

    @property
    def named_targets(self) -> tuple[Target, ...]:
        """The targets."""
        return self.targets


def target_answers(settings: TargetsSpec) -> tuple[TargetAnswer, ...]:
    """Return how a network's outputs become the answers of a job's targets."""
    return tuple(head_of(target).target_answer for target in settings.targets)


class TargetsTask(Task[TargetOutcome]):
    """A task with named targets, one head each.

    The network gives the outputs of all heads side by side. The loss is the sum of the targets' losses by their
    weights, each a mean over samples in which unknown ones are zero. The metric is the mean of the targets' primary
    figures.
    """

    Settings: ClassVar[type[TaskSettings]] = TargetsSpec
    metric = "targets"
    label_kind: LabelKind = "targets"
    lowest_metric = -1.0

    def __init__(self, spec: TargetsSpec, data: DataSpec) -> None:
        super().__init__(data, spec.classes)
        self.spec = spec
        self.heads: dict[str, TargetHead[Any]] = {target.name: head_of(target) for target in spec.targets}
        primaries = [head.primary for head in self.heads.values()]
        self.metric_name = primaries[0].label if len(set(primaries)) == 1 else "mean over targets"
        self.metric = primaries[0].name if len(set(primaries)) == 1 else "targets"
        self.loss_name = "the targets' losses by their weights"

    @classmethod
    def declared_metrics(cls, settings: TargetsSpec) -> tuple[Metric, ...]:  # type: ignore[override]
        """Return the further metrics of a job's targets, with their units and bounds."""
        found = []
        for target in settings.targets:
            for metric in head_of(target).declared_metrics:
                members = target.members if metric.per_class else ("",)
                for member in members:
                    name = figure_name(target.name, f"{metric.name}.{member}" if member else metric.name)
                    title = f"{metric.title or metric.name} of {' '.join(filter(None, (target.name, member)))}"
                    found.append(replace(metric, name=name, title=title, per_class=False))
        return tuple(found)

    @classmethod
    def declared_sums(cls, settings: TargetsSpec) -> Mapping[str, TargetSums]:  # type: ignore[override]
        """Return the heads of a job's targets, by name."""
        return {target.name: head_of(target) for target in settings.targets}

    @property
    def parts(self) -> Parts:
        """The targets, with their members."""
        return {name: head.members for name, head in self.heads.items()}

    @property
    def chooses_thresholds(self) -> bool:
        """Whether some target has thresholds that validation patients choose."""
        return any(head.chooses_thresholds for head in self.heads.values())

    @property
    def learns_temperatures(self) -> bool:
        """Whether some target has temperatures that validation patients tell."""
        return any(head.learns_temperatures for head in self.heads.values())

    def use_temperatures(self, temperatures: Mapping[str, Mapping[str, float]]) -> None:
        """Divide the targets' logits by temperatures."""
        for name, head in self.heads.items():
            head.use_temperatures(temperatures.get(name, {}))

    def temperature_sums(self, outcomes: Sequence[tuple[str, TargetOutcome]]) -> dict[str, Any] | None:
        """Return sums to fit temperatures, by target and finding; a target that one to four lack is left out."""
        found, everybody = {}, len({patient for patient, _ in outcomes})
        for name, of_target in (self._told_of(outcomes) or {}).items():
            sums = self.heads[name].temperature_sums(*of_target)
            people = len(set(of_target[2]))
            if sums and is_part(people, everybody):
                found[name] = {"patients": people, "parts": sums}
        return {"patients": everybody, "targets": found} if found else None

    def use_thresholds(self, thresholds: Mapping[str, Mapping[str, float]]) -> None:
        """Use thresholds of the targets' probabilities."""
        for name, head in self.heads.items():
            head.use_thresholds(thresholds.get(name, {}))

    @property
    def out_channels(self) -> int:
        """Outputs of all heads."""
        return sum(head.outputs for head in self.heads.values())

    def truth(self, case: Case) -> Prepared:
        """Return a case's targets as tensors, ``target.NAME`` (width,) float32."""
        return {f"target.{name}": torch.tensor(case.targets[name], dtype=torch.float32) for name in self.heads}

    def row(self, of: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the table's rows as the network's last argument; none of a job without covariates.

        Args:
            of: a batch, or a prepared case.
        """
        return (of["table"],) if self.data.covariates else ()

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the sum of the targets' losses by their weights, a network's own among them."""
        outputs, own = without_own_loss(output, self.out_channels)
        total = output.new_zeros(())
        for (name, head), part in zip(self.heads.items(), self._by_head(outputs), strict=True):
            total = total + head.settings.weight * head.loss(part.float(), batch[f"target.{name}"]).mean()
        if own.shape[1]:
            holds, fails = (self._by_head(half) for half in own.chunk(2, dim=1))
            for number, (name, head) in enumerate(self.heads.items()):
                statements = head.statements(batch[f"target.{name}"])
                total = total + head.settings.weight * own_loss(holds[number], fails[number], statements).mean()
        return total

    @abstractmethod
    def scoring_preparation(self) -> Preparation:
        """Return the preparation of cases for scores."""

    def inference_preparation(self) -> Preparation:
        """Return the preparation of unlabelled cases: that of scores."""
        return self.scoring_preparation()

    @abstractmethod
    def infer(self, network: nn.Module, prepared: Prepared, device: torch.device) -> TargetScores:
        """Return a network's outputs for one prepared case."""

    def answers(self, found: TargetScores) -> dict[str, NDArray[np.float64]]:
        """Return each target's answer, (values,)."""
        return {name: head.answer(found.outputs[name][None])[0] for name, head in self.heads.items()}

    def evaluate_case(self, network: nn.Module, case: Case, device: torch.device, detailed: bool) -> TargetOutcome:
        """Evaluate a network on one case."""
        return self.outcome(self.infer(network, self.prepared(case), device), case)

    def outcome(self, found: TargetScores, case: Case) -> TargetOutcome:
        """Return a network's answers beside what a case states."""
        truths = {name: case.targets.get(name, unknown(head.settings)) for name, head in self.heads.items()}
        losses = [
            head.settings.weight
            * float(head.loss(torch.tensor(found.outputs[name])[None], torch.tensor([truths[name]])))
            for name, head in self.heads.items()
            # A loss that compares cases tells nothing of one.
            if is_known(truths[name]) and head.settings.least_batch == 1
        ]
        return TargetOutcome(self.answers(found), truths, sum(losses) if losses else None)

    def case_score(self, outcome: TargetOutcome) -> float | None:
        """Return minus a case's loss; None where it states no target that has one."""
        return None if outcome.loss is None else -outcome.loss

    def shares(self, found: TargetScores) -> dict[str, NDArray[np.float64]]:
        """Return each target's numbers as shares of what they may span, (number,); without unbounded ones."""
        shares = {name: self.heads[name].shares(answer) for name, answer in self.answers(found).items()}
        return {name: values for name, values in shares.items() if values.size}

    def described(self, found: TargetScores) -> dict[str, dict[str, float | str]]:
        """Return each target's answer by name, for people; see ``TargetHead.described``."""
        return {name: self.heads[name].described(answer) for name, answer in self.answers(found).items()}

    def summarise(self, outcomes: Sequence[tuple[str, TargetOutcome]]) -> Scores:
        """Return each target's figures, and the mean of their primary ones."""
        by_class: dict[str, float] = {}
        extra: dict[str, float] = {}
        primaries = []
        for name, figures in self._figures(outcomes).items():
            if figures.primary is not None:
                by_class[name] = figures.primary
                primaries.append(figures.primary)
            by_class |= {f"{name}.{member}": value for member, value in figures.members.items()}
            extra |= {figure_name(name, metric): value for metric, value in figures.extra.items()}
        return Scores(float(np.mean(primaries)) if primaries else None, by_class, extra)

    def drawing(self, patients: Sequence[Sequence[TargetOutcome]]) -> Callable[[NDArray[np.int64]], float | None]:
        """Return a function from drawn patients to the metric."""
        parts = {
            name: [self._stacked(name, [("", outcome) for outcome in own]) for own in patients] for name in self.heads
        }

        if not all(_are_numbers(answers) for of_target in parts.values() for answers, *_ in of_target):
            return lambda drawn: None

        def metric(drawn: NDArray[np.int64]) -> float | None:
            found = []
            for name, head in self.heads.items():
                chosen = [parts[name][number] for number in drawn]
                answers, truths = (np.concatenate([part[which] for part in chosen]) for which in (0, 1))
                people = [f"{number}" for number, part in enumerate(chosen) for _ in part[2]]
                found.append(head.primary_figure(answers, truths, people))
            known = [value for value in found if value is not None]
            return float(np.mean(known)) if known else None

        return metric

    def patients_behind(self, outcomes: Sequence[tuple[str, TargetOutcome]]) -> dict[str, set[str]]:
        """Return the patients behind each figure, by its name."""
        found: dict[str, set[str]] = {}
        for name, figures in self._figures(outcomes).items():
            for part, patients in figures.behind.items():
                metric = part.partition(".")[0]
                is_extra = part in figures.extra or metric in {m.name for m in self.heads[name].declared_metrics}
                own = figure_name(name, part) if is_extra else ".".join(filter(None, (name, part)))
                found[own] = patients
        return found

    def kinds(self, outcomes: Sequence[tuple[str, TargetOutcome]]) -> dict[str, set[str]]:
        """Return the patients whom sums may tell apart, by target."""
        found: dict[str, set[str]] = {}
        for name, head in self.heads.items():
            _, truths, patients = self._stacked(name, outcomes)
            found |= {f"{name}.{kind}": people for kind, people in head.kinds(truths, patients).items()}
        return found

    def classes_told(self, outcome: TargetOutcome) -> set[str]:
        """Return the targets that a case states, and their members that it has."""
        found = {name for name in self.heads if is_known(outcome.truths[name])}
        members = {name: self.heads[name].members_told(outcome.truths[name]) for name in found}
        return found | {f"{name}.{member}" for name, of_target in members.items() for member in of_target}

    def paired(
        self, outcomes: Sequence[tuple[str, TargetOutcome]], others: Sequence[tuple[str, TargetOutcome]]
    ) -> Part | None:
        """Return the difference of two models' metrics, with its jackknife variance over patients.

        Efron and Stein (Annals of Statistics 1981); patients are left out in at most 200 groups. None where a target's
        figure rests on fewer than five patients.
        """
        if any(len(figures.behind.get("", ())) < LEAST_PATIENTS for figures in self._figures(outcomes).values()):
            return None
        patients = sorted({patient for patient, _ in outcomes})
        groups = min(len(patients), _JACKKNIFE_GROUPS)
        group_of = {patient: number % groups for number, patient in enumerate(patients)}

        def difference(left_out: int) -> float | None:
            sides = ([o for o in side if group_of[o[0]] != left_out] for side in (outcomes, others))
            first, second = (self.summarise(side).mean for side in sides)
            return None if first is None or second is None else first - second

        whole, parts = difference(-1), [difference(number) for number in range(groups)]
        if whole is None or None in parts:
            return None
        spread = np.square(np.array(parts, np.float64) - np.mean(np.array(parts, np.float64))).sum()
        return Part(len(patients), whole, float(spread) * (groups - 1) / groups)

    def pooled(
        self, outcomes: Sequence[tuple[str, TargetOutcome]], temperature: float | None = None
    ) -> dict[str, Any] | None:
        """Return counts and sums of each target, to add to other sites'.

        A target that one to four patients lack is left out: its number would tell of them.
        """
        del temperature
        found, everybody = {}, len({patient for patient, _ in outcomes})
        for name, of_target in (self._told_of(outcomes) or {}).items():
            sums = self.heads[name].site_sums(*of_target)
            if sums and is_part(sums["patients"], everybody):
                found[name] = sums
        return {"patients": everybody, "targets": found} if found else None

    def case_metrics(self, outcome: TargetOutcome) -> dict[str, float | str]:
        """Return a case's answers and what it states, by target."""
        found: dict[str, float | str] = {}
        for name, head in self.heads.items():
            found |= {f"{name}.{part}": value for part, value in head.described(outcome.answers[name]).items()}
            found[name] = head.described_truth(outcome.truths[name])
        return found

    def caption(self, outcome: TargetOutcome) -> str:
        """Return a case's answers, a line for each target.

        What the case states stays away: pictures are shown around, and an event's time tells who the patient is.
        """
        return "\n".join(f"{name}, model: {head.in_short(outcome.answers[name])}" for name, head in self.heads.items())

    def _figures(self, outcomes: Sequence[tuple[str, TargetOutcome]]) -> dict[str, TargetFigures]:
        told = self._told_of(outcomes)
        if told is None:
            return dict.fromkeys(self.heads, TargetFigures(None))
        return {name: self.heads[name].figures(*of_target) for name, of_target in told.items()}

    def _told_of(
        self, outcomes: Sequence[tuple[str, TargetOutcome]]
    ) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64], list[str]]] | None:
        """Return ``_stacked`` of each target; None where a network diverged.

        An answer that is no number has no place among others: as a risk it would rank, as a grade be the lowest. One
        such answer leaves no target a figure, so that the others' mean does not stand for the model.
        """
        found = {name: self._stacked(name, outcomes) for name in self.heads}
        return found if all(_are_numbers(answers) for answers, *_ in found.values()) else None

    def _stacked(
        self, name: str, outcomes: Sequence[tuple[str, TargetOutcome]]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str]]:
        """Return answers, truths and patients of the cases that state a target."""
        width = self.heads[name].settings.width
        truths = np.array([outcome.truths[name] for _, outcome in outcomes], np.float64).reshape(-1, width)
        known = known_rows(truths)
        chosen = [outcome for outcome, stated in zip(outcomes, known, strict=True) if stated]
        empty = self.heads[name].answer(np.zeros((1, self.heads[name].outputs)))[:0]
        answers = np.stack([outcome.answers[name] for _, outcome in chosen]) if chosen else empty
        return answers, truths[known], [patient for patient, _ in chosen]

    def _by_head(self, output: Tensor) -> list[Tensor]:
        return list(torch.split(output, [head.outputs for head in self.heads.values()], dim=1))

    def _scores(self, outputs: Tensor) -> list[dict[str, NDArray[np.float64]]]:
        """Return each case's outputs by target.

        Args:
            outputs: (case, out_channels).
        """
        parts = [part.float().double().cpu().numpy() for part in self._by_head(outputs)]
        return [dict(zip(self.heads, rows, strict=True)) for rows in zip(*parts, strict=True)]


def _are_numbers(answers: NDArray[np.float64]) -> bool:
    return bool(np.isfinite(answers).all())
