"""Classification of whole slides from weak labels.

Bags of tiles' features, and attention over the tiles of a slide or a patient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from oncofed.data.augment import Augmentation, Batch
from oncofed.data.case import Case
from oncofed.data.inputs import BatchSource, Preparation, Prepared
from oncofed.data.spec import DataSpec
from oncofed.devices import training_device
from oncofed.models.fusion import with_attention
from oncofed.models.mil.own_loss import own_loss, without_own_loss
from oncofed.plugins import Kind
from oncofed.tasks.bags import Bags, BagSettings, alike
from oncofed.tasks.classification import ClassesSpec, Classification, Classified, caption
from oncofed.tasks.encoder import feature_count
from oncofed.tasks.inferred import SlideScores
from oncofed.tasks.pictures import Picture
from oncofed.tasks.registry import register_task_type
from oncofed.tasks.slide_pictures import attention_picture


class SlideClassificationSpec(ClassesSpec, BagSettings):
    """Settings of slide classification."""

    type: Literal["slide_classification"] = "slide_classification"


@register_task_type("slide_classification")
class SlideClassification(Classification):
    """A task that gives each slide, or each patient, one class by attention over its tiles."""

    Settings = SlideClassificationSpec
    network_kind: Kind = "bag"

    def __init__(self, spec: SlideClassificationSpec, data: DataSpec) -> None:
        super().__init__(spec, data)
        self._spec = spec
        self._bags: Bags | None = None

    @property
    def in_channels(self) -> int:
        """Features of a tile."""
        return feature_count(self._spec.encoder)

    def input(self, augmentation: Augmentation) -> BatchSource:
        """Return bags of features."""
        return self._input(training_device())

    def forward(self, network: Callable[..., Tensor], batch: Batch) -> Tensor:
        """Return logits of a batch of bags."""
        return network(alike(self.data, batch["bags"]), batch["there"])

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the cross-entropy, and the loss that a network has of its own."""
        outputs, own = without_own_loss(output, self.out_channels)
        loss = super().loss(outputs, batch)
        if own.shape[1]:
            holds, fails = own.chunk(2, dim=1)
            loss = loss + own_loss(holds, fails, functional.one_hot(batch["label"], self.out_channels)).mean()
        return loss

    def scoring_preparation(self) -> Preparation | None:
        """Return bags of features, as training has them."""
        return self.input("none")

    def inference_preparation(self) -> Preparation:
        """Return bags of features, as training has them."""
        return self.input("none")

    @torch.no_grad()
    def infer(self, network: nn.Module, prepared: Prepared, device: torch.device) -> SlideScores:
        """Return a network's answer for one case, with attention."""
        bags = alike(self.data, prepared["bags"].to(device).float()[None])
        present = torch.ones(bags.shape[:2], dtype=torch.bool, device=device)
        outputs, attention = with_attention(network, bags, present)
        logits = outputs[0].float().double().cpu().numpy()
        told = None if attention is None else attention[0].float().cpu().numpy()
        return SlideScores(logits, told, prepared["places"].cpu().numpy(), prepared["slides"].cpu().numpy())

    def evaluate_case(self, network: nn.Module, case: Case, device: torch.device, detailed: bool) -> Classified:
        """Evaluate a network on one case, all tiles together."""
        found = self.infer(network, self.prepared(case), device)
        return Classified(found.probabilities(self.temperature), case.class_label)

    def picture(self, network: nn.Module, case: Case, device: torch.device) -> Picture:
        """Return the slide, small, with its attention as a heat map."""
        found = self.infer(network, self.prepared(case), device)
        text = caption(Classified(found.probabilities(self.temperature), case.class_label), self.classes)
        return attention_picture(case, self.data, found, text)

    def _input(self, device: torch.device) -> Bags:
        if self._bags is None:
            self._bags = Bags(self.data, self._spec, device)
        return self._bags
