"""The known types of tasks: a module each in this package, and those of installed packages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oncofed.data.spec import DataSpec
from oncofed.plugins import Registry
from oncofed.tasks.base import Task
from oncofed.tasks.metrics import Metric
from oncofed.tasks.pooled_target import NO_TARGETS, TargetSums
from oncofed.tasks.settings import TaskSettings

TASK_TYPES: Registry[type[Task[Any]]] = Registry(
    "task", package="oncofed.tasks", group="oncofed.task_types", packs=False
)

register_task_type = TASK_TYPES.register


def task_class(type_: str) -> type[Task[Any]]:
    """Return the class of a type of task.

    Raises:
        SpecError: there is none of that name.
    """
    return TASK_TYPES.find(type_)


def task_types() -> list[str]:
    """Return the types of all tasks, sorted."""
    return sorted(TASK_TYPES.names())


def build_task(settings: TaskSettings, data: DataSpec, pack: str = "") -> Task[Any]:
    """Return the task of a job.

    Args:
        settings: its section ``task``.
        data: its section ``data``.
        pack: digest of the pack that the job brings; empty: none.

    Raises:
        SpecError: the pack's task is not there, or cannot be made so.
    """
    return task_class(settings.type).build(settings, data, pack)


def metrics_that_may_leave(settings: TaskSettings | None = None) -> tuple[Metric, ...]:
    """Return the extra metrics that a task's installed class declares.

    Args:
        settings: section ``task`` of a job; of a pack's task and of None those of any task of this package.
    """
    task = task_class(settings.type) if settings else None
    own = [kind for kind in map(task_class, task_types()) if kind.__module__.startswith(f"{__package__}.")]
    if settings and task and task.is_installed:
        return task.declared_metrics(settings)
    return tuple(dict.fromkeys(metric for kind in own for metric in kind.extra_metrics))


def attention_may_leave(settings: TaskSettings) -> bool:
    """Return whether sums of how far answers move without attended tiles may leave; see ``deletion``.

    Args:
        settings: section ``task`` of a job; only an installed class declares them.
    """
    task = task_class(settings.type)
    return task.is_installed and task.network_kind == "bag"


def sums_that_may_leave(settings: TaskSettings) -> Mapping[str, TargetSums]:
    """Return what checks a job's sums, by target.

    Args:
        settings: its section ``task``; only an installed class declares targets.
    """
    task = task_class(settings.type)
    return task.declared_sums(settings) if task.is_installed else NO_TARGETS
