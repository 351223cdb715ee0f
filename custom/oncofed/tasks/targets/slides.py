"""Targets of whole slides: one network over a slide's bag of tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from oncofed.data.augment import Augmentation, Batch
from oncofed.data.case import Case
from oncofed.data.inputs import BatchSource, Preparation, Prepared
from oncofed.data.spec import DataSpec
from oncofed.devices import training_device
from oncofed.models.fusion import tile_attention
from oncofed.plugins import Kind
from oncofed.tasks.encoder import Encoder, EncoderSpec, feature_count
from oncofed.tasks.inferred import SlideTargetScores
from oncofed.tasks.pictures import Picture
from oncofed.tasks.registry import register_task_type
from oncofed.tasks.slides import Bags, attention_picture
from oncofed.tasks.targets.task import TargetsSpec, TargetsTask


class SlideTargetsSpec(TargetsSpec):
    """Settings of targets of slides."""

    type: Literal["slide_targets"] = "slide_targets"
    encoder: EncoderSpec = EncoderSpec()
    most_tiles: int = Field(4096, ge=16, le=100_000, description="tiles of a slide that a training step looks at")


@register_task_type("slide_targets")
class SlideTargets(TargetsTask):
    """A task that answers named targets of a slide by attention over its tiles."""

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
            encoder = Encoder(self._slides.encoder, training_device())
            self._bags = Bags(self.data, encoder, self._slides.most_tiles, self._truth_if_stated)
        return self._bags

    def forward(self, network: Callable[..., Tensor], batch: Batch) -> Tensor:
        """Return outputs of a batch of bags."""
        return network(batch["bags"], batch["there"], *self.row(batch))

    def scoring_preparation(self) -> Preparation:
        """Return bags of features, as training has them."""
        return self.input("none")

    @torch.no_grad()
    def infer(self, network: nn.Module, prepared: Prepared, device: torch.device) -> SlideTargetScores:
        """Return a network's outputs for one slide, with attention."""
        bags = prepared["bags"].to(device).float()[None]
        present = torch.ones(bags.shape[:2], dtype=torch.bool, device=device)
        rows = [row.to(device)[None] for row in self.row(prepared)]
        outputs = self._scores(network(bags, present, *rows))[0]
        attention = tile_attention(network, bags, present)
        told = None if attention is None else attention[0].float().cpu().numpy()
        return SlideTargetScores(outputs, told, prepared["places"].cpu().numpy())

    def picture(self, network: nn.Module, case: Case, device: torch.device) -> Picture:
        """Return the slide, small, with its attention as a heat map."""
        found = self.infer(network, self.prepared(case), device)
        outcome = self.outcome(found, case)
        return attention_picture(case, self.data, found.attention, found.places, self.caption(outcome))

    def _truth_if_stated(self, case: Case) -> Prepared:
        """Return a case's targets; none of an unlabelled case."""
        return self.truth(case) if case.targets else {}
