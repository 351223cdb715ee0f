"""Tasks: loss, metric, inference and pictures together.

They do not depend on federation.
"""

from oncofed.plugins import register_task
from oncofed.tasks.base import Task
from oncofed.tasks.classification import Classification, ClassificationSpec
from oncofed.tasks.metrics import Metric
from oncofed.tasks.objects import Objects, ObjectsSpec
from oncofed.tasks.packed import DeclaredTask, PackedTaskSpec
from oncofed.tasks.registry import (
    attention_may_leave,
    build_task,
    metrics_that_may_leave,
    register_task_type,
    sums_that_may_leave,
    task_class,
    task_types,
)
from oncofed.tasks.scores import Evaluation, Scores
from oncofed.tasks.segmentation import Segmentation, SegmentationSpec
from oncofed.tasks.settings import TaskSection, TaskSettings
from oncofed.tasks.slides import SlideClassification, SlideClassificationSpec

__all__ = [
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
    "TaskSection",
    "TaskSettings",
    "attention_may_leave",
    "build_task",
    "metrics_that_may_leave",
    "register_task",
    "register_task_type",
    "sums_that_may_leave",
    "task_class",
    "task_types",
]
