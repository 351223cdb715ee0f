"""Targets: outcomes, findings, grades and values that a dataset states of its cases.

A job declares targets (``oncofed.tasks.targets``), a dataset which of them it has. What nobody looked for in a case is
unknown, and never negative.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from oncofed.errors import DataError

TargetKind = Literal["class", "labels", "grade", "value", "survival"]
# As a model takes it: the numbers of one target of one case; NaN where unknown.
Encoded = tuple[float, ...]


class FollowUp(BaseModel):
    """How long a patient was followed, and whether the event came.

    Attributes:
        time: from the start of follow-up, in the unit that the dataset declares.
        event: it came at ``time``; false: by then it had not (censored).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    time: StrictFloat | StrictInt
    event: StrictBool


# A class's or grade's name, a value, finding -> whether it holds (findings left out were not looked for), a follow-up.
TargetValue = StrictStr | StrictFloat | StrictInt | FollowUp | dict[StrictStr, StrictBool]


class DatasetTarget(BaseModel):
    """A target as a dataset declares it in ``dataset.json``."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    kind: TargetKind
    unit: str = Field("", description="of a value, or of the times of a survival target, such as days")
    names: list[str] = Field(
        default_factory=list, description="classes, findings, or grades from the lowest to the highest"
    )

    @model_validator(mode="after")
    def _times_have_a_unit(self) -> DatasetTarget:
        if self.kind == "survival" and not self.unit:
            raise ValueError("a survival target needs the unit of its times: days, weeks, months or years")
        return self


class Target(Protocol):
    """What the data side needs to know of a job's target."""

    @property
    def name(self) -> str:
        """Name, as job and dataset call it."""

    @property
    def kind(self) -> str:
        """A ``TargetKind``."""

    @property
    def names(self) -> tuple[str, ...]:
        """Classes, findings or grades that it names; of other kinds none."""

    @property
    def width(self) -> int:
        """Numbers that encode it."""

    @property
    def question(self) -> dict[str, Any]:
        """What is asked: its settings, without how much it counts in training."""

    def encode(self, stated: TargetValue, declared: DatasetTarget) -> Encoded:
        """Return a case's value as the job's numbers.

        Args:
            stated: by the case.
            declared: by its dataset: unit and names.

        Raises:
            DataError: the value is outside the target's scale, range or unit.
        """


def unknown(target: Target) -> Encoded:
    """Return the numbers of a target that a case does not state."""
    return (float("nan"),) * target.width


def is_known(encoded: Encoded) -> bool:
    """Return whether any number of a target is known."""
    return any(value == value for value in encoded)  # noqa: PLR0124 - NaN differs from itself


def declared_target(targets: dict[str, DatasetTarget], labels: dict[str, str], target: Target) -> DatasetTarget | None:
    """Return a dataset's declaration of a job's target.

    A dataset of images with one class each states a target of kind class or grade without declaring it.

    Args:
        targets: that the dataset declares.
        labels: its label value -> name.
        target: of the job.

    Raises:
        DataError: it declares another kind under that name.
    """
    found = targets.get(target.name)
    if found is None:
        if target.kind not in ("class", "grade") or targets or not labels:
            return None
        return DatasetTarget(kind="class", names=[labels[value] for value in sorted(labels, key=float)])
    alike = {"class", "grade"}
    if found.kind != target.kind and not {found.kind, target.kind} <= alike:
        raise DataError(
            f"target {target.name} is of kind {found.kind} in the dataset, expected {target.kind}. Register the table "
            f"again with --targets {target.name}={target.kind}, or rename the job's target"
        )
    return found


def stated_value(
    targets: dict[str, TargetValue], label: str | int | None, labels: dict[str, str], target: Target
) -> TargetValue | None:
    """Return what an entry states of a target, or None.

    Args:
        targets: of the entry.
        label: of the entry; the number of a class stands for its name.
        labels: the dataset's label value -> name.
        target: of the job.
    """
    found = targets.get(target.name)
    if found is None and not targets and isinstance(label, int) and target.kind in ("class", "grade"):
        return labels.get(str(label), str(label))
    return found
