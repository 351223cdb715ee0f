"""A site's whole plan of training: data, task, model, settings."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import nn

from oncofed.data.harmonization.spec import COLUMNS, FEATURES
from oncofed.data.harmonization.sums import SumsForm
from oncofed.data.label_mapping import Supervision
from oncofed.data.spec import DataSpec
from oncofed.data.stain.columns import Template
from oncofed.errors import SpecError
from oncofed.models import ModelSpec, NetworkRequest, build_network
from oncofed.models.adapters import add_adapters, is_adapter, merged
from oncofed.models.bundle import runs_alone, write_bundle, write_bundle_without_code
from oncofed.models.mil.own_loss import without_own_loss
from oncofed.models.model_spec import Declared
from oncofed.models.weights import WeightLayout, Weights, layout_of, weights_of
from oncofed.packs.extensions import Loss, Transform, find_loss, find_transforms
from oncofed.privacy.settings import PrivacySpec
from oncofed.settings import StrictModel
from oncofed.tasks import DeclaredTask, PackedTaskSpec, Task, TaskSection, build_task
from oncofed.tasks.bundled import answer_of
from oncofed.tasks.targets.section import TABLE_TARGETS
from oncofed.training.plan_checks import CHECKS
from oncofed.training.private_plan import require_no_mixing
from oncofed.training.settings import ResourcesSpec, TrainingSpec

# Models beside a job's own: of the table alone, and of a slide's tiles without attention, by their networks' names.
TABLE, POOLINGS = "table", ("mean_pooling", "max_pooling")
REFERENCES = (TABLE, *POOLINGS)


class Plan(StrictModel):
    """A site's plan of training over ``rounds`` rounds."""

    data: DataSpec
    task: TaskSection
    model: ModelSpec = ModelSpec()
    training: TrainingSpec = TrainingSpec()
    resources: ResourcesSpec = ResourcesSpec()
    privacy: PrivacySpec = PrivacySpec()
    rounds: int = Field(5, ge=1, le=10_000)
    seed: int = Field(1, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Plan:
        for check in CHECKS:
            check(self)
        return self

    def with_own_data(self) -> Plan:
        """Return the same plan, whose data come to know a template and a site's shift apart from this one's."""
        return self.model_copy(update={"data": self.data.model_copy()})

    def of_table_alone(self) -> Plan | None:
        """Return the same plan on the table alone; None where no image is seen beside a table.

        What the columns tell by themselves is what an image's model must beat.
        """
        if not self.data.covariates or self.model.kind == "table":
            return None
        values = self.model_dump()
        names = {target.name for target in self.task.named_targets}
        told = [target for target in values["task"]["targets"] if target["name"] in names]
        values["data"]["harmonization"] |= {"features": "none", "intensity": "none"}
        if not values["data"]["harmonization"]["columns"]:
            values["data"]["harmonization"] = {}
        task = {"type": TABLE_TARGETS, "targets": told}
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
            codes=task.class_codes,
            targets=task.named_targets,
            partial=task.may_lack_classes,
            regions=task.label_regions,
            whole_patients=task.whole_patients,
            of_empty=task.learns_of_empty,
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
            pooled=task.pooled_channels,
            harmonized=self.sums_form.sizes,
            preserved=self.sums_form.covariates,
            landmarks=len(data.intensity_columns),
        )

    @property
    def sums_form(self) -> SumsForm:
        """What the sums look like by which sites agree for ComBat; empty of a job without."""
        groups, columns = self.data.harmonization.groups, self.data.combat_columns
        sizes = {COLUMNS: len(columns.moved)} if COLUMNS in groups else {}
        if FEATURES in groups:
            sizes[FEATURES] = self.build_task().in_channels
        return SumsForm(sizes, len(columns.preserved_names))

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
        if self.model.adapter:
            # MONAI knows no adapters: they are added to the layers that they belong to.
            weights, job = merged(weights), {**job, "model": {**job["model"], "adapter": None}}
        if lacks := self.bundle_lacks:
            return write_bundle_without_code(folder, title, self.model.code or "", classes, weights, lacks, job)
        answer = answer_of(self.task, self.data)
        return write_bundle(folder, title, self.network_request, self.data, classes, weights, answer, job)

    @property
    def bundle_lacks(self) -> str:
        """What the plan's model needs beyond MONAI, as a sentence without its full stop; empty: its bundle answers."""
        if self.model.code:
            return f"it needs the pack {self.model.code[:12]}…, whose code no bundle holds"
        if self.build_task().label_kind == "none":
            return "it was trained without labels, for a job that starts from its weights"
        if self.data.covariates:
            return "no bundle reads a table"
        if self.build_task().reads_slides:
            return (
                "MONAI's readers give no slide's pixels at the job's resolution in its scanner's colours, and it has "
                "nothing that finds tissue, by which pixels are scaled, or joins a slide's windows strip by strip"
            )
        if self.data.stain.normalise != "none":
            return "no bundle normalises stains to the template that the sites agreed on"
        if self.data.harmonization.intensity != "none":
            return "no bundle maps intensities to the template that the sites agreed on"
        if self.data.harmonization.groups:
            return "no bundle tells a site's own shift and scale (data.harmonization)"
        if self.build_task().pooled_channels:
            return "what is drawn beside other targets takes code of oncofed, which no bundle holds"
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
        if self.privacy.differential_privacy:
            require_no_mixing(network)
        if self.model.adapter:
            add_adapters(network, self.model.adapter, self.seed)
        patterns = self.training.trainable
        if patterns:
            fits = {n: any(fnmatch.fnmatch(n, p) for p in patterns) for n, _ in network.named_parameters()}
            if not any(fits.values()):
                raise SpecError(
                    f"training.trainable: found {list(patterns)}, which fits no weight of {self.model.network}; it has "
                    f"{', '.join(list(fits)[:4])}, …"
                )
            for name, value in network.named_parameters():
                value.requires_grad_(fits[name] or is_adapter(name))
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
            "whole": torch.randn(shape),
        }
        try:
            with torch.no_grad():
                output = task.maps(task.forward(network.train(), batch))
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
