"""What is learned. A task ties loss, metric, inference and pictures together, and knows nothing of federation."""

from typing import Annotated, Any

from pydantic import Field

from oncofed.data.spec import DataSpec
from oncofed.settings import StrictModel
from oncofed.tasks.base import Evaluation, Scores, Task
from oncofed.tasks.classification import Classification, ClassificationSpec
from oncofed.tasks.objects import Objects, ObjectsSpec
from oncofed.tasks.segmentation import Segmentation, SegmentationSpec
from oncofed.tasks.slides import SlideClassification, SlideClassificationSpec

TaskSpec = Annotated[
    SegmentationSpec | ObjectsSpec | ClassificationSpec | SlideClassificationSpec, Field(discriminator="type")
]

_TASKS: dict[type[StrictModel], Any] = {
    SegmentationSpec: Segmentation,
    ObjectsSpec: Objects,
    ClassificationSpec: Classification,
    SlideClassificationSpec: SlideClassification,
}


# Type of a task, as a job writes it -> its settings.
TASK_SPECS: dict[str, type[StrictModel]] = {spec.model_fields["type"].default: spec for spec in _TASKS}


def build_task(spec: TaskSpec, data: DataSpec) -> Task[Any]:
    """Return the task of a job.

    Args:
        spec: its section ``task``.
        data: its section ``data``.
    """
    task: Task[Any] = _TASKS[type(spec)](spec, data)
    return task


__all__ = [
    "TASK_SPECS",
    "Classification",
    "ClassificationSpec",
    "Evaluation",
    "Objects",
    "ObjectsSpec",
    "Scores",
    "Segmentation",
    "SegmentationSpec",
    "SlideClassification",
    "SlideClassificationSpec",
    "Task",
    "TaskSpec",
    "build_task",
]
