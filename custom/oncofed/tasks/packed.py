"""A task from a pack.

It is the pack's class where its code runs, and the job's declaration of it elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NoReturn

import torch
from pydantic import Field
from torch import Tensor, nn

from oncofed.data.augment import Augmentation, Batch
from oncofed.data.case import Case
from oncofed.data.inputs import BatchSource
from oncofed.data.label_mapping import LabelKind
from oncofed.data.spec import DataSpec
from oncofed.errors import SpecError
from oncofed.plugins import TASKS, Kind
from oncofed.settings import StrictModel
from oncofed.tasks.base import Task
from oncofed.tasks.pictures import Picture
from oncofed.tasks.registry import register_task_type
from oncofed.tasks.scores import Scores
from oncofed.tasks.settings import TaskSettings


class DeclaredTask(StrictModel):
    """A pack's task, as a job declares it.

    For processes that do not run the pack: the server, and a site's outbound filter.
    """

    metric: str = Field(pattern=r"^[a-z][a-z0-9_]{0,39}$", description="name of its score, for programs")
    metric_name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _-]{0,39}$", description="the same for people")
    label_kind: LabelKind = Field(description="what a case is labelled with")
    network_kind: Kind = Field(description="kind of networks that it trains")

    @classmethod
    def of(cls, task: Task[Any]) -> DeclaredTask:
        """Return the declaration of a task."""
        return cls(
            metric=task.metric,
            metric_name=task.metric_name,
            label_kind=task.label_kind,
            network_kind=task.network_kind,
        )


class PackedTaskSpec(TaskSettings):
    """Settings of a task from a pack."""

    type: Literal["pack"] = "pack"
    name: str = Field(description="of the task, as the pack registers it (model.code)")
    classes: dict[Annotated[int, Field(ge=0, le=255)], str] = Field(
        min_length=1, description="label value -> name, without a mask's background (0)"
    )
    arguments: dict[str, float | int | str | bool | list[float]] = Field(
        default_factory=dict, max_length=100, description="settings of the task, as the pack names them"
    )
    declared: DeclaredTask | None = Field(None, description="what the task is like; filled in on export")


@register_task_type("pack")
class PackedTask(Task[Any]):
    """A task whose code does not run in this process."""

    Settings = PackedTaskSpec
    is_installed = False

    @classmethod
    def build(cls, settings: PackedTaskSpec, data: DataSpec, pack: str) -> Task[Any]:
        """Return a pack's task, or the job's declaration of it.

        Args:
            settings: the job's section ``task``.
            data: its section ``data``.
            pack: digest of the pack.

        Raises:
            SpecError: the pack has no such task, or cannot build it.
        """
        maker = TASKS.get(settings.name, pack)
        if maker is None and settings.declared:
            return cls(settings, data, settings.declared)
        if maker is None:
            known = ", ".join(TASKS.names(pack)) or "none"
            where = (
                f"the pack {pack[:12]}… has no task {settings.name!r}; it has {known}"
                if pack
                else "no pack (model.code)"
            )
            raise SpecError(f"task {settings.name!r} comes with a pack: {where}")
        try:
            task = maker(settings, data)
        except Exception as error:  # the pack's code may raise anything
            raise SpecError(f"the task {settings.name} cannot be made: {type(error).__name__}: {error}") from error
        if not isinstance(task, Task):
            raise SpecError(
                f"the task {settings.name} is a {type(task).__name__}, expected a subclass of oncofed.tasks.Task"
            )
        return task

    def __init__(self, spec: PackedTaskSpec, data: DataSpec, declared: DeclaredTask) -> None:
        super().__init__(data, spec.classes)
        self.metric, self.metric_name = declared.metric, declared.metric_name
        self.label_kind, self.network_kind = declared.label_kind, declared.network_kind
        self._name = spec.name

    @property
    def out_channels(self) -> int:
        """Not known here."""
        self._refuse()

    def input(self, augmentation: Augmentation) -> BatchSource:
        """Refuse."""
        self._refuse()

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Refuse."""
        self._refuse()

    def evaluate_case(self, network: nn.Module, case: Case, device: torch.device, detailed: bool) -> Any:
        """Refuse."""
        self._refuse()

    def summarise(self, outcomes: Sequence[tuple[str, Any]]) -> Scores:
        """Refuse."""
        self._refuse()

    def case_metrics(self, outcome: Any) -> dict[str, float | str]:
        """Refuse."""
        self._refuse()

    def picture(self, network: nn.Module, case: Case, device: torch.device) -> Picture:
        """Refuse."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise SpecError(f"the task {self._name} comes with a pack, which is not loaded here")
