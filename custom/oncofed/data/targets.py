"""Targets: outcomes, findings, grades and values that a dataset states of its cases.

A job declares targets (``oncofed.tasks.targets``), a dataset which of them it has. What nobody looked for in a case is
unknown, and never negative.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_serializer,
    model_validator,
)

from oncofed.data.codes import Code, is_same, led_by_codes
from oncofed.data.label_names import name_key
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
    code: Code = Field("", description="what it is, as SCHEME:CODE, such as LN:21889-1 (size of a tumour)")
    codes: dict[str, Code] = Field(default_factory=dict, description="name -> code of what it means")
    # Of a declaration that was matched with a job's: its name in the dataset, and the key of a name -> the job's name.
    _called: str = PrivateAttr("")
    _becomes: Mapping[str, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _times_have_a_unit(self) -> DatasetTarget:
        if self.kind == "survival" and not self.unit:
            raise ValueError("a survival target needs the unit of its times: days, weeks, months or years")
        return self

    @model_serializer(mode="wrap")
    def _without_empty_codes(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = write(self)
        return {name: value for name, value in values.items() if value or name not in ("code", "codes")}

    def matched(self, called: str, becomes: Mapping[str, str]) -> DatasetTarget:
        """Return the declaration in a job's words.

        Args:
            called: name of the target in the dataset.
            becomes: key of a name (``name_key``) -> the job's.
        """
        names = [becomes.get(name_key(name), name) for name in self.names]
        found = self.model_copy(update={"names": names})
        found._called, found._becomes = called, becomes
        return found

    def stated(self, targets: Mapping[str, TargetValue], name: str) -> TargetValue | None:
        """Return what a case states of the target, in the words of the job that it was matched with; None: nothing.

        Args:
            targets: of the case.
            name: of the target in the job.
        """
        found = targets.get(self._called or name)
        if isinstance(found, str):
            return self._becomes.get(name_key(found), found)
        if isinstance(found, dict):
            return {self._becomes.get(name_key(finding), finding): holds for finding, holds in found.items()}
        return found


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
    def meaning(self) -> str:
        """Code of what it is; empty: none."""

    @property
    def meanings(self) -> Mapping[str, str]:
        """Name -> code, of classes, findings or grades that have one."""

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
    """Return a dataset's declaration of a job's target, in the job's words.

    Codes go before names: a target, or a class, finding or grade of it, is the job's of the same code, whatever it is
    called. A code counts where the dataset and the job have it once.

    A dataset of images with one class each states a target of kind class or grade without declaring it.

    Args:
        targets: that the dataset declares.
        labels: its label value -> name.
        target: of the job.

    Raises:
        DataError: it declares another kind under that name, or names and codes contradict each other.
    """
    called = _called(targets, target)
    found = targets.get(called)
    if found is None:
        if target.kind not in ("class", "grade") or targets or not labels:
            return None
        return DatasetTarget(kind="class", names=[labels[value] for value in sorted(labels, key=float)])
    alike = {"class", "grade"}
    if found.kind != target.kind and not {found.kind, target.kind} <= alike:
        raise DataError(
            f"target {called} is of kind {found.kind} in the dataset, expected {target.kind}. Register the table "
            f"again with --targets {called}={target.kind}, or rename the job's target"
        )
    becomes = _becoming(found, target)
    return found.matched(called, becomes) if becomes or called != target.name else found


def _called(targets: Mapping[str, DatasetTarget], target: Target) -> str:
    """Return the name that a dataset has for a job's target: by its code, else the job's own.

    Raises:
        DataError: the target of that name has another code, or another target has its code.
    """
    named = targets.get(target.name)
    if not target.meaning:
        return target.name
    coded = [name for name, one in targets.items() if one.code and is_same(one.code, target.meaning)]
    if named and named.code and target.name not in coded:
        raise DataError(
            f"target {target.name} is coded {named.code} in the dataset, expected {target.meaning} of the job: they "
            "mean different things. Correct one of the codes, or rename the job's target"
        )
    if len(coded) != 1 or coded[0] == target.name:
        return target.name
    if named:
        raise DataError(
            f"target {coded[0]} of the dataset has the code {target.meaning} of the job's {target.name}, as its target "
            f"{target.name} has the name. Give the code to one of them, or rename the other"
        )
    return coded[0]


def _becoming(declared: DatasetTarget, target: Target) -> dict[str, str]:
    """Return key of a dataset's name -> the job's name, of those that a code leads to another name.

    Raises:
        DataError: names and codes lead to different ones.
    """
    keys = {name_key(name) for name in declared.names}
    by_key = {name_key(name): (name, code) for name, code in target.meanings.items()}
    for name, code in declared.codes.items():
        jobs, other = by_key.get(name_key(name), ("", ""))
        if other and not is_same(code, other):
            raise DataError(
                f"target {target.name}: {name} is coded {code} in the dataset, and the job's {jobs} {other}: they mean "
                "different things. Correct one of the codes, or rename the class"
            )
    becomes = {}
    for name, code, jobs in led_by_codes(declared.codes, target.meanings):
        if name_key(name) == name_key(jobs):
            continue
        if name_key(name) in map(name_key, target.names) or name_key(jobs) in keys:
            raise DataError(
                f"target {target.name}: {name} of the dataset has the code {code} of the job's {jobs}, and the name "
                "leads elsewhere, or another has it. Correct the code, or rename the class"
            )
        becomes[name_key(name)] = jobs
    return becomes


def stated_value(
    declared: DatasetTarget | None,
    targets: dict[str, TargetValue],
    label: str | int | None,
    labels: dict[str, str],
    target: Target,
) -> TargetValue | None:
    """Return what an entry states of a target, in the job's words, or None.

    Args:
        declared: by the dataset, as ``declared_target`` returns it.
        targets: of the entry.
        label: of the entry; the number of a class stands for its name.
        labels: the dataset's label value -> name.
        target: of the job.
    """
    found = declared.stated(targets, target.name) if declared else targets.get(target.name)
    if found is None and not targets and isinstance(label, int) and target.kind in ("class", "grade"):
        return labels.get(str(label), str(label))
    return found
