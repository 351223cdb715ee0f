"""Everything that a site needs to know to train: data, task, model, and how."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from torch import nn

from oncofed.data.spec import DataSpec, StrictModel
from oncofed.models import ModelSpec, build_network
from oncofed.tasks import SegmentationSpec


class TrainingSpec(StrictModel):
    """How a site trains in its turn."""

    steps_per_round: int = Field(50, ge=1, le=100_000, description="optimizer steps of each site in each round")
    batch_size: int = Field(2, ge=1, le=256, description="patches a step")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="sgd has Nesterov momentum 0.99, as nnU-Net's")
    learning_rate: float = Field(1e-3, gt=0, le=1, description="at the start of the run, after warm-up")
    schedule: Literal["cosine", "polynomial", "constant"] = Field(
        "cosine", description="of the learning rate over all rounds together; it does not restart with a round"
    )
    warmup_steps: int = Field(20, ge=0, le=10_000, description="steps of linear warm-up at the start of the run")
    weight_decay: float = Field(1e-4, ge=0, le=1)
    gradient_clip: float = Field(1.0, gt=0, le=1000, description="largest norm of the gradient (L2)")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 on CUDA GPUs that have it, else float16; float32 on the CPU"
    )
    augment: bool = Field(True, description="random rotations, scale, contrast and noise")


class Plan(StrictModel):
    """What one site trains, with ``rounds`` turns."""

    data: DataSpec
    task: SegmentationSpec
    model: ModelSpec = ModelSpec()
    training: TrainingSpec = TrainingSpec()
    rounds: int = Field(5, ge=1, le=10_000)
    seed: int = Field(1, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _patch_fits_network(self) -> Plan:
        divisor = self.model.divisor
        if any(side % divisor for side in self.data.patch):
            raise ValueError(
                f"patch {list(self.data.patch)} does not fit a network of {len(self.model.channels)} resolutions: "
                f"each side must be a multiple of {divisor}"
            )
        return self

    def build_network(self) -> nn.Module:
        """Return the plan's network with its initial weights, on the CPU."""
        classes = len(self.task.classes) + 1
        return build_network(self.model, len(self.data.channels), classes, self.seed, self.data.dimensions)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of one site over the whole run."""
        return self.rounds * self.training.steps_per_round
