"""Pretraining without labels: hidden parts of images are filled in.

He et al. (CVPR 2022); for convolutional networks in 3D: Wald et al., Revisiting MAE pre-training for 3D medical image
segmentation (CVPR 2025). Cubes of a patch are set to zero, without sparse convolutions, and the squared error of their
voxels is the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from oncofed.data.augment import Augmentation, Batch
from oncofed.data.case import Case
from oncofed.data.inputs import BatchSource, Preparation
from oncofed.data.label_mapping import LabelKind
from oncofed.data.spec import DataSpec
from oncofed.data.unlabelled_patches import HiddenPatches, hidden_cubes
from oncofed.errors import SpecError
from oncofed.tasks.base import Task
from oncofed.tasks.metrics import Metric
from oncofed.tasks.patient_statistics import mean_over_patients
from oncofed.tasks.pictures import Picture, middle_slice
from oncofed.tasks.registry import register_task_type
from oncofed.tasks.scores import Scores
from oncofed.tasks.settings import TaskSettings

# Patches of a case that are scored, always the same ones.
_VIEWS = 4
# No image whose intensities are standardised has a greater error.
_LARGEST_ERROR = 1e6


class PretrainingSpec(TaskSettings):
    """Settings of pretraining."""

    type: Literal["pretraining"] = "pretraining"
    classes: dict[int, str] = Field(default_factory=dict, max_length=0, description="none: no label is read")
    hidden: float = Field(0.6, gt=0, lt=1, description="share of a patch that is hidden")
    cube: int = Field(8, ge=2, le=128, description="side of a hidden cube, or square, in voxels")


class GivesNoAnswers(Task[dict[str, float]]):
    """A task whose model serves others to start from."""

    def case_metrics(self, outcome: dict[str, float]) -> dict[str, float | str]:
        """Return the case's figures."""
        return dict(outcome)

    def _only_scores(self) -> SpecError:
        return SpecError(
            "this model was trained without labels, and gives no answers: a job starts from its weights (oncofed job "
            "run JOB --model model.safetensors)"
        )


@register_task_type("pretraining")
class Pretraining(GivesNoAnswers):
    """Filling in what is hidden of a patch."""

    Settings: ClassVar[type[TaskSettings]] = PretrainingSpec
    label_kind: LabelKind = "none"
    loss_name = "mean squared error of hidden voxels"
    metric = "explained"
    metric_name = "share of the hidden voxels' variance explained"
    extra_metrics = (
        Metric(
            "hidden_error",
            "squared error of hidden voxels",
            unit="squared units of the normalised image",
            bounds=(0.0, _LARGEST_ERROR),
        ),
    )
    averages = True

    def __init__(self, spec: PretrainingSpec, data: DataSpec) -> None:
        super().__init__(data, {})
        if spec.cube >= max(data.patch):
            raise SpecError(
                f"task.cube is {spec.cube} voxels, and a patch {list(data.patch)} (data.patch): all would be hidden, "
                "or nothing. Take a smaller cube"
            )
        self.spec = spec

    @property
    def out_channels(self) -> int:
        """Channels of the image."""
        return self.in_channels

    def input(self, augmentation: Augmentation) -> BatchSource:
        """Return patches with hidden cubes."""
        return HiddenPatches(self.data, augmentation, self.spec.hidden, self.spec.cube)

    def forward(self, network: Callable[..., Tensor], batch: Batch) -> Tensor:
        """Return what the network makes of the patches without their hidden voxels."""
        return network(batch["image"] * ~batch["hidden"] if "hidden" in batch else batch["image"])

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean squared error of hidden voxels.

        Each sample counts as much as the others. Of deep supervision the finest output is learned from alone.
        """
        image, hidden = batch["image"], batch["hidden"]
        finest = output if output.ndim == image.ndim else output[:, 0]
        axes = tuple(range(1, image.ndim))
        errors = ((finest.float() - image).square() * hidden).sum(axes)
        return (errors / (hidden.sum(axes) * image.shape[1])).mean()

    def scoring_preparation(self) -> Preparation:
        """Return how an image is read, as for training."""
        return self.input("none")

    def evaluate_case(self, network: nn.Module, case: Case, device: torch.device, detailed: bool) -> dict[str, float]:
        """Return the share of variance explained and the squared error, of hidden voxels of the case's patches."""
        del detailed
        generator = Generator().manual_seed(0)
        source, prepared = self.input("none"), self.prepared(case)
        image = torch.stack([source.draw(prepared, generator)["image"] for _ in range(_VIEWS)]).to(device)
        cubes = [hidden_cubes(self.data.patch, self.spec.hidden, self.spec.cube, generator) for _ in range(_VIEWS)]
        hidden = torch.stack(cubes).to(device)
        output = self.forward(network, {"image": image, "hidden": hidden})
        finest = output if output.ndim == image.ndim else output[:, 0]
        where = hidden.expand_as(image)
        truth, found = image[where].double(), finest[where].double()
        error, spread = float((truth - found).square().mean()), float(truth.var(correction=0))
        explained = max(0.0, 1 - error / spread) if spread > 0 else float("nan")
        return {"explained": explained, "hidden_error": min(error, _LARGEST_ERROR)}

    def summarise(self, outcomes: Sequence[tuple[str, dict[str, float]]]) -> Scores:
        """Return means over patients."""
        means = mean_over_patients(outcomes)
        errors = {name: value for name, value in means.items() if name == "hidden_error"}
        return Scores(means.get("explained"), {}, errors)

    def picture(self, network: nn.Module, case: Case, device: torch.device) -> Picture:
        """Return the image's middle slice, with how much of what was hidden is explained."""
        with torch.no_grad():
            found = self.evaluate_case(network.eval(), case, device, detailed=False)
        image = case.read_image()
        explained = found["explained"]
        caption = "" if np.isnan(explained) else f"{explained:.0%} of the hidden voxels' variance explained"
        return middle_slice(image.values, image.affine, caption)
