"""A site's whole plan of training: data, task, model, settings."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from oncofed.data.augment import Augmentation
from oncofed.data.label_mapping import Supervision, name_key
from oncofed.data.spec import DataSpec
from oncofed.data.stain.columns import Template
from oncofed.errors import SpecError
from oncofed.models import ModelSpec, NetworkRequest, build_network
from oncofed.models.bundle import runs_alone, write_bundle, write_bundle_without_code
from oncofed.models.mil.own_loss import without_own_loss
from oncofed.models.networks import Declared
from oncofed.models.weights import WeightLayout, Weights, layout_of, weights_of
from oncofed.packs.extensions import Loss, Transform, find_loss, find_transforms
from oncofed.plugins import KINDS
from oncofed.settings import RenamedSettings, SettingError, StrictModel
from oncofed.tasks import DeclaredTask, PackedTaskSpec, Task, TaskSection, build_task
from oncofed.tasks.bundled import answer_of
from oncofed.tasks.targets.section import TABLE_TARGETS

# Models beside a job's own: of the table alone, and of a slide's tiles without attention, by their networks' names.
TABLE, POOLINGS = "table", ("mean_pooling", "max_pooling")
REFERENCES = (TABLE, *POOLINGS)


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


class Plan(StrictModel):
    """A site's plan of training over ``rounds`` rounds."""

    data: DataSpec
    task: TaskSection
    model: ModelSpec = ModelSpec()
    training: TrainingSpec = TrainingSpec()
    resources: ResourcesSpec = ResourcesSpec()
    rounds: int = Field(5, ge=1, le=10_000)
    seed: int = Field(1, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _batch_can_be_shared(self) -> Plan:
        gpus = self.resources.gpus
        if self.training.batch_size % gpus:
            raise SettingError(
                f"found {self.training.batch_size}, expected a multiple of the {gpus} GPUs (resources.gpus)",
                "training.batch_size",
                "resources.gpus",
            )
        return self

    @model_validator(mode="after")
    def _loss_has_enough_at_once(self) -> Plan:
        share = self.training.batch_size // self.resources.gpus
        at_once, least = min(self.training.micro_batch or share, share), self.task.least_batch
        if at_once < least:
            raise ValueError(
                f"the loss compares at least {least} samples, found {at_once} at once: make batch_size (of each GPU) "
                "larger, and micro_batch too, which is how many of a batch are compared"
            )
        if 0 < share % at_once < least:
            raise ValueError(
                f"the loss compares at least {least} samples, found {share % at_once} in the last part of a batch of "
                f"{share} in parts of {at_once}: choose a micro_batch that leaves none or {least} of batch_size (of "
                "each GPU)"
            )
        return self

    @model_validator(mode="after")
    def _network_fits(self) -> Plan:
        try:
            kind, given = self.build_task().network_kind, self.model.kind
        except SpecError as error:
            raise SettingError(str(error), "task") from None
        if given != kind:
            raise SettingError(
                f"the task {self.task.type} needs a network that gives {KINDS[kind]}; {self.model.network} gives "
                f"{KINDS[given]}. See: oncofed job networks",
                "model.network",
                "task.type",
            )
        divisor = self.model.divisor
        if any(side % divisor for side in self.data.patch):
            resolutions = f" of {len(self.model.feature_maps)} resolutions" if self.model.feature_maps else ""
            raise SettingError(
                f"{list(self.data.patch)} does not fit a {self.model.network}{resolutions}: each side must be a "
                f"multiple of {divisor}",
                "data.patch",
                "model.network",
            )
        return self

    @model_validator(mode="after")
    def _covariates_can_be_used(self) -> Plan:
        columns = self.data.covariates
        if columns and not self.task.named_targets:
            raise ValueError(
                f"covariates are for jobs with targets, found the task {self.task.type}: declare what it learns under "
                "targets, such as {name: outcome, kind: class, classes: [absent, present]}"
            )
        if self.model.kind == "table" and not columns:
            raise ValueError("the network table learns from columns of a table: name them in data.covariates")
        targets = {name_key(target.name) for target in self.task.named_targets}
        for column in columns:
            if name_key(column.name) in targets:
                raise ValueError(f"the covariate {column.name} is a target of the job: leave it out of data.covariates")
        return self

    @model_validator(mode="after")
    def _stain_changes_images(self) -> Plan:
        if self.data.stain.augment != "none" and self.model.kind in ("bag", "table"):
            raise SettingError(
                f"changes images at random at each step, and features of a slide are computed once: found "
                f"{self.data.stain.augment}, expected none. Normalise slides instead: data.stain.normalise",
                "data.stain.augment",
                "task.type",
            )
        return self

    @model_validator(mode="after")
    def _teacher_is_alone(self) -> Plan:
        if self.resources.gpus > 1 and self.build_task().learns_from_teacher:
            raise ValueError(
                f"task.distillation is learned on one GPU, found resources.gpus: {self.resources.gpus}. Make it 1, or "
                "leave distillation out"
            )
        return self

    @model_validator(mode="after")
    def _pack_has_what_is_named(self) -> Plan:
        transforms, loss = self.training.transforms, self.training.loss
        if transforms:
            self._require_brought(lambda pack: find_transforms(pack, transforms), transforms[0], "training.transforms")
        if loss and self.model.adds_loss:
            raise SettingError(
                f"found a loss of the pack beside {self.model.network}, which adds one of its own to the task's. "
                "Choose another network, or leave training.loss out",
                "training.loss",
                "model.network",
            )
        if loss:
            self._require_brought(lambda pack: find_loss(pack, loss), loss, "training.loss")
        return self

    def _require_brought(self, find: Callable[[str], object], name: str, place: str) -> None:
        """Refuse a name that the pack does not bring.

        A pack that is declared is not loaded here.
        """
        if not self.model.code:
            raise SettingError(f"{name} comes with a pack: name it in model.code (oncofed job pack)", place)
        if not self.model.declared:
            try:
                find(self.model.code)
            except SpecError as error:
                raise SettingError(str(error), place) from None

    def of_table_alone(self) -> Plan | None:
        """Return the same plan on the table alone; None where no image is seen beside a table.

        What the columns tell by themselves is what an image's model must beat.
        """
        if not self.data.covariates or self.model.kind == "table":
            return None
        values = self.model_dump()
        task = {"type": TABLE_TARGETS, "targets": values["task"]["targets"]}
        return Plan.model_validate({**values, "task": task, "model": {"network": "table"}})

    def _with_pooling(self, network: str) -> Plan:
        values = self.model_dump()
        values["model"] |= {"network": network, "arguments": {}, "declared": None}
        values["training"]["trainable"] = None  # of the job's own network
        return Plan.model_validate(values)

    def references(self) -> dict[str, Plan]:
        """Return the plans of models that the job's own must beat, by name, of ``REFERENCES``."""
        names = [name for name in POOLINGS if self.model.kind == "bag" and name != self.model.network]
        table = self.of_table_alone()
        return {name: self._with_pooling(name) for name in names} | ({TABLE: table} if table else {})

    def build_extensions(self) -> tuple[list[Transform], Loss | None]:
        """Return the pack's changes of batches and the loss.

        Raises:
            SpecError: it has none of that name, or is not loaded.
        """
        pack, loss = self.model.code or "", self.training.loss
        return find_transforms(pack, self.training.transforms), find_loss(pack, loss) if loss else None

    def build_task(self) -> Task[Any]:
        """Return the plan's task.

        Raises:
            SpecError: it comes with a pack, which has none of that name.
        """
        return build_task(self.task, self.data, self.model.code or "")

    def supervision(self) -> Supervision:
        """Return what the plan learns from.

        Raises:
            SpecError: the task comes with a pack, which has none of that name.
        """
        kind, task = self.build_task().label_kind, self.task
        return Supervision(
            kind=kind,
            classes=task.vocabulary,
            targets=task.named_targets,
            partial=task.may_lack_classes,
            regions=task.label_regions,
            whole_patients=task.whole_patients,
        )

    @property
    def network_request(self) -> NetworkRequest:
        """The arguments of the plan's network."""
        task = self.build_task()
        data = self.data
        return NetworkRequest(
            self.model,
            task.in_channels,
            task.out_channels,
            data.dimensions,
            data.patch,
            data.covariates,
            template=Template.of(data.stain.columns, {}) if data.stain.columns else None,
        )

    def write_bundle(self, folder: Path, title: str, weights: Weights, job: Mapping[str, Any] | None = None) -> Path:
        """Write the model as a MONAI bundle; return its folder.

        That of a model which MONAI alone cannot run holds the weights, and gives no answers; see ``bundle_lacks``.

        Args:
            folder: where the bundle goes.
            title: of the model.
            weights: of the plan's network.
            job: as ``job.yaml`` holds it; None: a job of this plan.
        """
        classes, job = self.task.classes, self._as_job(title) if job is None else job
        if lacks := self.bundle_lacks:
            return write_bundle_without_code(folder, title, self.model.code or "", classes, weights, lacks, job)
        answer = answer_of(self.task, self.data)
        return write_bundle(folder, title, self.network_request, self.data, classes, weights, answer, job)

    @property
    def bundle_lacks(self) -> str:
        """What the plan's model needs beyond MONAI, as a sentence without its full stop; empty: its bundle answers."""
        if self.model.code:
            return f"it needs the pack {self.model.code[:12]}…, whose code no bundle holds"
        if self.data.covariates:
            return "no bundle reads a table"
        if self.build_task().reads_slides:
            return (
                "MONAI's readers give no slide's pixels at the job's resolution in its scanner's colours, and it has "
                "nothing that finds tissue, by which pixels are scaled, or joins a slide's windows strip by strip"
            )
        if self.data.stain.columns:
            return "no bundle normalises stains to the template that the sites agreed on"
        if self.model.kind == "boxes":
            return (
                "MONAI's detector takes the mean of overlapping windows' outputs, and here each window answers for the "
                "objects of its own part"
            )
        return "" if runs_alone(self.network_request) else f"MONAI has no head {self.model.network} over tiles"

    def _as_job(self, title: str) -> dict[str, Any]:
        """Return the plan as ``job.yaml`` holds a job."""
        values = self.model_dump(mode="json", by_alias=True)
        name = re.sub(r"[^a-z0-9_-]+", "_", title.lower()).strip("_-")[:63] or "model"
        return {"schema": 1, "name": name, "title": title, **values, "rounds": {"number": self.rounds}}

    def build_network(self) -> nn.Module:
        """Return the network with initial weights, on the CPU.

        Raises:
            SpecError: no weight fits the patterns of those that are to be trained.
        """
        network = build_network(self.network_request, self.seed)
        patterns = self.training.trainable
        if patterns:
            fits = {n: any(fnmatch.fnmatch(n, p) for p in patterns) for n, _ in network.named_parameters()}
            if not any(fits.values()):
                raise SpecError(
                    f"training.trainable: found {list(patterns)}, which fits no weight of {self.model.network}; it has "
                    f"{', '.join(list(fits)[:4])}, …"
                )
            for name, value in network.named_parameters():
                value.requires_grad_(fits[name])
        return network

    def declared(self) -> Plan:
        """Return the plan with its pack's network and task declared.

        For processes that do not run the pack.
        """
        network = Declared.of(self.model.kind, self.model.divisor, layout_of(self.build_network()))
        values = self.model_dump()
        values["model"]["declared"] = network.model_dump()
        if isinstance(self.task, PackedTaskSpec):
            values["task"]["declared"] = DeclaredTask.of(self.build_task()).model_dump()
        return Plan.model_validate(values)

    def layout(self) -> WeightLayout:
        """Return the layout of the network's weights.

        A pack's as the job declares it.
        """
        return self.model.declared.layout() if self.model.declared else layout_of(self.build_network())

    def initial_weights(self) -> Weights:
        """Return the weights that the plan's seed gives, by name."""
        return {name: value.clone() for name, value in weights_of(self.build_network()).items()}

    def try_network(self) -> nn.Module:
        """Build the network, and try it on a patch.

        The patch is of noise.

        Raises:
            SpecError: the network cannot be built, or does not take the job's patch.
        """
        network, task = self.build_network(), self.build_task()
        shape = (1, 2, task.in_channels) if task.network_kind == "bag" else (1, task.in_channels, *self.data.patch)
        batch = {
            "image": torch.randn(shape),
            "bags": torch.randn(shape),
            "there": torch.ones(shape[:2], dtype=torch.bool),
            "table": torch.zeros(1, len(self.data.covariates)),
        }
        try:
            with torch.no_grad():
                output = task.forward(network.train(), batch)
        except Exception as error:  # noqa: BLE001 - networks raise many types for an input that they do not take
            raise SpecError(
                f"{self.model.network} does not take a patch of {list(self.data.patch)} (data.patch): "
                f"{str(error).splitlines()[0]}"
            ) from None
        expected = (1, task.out_channels, *(self.data.patch if task.network_kind == "dense" else ()))
        if task.network_kind == "bag":
            output, _ = without_own_loss(output, task.out_channels)
        if task.network_kind == "boxes":
            output = output[..., 0]  # of the first anchor: how many there are is the network's own choice
        found = tuple(output[:, 0].shape if output.ndim > len(expected) else output.shape)
        if found != expected:
            raise SpecError(f"{self.model.network} answers with the shape {found}, the task expects {expected}")
        return network

    @property
    def total_steps(self) -> int:
        """Optimizer steps of one site over the whole run."""
        return self.rounds * self.training.steps_per_round
