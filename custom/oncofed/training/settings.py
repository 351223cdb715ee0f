"""The sections of a job that say how a site trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from oncofed.data.augment import Augmentation
from oncofed.settings import RenamedSettings, StrictModel


class TrainingSpec(RenamedSettings):
    """How a site trains in a round."""

    section: ClassVar[str] = "training"
    renamed: ClassVar[Mapping[str, str]] = {"checkpointing": "recompute_activations"}

    steps_per_round: int = Field(50, ge=1, le=100_000, description="optimizer steps of each site in each round")
    batch_size: int = Field(2, ge=1, le=4096, description="patches, images or slides a step")
    micro_batch: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="of these at once, gradients are added up; null: all. Halved where memory is short",
    )
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="sgd has Nesterov's momentum")
    momentum: float = Field(0.99, ge=0, lt=1, description="of sgd; 0.99 is nnU-Net's")
    optimizer_state: Literal["kept", "reset"] = Field(
        "kept",
        description="momentum and the like from a round to the next: kept at the site, or started anew with each model",
    )
    learning_rate: float = Field(1e-3, gt=0, le=1, description="at the start of the run, after warm-up")
    schedule: Literal["cosine", "polynomial", "constant"] = Field(
        "cosine", description="of the learning rate over all rounds together; it does not restart with a round"
    )
    warmup_steps: int = Field(20, ge=0, le=10_000, description="steps of linear warm-up at the start of the run")
    weight_decay: float = Field(1e-4, ge=0, le=1, description="of the optimizer")
    ema_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="a running mean of the weights over a site's steps, such as 0.99, is scored, sent and kept in "
        "place of the last step's weights; each received model begins it anew; 0: none",
    )
    gradient_clip: float = Field(1.0, gt=0, le=1000, description="largest norm of the gradient (L2)")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 on CUDA GPUs that have it, else float16; float32 on the CPU"
    )
    augmentation: Augmentation = Field(
        "light", description="light: small turns, scale, noise, contrast; full: nnU-Net's set, for long runs"
    )
    compile: Literal["auto", "always", "never"] = Field(
        "auto",
        description="torch.compile; auto, on CUDA GPUs: with deterministic true in runs of 8,000 steps and more alone, "
        "with false where measured steps say that it saves more than it takes, and then also as CUDA graphs",
    )
    recompute_activations: bool = Field(
        False,
        description="blocks of the network are computed again in the backward pass: less memory, a third more time",
    )
    deterministic: bool = Field(
        True, description="the same bits again on the same machine; false lets cuDNN look for its fastest kernels"
    )
    trainable: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="patterns of the weights that are trained, such as '*head*'; the others stay and do not travel",
    )
    transforms: tuple[str, ...] = Field(
        (), max_length=16, description="changes of training batches that the pack brings (model.code), in this order"
    )
    loss: str | None = Field(None, description="a loss that the pack brings, in place of the task's own")
    most_skipped: int = Field(
        10, ge=0, le=10_000, description="steps of a turn that may be left out because their loss was not finite"
    )


class ResourcesSpec(StrictModel):
    """A site's resources for a job."""

    gpus: int = Field(1, ge=1, le=64, description="GPUs of each site that train together, each a share of every batch")
    gpu_memory_gb: int | None = Field(
        None, ge=1, le=1024, description="GiB that each needs; null: a site without a GPU may train on its CPU"
    )
