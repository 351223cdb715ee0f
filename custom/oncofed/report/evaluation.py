"""``evaluation.json``: a model's scores without names of cases."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from oncofed.atomic import write_whole
from oncofed.errors import DataError
from oncofed.settings import first_problem
from oncofed.tasks.deletion import Deletion

EVALUATION_FILE = "evaluation.json"

Interval = tuple[float, float]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class ScoresRecord(_Part):
    """Scores on some patients, without figures of fewer than five."""

    patients: int | None = Field(None, description="null: fewer than five")
    cases: int | None = None
    mean: float | None = Field(None, description="the metric; null where the cases cannot tell it, or are too few")
    in_mean: list[str] | None = Field(None, description="targets whose figures the mean is of; null: no named targets")
    interval: Interval | None = Field(None, description="of the metric, 95 %, bootstrap over patients")
    by_class: dict[str, float] = {}
    more: dict[str, float] = Field({}, description="further figures by name")
    intervals: dict[str, Interval] = Field({}, description="target or member -> 95 % interval, bootstrap over patients")


class GroupRecord(ScoresRecord):
    """A subgroup."""

    name: str


class DifferenceRecord(_Part):
    """A group's metric less that of the column's largest group."""

    group: str
    reference: str
    difference: float
    interval: Interval | None = Field(None, description="95 %, for this difference alone: none is made wider for many")


class SubgroupsRecord(_Part):
    """Groups of a column."""

    column: str
    groups: list[GroupRecord]
    withheld_groups: int = Field(0, description="groups too small to be named")
    differences: list[DifferenceRecord] = []


class ComparisonRecord(_Part):
    """Comparison with another model on the same patients."""

    other_model: str = Field(description="SHA-256 of its weights")
    patients: int | None
    mean: float | None
    other_mean: float | None
    difference: float | None = Field(description="the model's metric less the other's")
    interval: Interval | None = Field(description="of the difference, 95 %, paired bootstrap over patients")
    margin: float | None = Field(None, description="largest difference that counts as not inferior")
    not_inferior: bool | None = None
    few_patients: bool = Field(False, description="too few patients for a reliable interval")


class EvaluationRecord(_Part):
    """An evaluation."""

    schema_: Literal[1] = Field(1, alias="schema")
    job: str
    title: str = ""
    model: str = Field(description="SHA-256 of the weights, as provenance.json has it")
    dataset: str = Field(description="name under which it is registered")
    dataset_digest: str = Field(description="SHA-256 of its dataset.json, as provenance.json has it")
    split: Literal["test", "validation", "training", "all"]
    metric: str
    metric_name: str
    temperature: float | None = Field(None, description="divisor of the logits; null: none, or the task has no classes")
    set_aside: int = Field(0, description="cases that could not be used")
    scores: ScoresRecord
    subgroups: list[SubgroupsRecord] = []
    comparison: ComparisonRecord | None = None
    attention: Deletion | None = Field(None, description="whether slides' attention shows what answers rest on")
    remarks: list[str] = []
    ended: str = Field(description="UTC, ISO 8601")
    environment: dict[str, str] = {}

    def write(self, folder: Path) -> Path:
        """Write ``folder/evaluation.json`` atomically, and return it."""
        path = folder / EVALUATION_FILE
        write_whole(path, self.to_json() + "\n")
        return path

    def to_json(self) -> str:
        """Return the file's content."""
        return self.model_dump_json(indent=2, by_alias=True)


def read_evaluation(path: Path) -> EvaluationRecord:
    """Read an ``evaluation.json``.

    Raises:
        DataError: it is not one.
    """
    try:
        return EvaluationRecord.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Expected what oncofed evaluate wrote.") from None
    except ValidationError as error:
        raise DataError(f"{path}: no evaluation of oncofed ({first_problem(error)}). Evaluate again.") from None
