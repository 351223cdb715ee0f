"""The section ``task`` of a job."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny
from pydantic_core import PydanticCustomError

from oncofed.errors import SpecError
from oncofed.settings import StrictModel


class TaskSettings(StrictModel):
    """Base of every task's settings; ``type`` names the task."""

    type: str
    classes: dict[int, str] = Field(description="label value -> name")

    @property
    def vocabulary(self) -> dict[int, str]:
        """Label values of a case, without a mask's background."""
        return self.classes


def _settings_by_type(value: Any) -> TaskSettings:
    """Return the section as the settings of the task that it names."""
    from oncofed.tasks.registry import task_class, task_types  # noqa: PLC0415 - tasks are made of their settings

    if isinstance(value, TaskSettings):
        return value
    if not isinstance(value, dict) or "type" not in value:
        raise ValueError(f"a task needs a type; known: {', '.join(task_types())}")
    try:
        settings: type[TaskSettings] = task_class(value["type"]).Settings
    except SpecError:
        found = {"type": repr(value["type"]), "known": ", ".join(task_types())}
        raise PydanticCustomError(
            "unknown_task", "found the type {type}, which is not known; known: {known}", found
        ) from None
    return settings.model_validate(value)


TaskSection = Annotated[SerializeAsAny[TaskSettings], BeforeValidator(_settings_by_type)]
