"""Pretraining of networks for images without labels: two views of an image are alike.

SimCLR (Chen et al., ICML 2020): the normalised temperature-scaled cross-entropy of a batch's views. The network's last
layer is the projection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional

from oncofed.data.augment import Augmentation, Batch
from oncofed.data.case import Case
from oncofed.data.inputs import BatchSource, Preparation
from oncofed.data.label_mapping import LabelKind
from oncofed.data.spec import DataSpec
from oncofed.data.two_views import VIEWS, TwoViews
from oncofed.plugins import Kind
from oncofed.tasks.metrics import Metric
from oncofed.tasks.patient_statistics import mean_over_patients
from oncofed.tasks.pictures import Picture, middle_slice
from oncofed.tasks.pretraining import GivesNoAnswers
from oncofed.tasks.registry import register_task_type
from oncofed.tasks.scores import Scores
from oncofed.tasks.settings import TaskSettings


class ContrastiveSpec(TaskSettings):
    """Settings of contrastive pretraining."""

    type: Literal["contrastive_pretraining"] = "contrastive_pretraining"
    classes: dict[int, str] = Field(default_factory=dict, max_length=0, description="none: no label is read")
    projection: int = Field(128, ge=2, le=4096, description="numbers by which views are compared")
    temperature: float = Field(0.1, ge=0.01, le=10, description="by which similarities are divided")
    least_part: float = Field(0.5, gt=0, le=1, description="smallest share of an image's side that a view shows")

    @property
    def least_batch(self) -> int:
        """Two: an image is compared with others."""
        return 2


@register_task_type("contrastive_pretraining")
class Contrastive(GivesNoAnswers):
    """Recognising an image in another view of it."""

    Settings: ClassVar[type[TaskSettings]] = ContrastiveSpec
    label_kind: LabelKind = "none"
    network_kind: Kind = "image"
    loss_name = "NT-Xent"
    metric = "recognised"
    metric_name = "share of views whose image is recognised among 32"
    # Similarities are from -1 to 1, and divided by 0.01 at least.
    extra_metrics = (Metric("contrastive_loss", "NT-Xent of 32 images", bounds=(0.0, 250.0)),)
    averages = True
    cases_at_once = 32

    def __init__(self, spec: ContrastiveSpec, data: DataSpec) -> None:
        super().__init__(data, {})
        self.spec = spec

    @property
    def out_channels(self) -> int:
        """Numbers by which views are compared."""
        return self.spec.projection

    def input(self, augmentation: Augmentation) -> BatchSource:
        """Return two views of each image."""
        return TwoViews(self.data, augmentation, self.spec.least_part)

    def forward(self, network: Callable[..., Tensor], batch: Batch) -> Tensor:
        """Return the projections of all views, (batch, view, number); of images alone (batch, number)."""
        image = batch["image"]
        if image.ndim == 2 + self.data.dimensions:
            return network(image)
        found = network(image.flatten(0, 1))
        return found.view(*image.shape[:2], *found.shape[1:])

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean of NT-Xent over all views."""
        del batch
        return _losses(output, self.spec.temperature).mean()

    def scoring_preparation(self) -> Preparation:
        """Return how an image is read, as for training."""
        return self.input("none")

    def evaluate_case(self, network: nn.Module, case: Case, device: torch.device, detailed: bool) -> dict[str, float]:
        """Return the figures of one image alone, which says nothing: it is compared with none."""
        return self.evaluate_cases(network, [case], device, detailed)[0]

    def evaluate_cases(
        self, network: nn.Module, cases: Sequence[Case], device: torch.device, detailed: bool
    ) -> list[dict[str, float]]:
        """Return of each image whether its views recognise one another among all, and the loss."""
        del detailed
        if len(cases) < VIEWS:
            return [{} for _ in cases]
        images = torch.stack([self.prepared(case)["image"] for case in cases]).to(device)
        batch = self.input("light").change({"image": images}, Generator().manual_seed(0))
        output = self.forward(network, batch).float()
        similar, partner = _similarities(output)
        found = (similar.argmax(1) == partner).float().view(len(cases), VIEWS).mean(1)
        losses = _losses(output, self.spec.temperature).view(len(cases), VIEWS).mean(1)
        return [
            {"recognised": float(hit), "contrastive_loss": float(loss)} for hit, loss in zip(found, losses, strict=True)
        ]

    def summarise(self, outcomes: Sequence[tuple[str, dict[str, float]]]) -> Scores:
        """Return means over patients."""
        means = mean_over_patients(outcomes)
        return Scores(means.get("recognised"), {}, {n: v for n, v in means.items() if n == "contrastive_loss"})

    def picture(self, network: nn.Module, case: Case, device: torch.device) -> Picture:
        """Return the image's middle slice."""
        del network, device
        image = case.read_image()
        return middle_slice(image.values, image.affine, "")


def _similarities(output: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosine of each view with each other, and which view is of the same image.

    Args:
        output: (batch, view, number).

    Returns:
        (views, views), of a view with itself minus infinity; and (views,) int64.
    """
    views = functional.normalize(output.flatten(0, 1), dim=1)
    similar = views @ views.T
    similar = similar.masked_fill(torch.eye(len(views), dtype=torch.bool, device=views.device), float("-inf"))
    number = torch.arange(len(views), device=views.device)
    return similar, number + 1 - 2 * (number % VIEWS)


def _losses(output: Tensor, temperature: float) -> Tensor:
    """Return each view's cross-entropy, (views,)."""
    similar, partner = _similarities(output.float())
    return functional.cross_entropy(similar / temperature, partner, reduction="none")
