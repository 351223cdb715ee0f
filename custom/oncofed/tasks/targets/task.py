"""A task that learns named targets, whatever its input."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from oncofed.data.augment import Batch
from oncofed.data.case import Case
from oncofed.data.inputs import Preparation, Prepared
from oncofed.data.label_mapping import LabelKind
from oncofed.data.spec import DataSpec
from oncofed.data.targets import is_known, unknown
from oncofed.models.mil.own_loss import own_loss, without_own_loss
from oncofed.tasks.base import Task
from oncofed.tasks.inferred import TargetScores
from oncofed.tasks.metrics import Metric
from oncofed.tasks.parts import Part, Parts
from oncofed.tasks.pooled_target import TargetSums
from oncofed.tasks.settings import TaskSettings
from oncofed.tasks.targets.base import figure_name, head_of
from oncofed.tasks.targets.outcome import TargetOutcome
from oncofed.tasks.targets.settings import TargetsSpec
from oncofed.tasks.targets.statistics import TargetStatistics


class TargetsTask(TargetStatistics, Task[TargetOutcome]):
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
        self.heads = {target.name: head_of(target) for target in spec.targets}
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
        return {name: Part(head.members, head.has_own_figure) for name, head in self.heads.items()}

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
        if not self.data.covariates:
            return ()
        rows, harmonizer = of["table"], self.data.harmonizer
        if harmonizer is None:
            return (rows,)
        return (harmonizer.table(rows[None])[0] if rows.ndim == 1 else harmonizer.table(rows),)

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

    def _by_head(self, output: Tensor) -> list[Tensor]:
        return list(torch.split(output, [head.outputs for head in self.heads.values()], dim=1))

    def _scores(self, outputs: Tensor) -> list[dict[str, NDArray[np.float64]]]:
        """Return each case's outputs by target.

        Args:
            outputs: (case, out_channels).
        """
        parts = [part.float().double().cpu().numpy() for part in self._by_head(outputs)]
        return [dict(zip(self.heads, rows, strict=True)) for rows in zip(*parts, strict=True)]
