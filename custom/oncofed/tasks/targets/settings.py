"""Settings of a task with named targets."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from oncofed.data.codes import require_apart
from oncofed.data.targets import Target
from oncofed.models.answers import TargetAnswer
from oncofed.tasks.settings import TaskSettings
from oncofed.tasks.targets.base import TargetSection, head_of


class TargetsSpec(TaskSettings):
    """Settings of a task with named targets.

    Its classes are the names of its figures: each target's, and those of its members.
    """

    targets: tuple[TargetSection, ...] = Field(max_length=32, description="what is learned")
    classes: dict[int, str] = Field(
        default_factory=dict, description="names of the figures; they follow from the targets"
    )

    @field_validator("targets")
    @classmethod
    def _have_names_of_their_own(cls, targets: tuple[Target, ...]) -> tuple[Target, ...]:
        # A least length of the field would be missed, too, where a target has a mistake.
        if not targets:
            raise ValueError("name at least one target")
        names = [target.name for target in targets]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two targets are called {twice[0]}; give each a name of its own")
        require_apart({target.name: target.meaning for target in targets if target.meaning}, tuple(names))
        return targets

    @model_validator(mode="after")
    def _classes_follow(self) -> Self:
        names = []
        for target in self.targets:
            names += [target.name, *(f"{target.name}.{member}" for member in target.members)]
        found = dict(enumerate(names))
        if self.classes not in ({}, found):
            raise ValueError("the classes of a job with targets follow from them: leave them out")
        object.__setattr__(self, "classes", found)  # the settings are frozen once they are made
        return self

    @property
    def vocabulary(self) -> dict[int, str]:
        """Empty: cases state targets, not label values."""
        return {}

    @property
    def least_batch(self) -> int:
        """The most that one of the targets needs."""
        return max(target.least_batch for target in self.targets)

    @property
    def named_targets(self) -> tuple[Target, ...]:
        """The targets."""
        return self.targets


def target_answers(settings: TargetsSpec) -> tuple[TargetAnswer, ...]:
    """Return how a network's outputs become the answers of a job's targets."""
    return tuple(head_of(target).target_answer for target in settings.targets)
