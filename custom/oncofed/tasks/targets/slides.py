"""Targets of whole slides, or of patients: one network over a bag of tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from oncofed.data.augment import Augmentation, Batch
from oncofed.data.case import Case
from oncofed.data.inputs import BatchSource, Preparation, Prepared
from oncofed.data.spec import DataSpec
from oncofed.devices import training_device
from oncofed.models.fusion import with_attention
from oncofed.plugins import Kind
from oncofed.tasks.bags import Bags, BagSettings, alike
from oncofed.tasks.encoder import feature_count
from oncofed.tasks.inferred import SlideTargetScores
from oncofed.tasks.pictures import Picture
from oncofed.tasks.registry import register_task_type
from oncofed.tasks.slide_pictures import attention_picture
from oncofed.tasks.targets.settings import TargetsSpec
from oncofed.tasks.targets.task import TargetsTask


class SlideTargetsSpec(TargetsSpec, BagSettings):
    """Settings of targets of slides."""

    type: Literal["slide_targets"] = "slide_targets"


@register_task_type("slide_targets")
class SlideTargets(TargetsTask):
    """A task that answers named targets of a slide or a patient by attention over its tiles."""

    Settings = SlideTargetsSpec
    network_kind: Kind = "bag"

    def __init__(self, spec: SlideTargetsSpec, data: DataSpec) -> None:
        super().__init__(spec, data)
        self._slides = spec
        self._bags: Bags | None = None

    @property
    def in_channels(self) -> int:
        """Features of a tile."""
        return feature_count(self._slides.encoder)

    def input(self, augmentation: Augmentation) -> BatchSource:
        """Return bags of features with their targets."""
        if self._bags is None:
            self._bags = Bags(self.data, self._slides, training_device(), self._truth_if_stated)
        return self._bags

    def forward(self, network: Callable[..., Tensor], batch: Batch) -> Tensor:
        """Return outputs of a batch of bags."""
        return network(alike(self.data, batch["bags"], batch.get("table")), batch["there"], *self.row(batch))

    def scoring_preparation(self) -> Preparation:
        """Return bags of features, as training has them."""
        return self.input("none")

    @torch.no_grad()
    def infer(self, network: nn.Module, prepared: Prepared, device: torch.device) -> SlideTargetScores:
        """Return a network's outputs for one case, with attention."""
        rows = [row.to(device)[None] for row in self.row(prepared)]
        stated = [prepared["table"].to(device)[None]] if rows else []
        bags = alike(self.data, prepared["bags"].to(device).float()[None], *stated)
        present = torch.ones(bags.shape[:2], dtype=torch.bool, device=device)
        found, attention = with_attention(network, bags, present, *rows)
        outputs = self._scores(found)[0]
        told = None if attention is None else attention[0].float().cpu().numpy()
        return SlideTargetScores(outputs, told, prepared["places"].cpu().numpy(), prepared["slides"].cpu().numpy())

    def picture(self, network: nn.Module, case: Case, device: torch.device) -> Picture:
        """Return the slide, small, with its attention as a heat map."""
        found = self.infer(network, self.prepared(case), device)
        return attention_picture(case, self.data, found, self.caption(self.outcome(found, case)))

    def _truth_if_stated(self, case: Case) -> Prepared:
        """Return a case's targets; none of an unlabelled case."""
        return self.truth(case) if case.targets else {}
