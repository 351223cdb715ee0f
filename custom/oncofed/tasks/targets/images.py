"""Targets of images and volumes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from oncofed.data.augment import Augmentation, Batch
from oncofed.data.case import Case
from oncofed.data.inputs import BatchSource, Preparation, Prepared, WholeImages
from oncofed.data.spec import DataSpec
from oncofed.devices import inference_type
from oncofed.plugins import Kind
from oncofed.tasks.inferred import TargetScores
from oncofed.tasks.pictures import Picture, middle_slice
from oncofed.tasks.registry import register_task_type
from oncofed.tasks.targets.outcome import TargetOutcome
from oncofed.tasks.targets.settings import TargetsSpec
from oncofed.tasks.targets.task import TargetsTask

# Images, and values of them all together, that are scored at once: large enough to fill a GPU, small enough for any.
_IMAGES_AT_ONCE, _VALUES_AT_ONCE = 64, 1 << 22


class ImageTargetsSpec(TargetsSpec):
    """Settings of targets of images and volumes."""

    type: Literal["targets"] = "targets"


@register_task_type("targets")
class ImageTargets(TargetsTask):
    """A task that answers named targets of an image or a volume."""

    Settings = ImageTargetsSpec
    network_kind: Kind = "image"

    def __init__(self, spec: ImageTargetsSpec, data: DataSpec) -> None:
        super().__init__(spec, data)
        self.cases_at_once = max(
            1, min(_IMAGES_AT_ONCE, _VALUES_AT_ONCE // (math.prod(data.patch) * len(data.channels)))
        )

    def input(self, augmentation: Augmentation) -> BatchSource:
        """Return whole images with their targets."""
        return WholeImages(self.data, augmentation, self.truth)

    def forward(self, network: Callable[..., Tensor], batch: Batch) -> Tensor:
        """Return outputs of a batch of images, with their rows of the table."""
        return network(batch["image"], *self.row(batch))

    def scoring_preparation(self) -> Preparation:
        """Return whole images, as training has them."""
        return WholeImages(self.data, "none", lambda case: {})

    def infer(self, network: nn.Module, prepared: Prepared, device: torch.device) -> TargetScores:
        """Return a network's outputs for one image."""
        return self._infer_images(network, [prepared], device)[0]

    def evaluate_cases(
        self, network: nn.Module, cases: Sequence[Case], device: torch.device, detailed: bool
    ) -> list[TargetOutcome]:
        """Evaluate a network on several cases, as one batch."""
        found = self._infer_images(network, [self.prepared(case) for case in cases], device)
        return [self.outcome(one, case) for one, case in zip(found, cases, strict=True)]

    @torch.no_grad()
    def _infer_images(
        self, network: nn.Module, prepared: Sequence[Prepared], device: torch.device
    ) -> list[TargetScores]:
        names = ["image", *(["table"] if self.data.covariates else [])]
        images, *rows = (torch.stack([case[name] for case in prepared]).to(device) for name in names)
        with torch.autocast(device.type, inference_type(device), enabled=device.type == "cuda"):
            outputs = network(images, *rows)
        return [TargetScores(found) for found in self._scores(outputs)]

    def picture(self, network: nn.Module, case: Case, device: torch.device) -> Picture:
        """Return the image with what it states and the answers."""
        outcome = self.evaluate_case(network, case, device, detailed=False)
        image = case.read_image()
        return middle_slice(image.values, image.affine, self.caption(outcome))
