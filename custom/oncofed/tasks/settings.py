"""The section ``task`` of a job."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SerializeAsAny

from oncofed.data.feature_report import WantedFeatures
from oncofed.data.spec import DataSpec
from oncofed.data.targets import Target
from oncofed.plugins import read_section
from oncofed.settings import StrictModel


class TaskSettings(StrictModel):
    """Base of every task's settings; ``type`` names the task."""

    type: str
    classes: dict[int, str] = Field(description="label value -> name")

    @property
    def vocabulary(self) -> dict[int, str]:
        """Label values of a case, without a mask's background."""
        return self.classes

    @property
    def class_codes(self) -> dict[int, str]:
        """Label value -> its code with modifiers, such as SCT:10200004; of classes that have one."""
        return {}

    @property
    def named_targets(self) -> tuple[Target, ...]:
        """Named targets that the task learns; of masks and classes none."""
        return ()

    @property
    def least_batch(self) -> int:
        """Fewest samples that the loss needs at once; two where it compares them."""
        return 1

    @property
    def may_lack_classes(self) -> bool:
        """Whether masks may lack some of the classes."""
        return False

    @property
    def learns_of_empty(self) -> bool:
        """Whether a slide on which nothing was drawn shows that nothing is there."""
        return False

    @property
    def label_regions(self) -> dict[str, tuple[int, ...]]:
        """Regions that may name a dataset's label values.

        Name -> the job's values.
        """
        return {}

    @property
    def whole_patients(self) -> bool:
        """Whether all slides of a patient are one case."""
        return False

    def wanted_features(self, data: DataSpec) -> WantedFeatures | None:
        """Return which features of slides the job takes; None: it reads images.

        Args:
            data: the job's.
        """
        del data
        return None

    @property
    def figure_names(self) -> list[str]:
        """Names of the figures by class; see ``Scores.by_class``."""
        return list(self.classes.values())


def _settings_by_type(value: Any) -> TaskSettings:
    """Return the section as the settings of the task that it names."""
    from oncofed.tasks.registry import TASK_TYPES  # noqa: PLC0415 - tasks are made of their settings

    if isinstance(value, TaskSettings):
        return value
    settings: TaskSettings = read_section(TASK_TYPES, "type", value)
    return settings


TaskSection = Annotated[SerializeAsAny[TaskSettings], BeforeValidator(_settings_by_type)]
