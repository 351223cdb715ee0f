"""Tasks: loss, metric, inference and pictures in one object.

They know nothing of federation.
"""

from typing import Annotated, Any

from pydantic import Field

from oncofed.data.spec import DataSpec
from oncofed.plugins import register_task
from oncofed.settings import StrictModel
from oncofed.tasks.base import Task
from oncofed.tasks.classification import Classification, ClassificationSpec
from oncofed.tasks.metrics import Metric
from oncofed.tasks.objects import Objects, ObjectsSpec
from oncofed.tasks.packed import DeclaredTask, PackedTaskSpec, build_packed_task
from oncofed.tasks.scores import Evaluation, Scores
from oncofed.tasks.segmentation import Segmentation, SegmentationSpec
from oncofed.tasks.slides import SlideClassification, SlideClassificationSpec

TaskSpec = Annotated[
    SegmentationSpec | ObjectsSpec | ClassificationSpec | SlideClassificationSpec | PackedTaskSpec,
    Field(discriminator="type"),
]

_TASKS: dict[type[StrictModel], Any] = {
    SegmentationSpec: Segmentation,
    ObjectsSpec: Objects,
    ClassificationSpec: Classification,
    SlideClassificationSpec: SlideClassification,
}


# Type of a task, as a job writes it -> its settings.
_SPECS: tuple[type[StrictModel], ...] = (*_TASKS, PackedTaskSpec)
TASK_SPECS: dict[str, type[StrictModel]] = {spec.model_fields["type"].default: spec for spec in _SPECS}


def build_task(spec: TaskSpec, data: DataSpec, pack: str = "") -> Task[Any]:
    """Return the task of a job.

    Args:
        spec: its section ``task``.
        data: its section ``data``.
        pack: digest of the pack that the job brings; empty: none.

    Raises:
        SpecError: the pack's task is not there, or cannot be made so.
    """
    if isinstance(spec, PackedTaskSpec):
        return build_packed_task(spec, data, pack)
    task: Task[Any] = _TASKS[type(spec)](spec, data)
    return task


def metrics_that_may_leave(spec: StrictModel | None = None) -> tuple[Metric, ...]:
    """Return the extra metrics that a task's installed class declares.

    Args:
        spec: section ``task`` of a job; of a pack, which nobody installed, and of None those of any installed task.
    """
    own = _TASKS.get(type(spec)) if spec else None
    kinds = [own] if own else list(_TASKS.values())
    return tuple(dict.fromkeys(metric for kind in kinds for metric in kind.extra_metrics))


__all__ = [
    "TASK_SPECS",
    "Classification",
    "ClassificationSpec",
    "DeclaredTask",
    "Evaluation",
    "Metric",
    "Objects",
    "ObjectsSpec",
    "PackedTaskSpec",
    "Scores",
    "Segmentation",
    "SegmentationSpec",
    "SlideClassification",
    "SlideClassificationSpec",
    "Task",
    "TaskSpec",
    "build_task",
    "metrics_that_may_leave",
    "register_task",
]
