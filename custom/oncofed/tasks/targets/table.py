"""Targets of a table's rows: what the covariates alone tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from oncofed.data.augment import Augmentation, Batch
from oncofed.data.case import Case
from oncofed.data.inputs import BatchSource, Preparation, Prepared, TableRows
from oncofed.plugins import Kind
from oncofed.tasks.inferred import TargetScores
from oncofed.tasks.pictures import Picture, middle_slice
from oncofed.tasks.registry import register_task_type
from oncofed.tasks.targets.outcome import TargetOutcome
from oncofed.tasks.targets.settings import TargetsSpec
from oncofed.tasks.targets.task import TargetsTask


class TableTargetsSpec(TargetsSpec):
    """Settings of targets of rows."""

    type: Literal["table_targets"] = "table_targets"


@register_task_type("table_targets")
class TableTargets(TargetsTask):
    """A task that answers named targets of a row; no image is read for it."""

    Settings = TableTargetsSpec
    network_kind: Kind = "table"
    cases_at_once = 4096

    def input(self, augmentation: Augmentation) -> BatchSource:
        """Return rows with their targets."""
        return TableRows(self.data, self.truth)

    def forward(self, network: Callable[..., Tensor], batch: Batch) -> Tensor:
        """Return outputs of a batch of rows."""
        return network(*self.row(batch))

    def scoring_preparation(self) -> Preparation:
        """Return rows."""
        return TableRows(self.data, lambda case: {})

    def infer(self, network: nn.Module, prepared: Prepared, device: torch.device) -> TargetScores:
        """Return a network's outputs for one row."""
        return self._infer_rows(network, [prepared], device)[0]

    def evaluate_cases(
        self, network: nn.Module, cases: Sequence[Case], device: torch.device, detailed: bool
    ) -> list[TargetOutcome]:
        """Evaluate a network on several rows, as one batch."""
        found = self._infer_rows(network, [self.prepared(case) for case in cases], device)
        return [self.outcome(one, case) for one, case in zip(found, cases, strict=True)]

    @torch.no_grad()
    def _infer_rows(self, network: nn.Module, prepared: Sequence[Prepared], device: torch.device) -> list[TargetScores]:
        outputs = network(torch.cat([row[None] for case in prepared for row in self.row(case)]).to(device))
        return [TargetScores(rows) for rows in self._scores(outputs)]

    def picture(self, network: nn.Module, case: Case, device: torch.device) -> Picture:
        """Return the image beside what the row answers."""
        outcome = self.evaluate_case(network, case, device, detailed=False)
        image = case.read_image()
        return middle_slice(image.values, image.affine, self.caption(outcome))
