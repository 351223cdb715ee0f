"""What a job's targets are, for results, cards and pages."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from oncofed.settings import StrictModel
from oncofed.tasks.settings import TaskSettings
from oncofed.tasks.targets.base import head_of
from oncofed.tasks.targets.settings import TargetsSpec
from oncofed.tasks.targets.task import TargetsTask


class TargetDetails(StrictModel):
    """A target of a job, in words."""

    kind: str = Field(description="such as class, labels, grade, value or survival")
    asks: str = Field(description="what the model answers, with its unit")
    metric: str = Field(description="the figure that stands for the target")
    metric_name: str = Field(description="the same for people")
    members: list[str] = Field([], description="parts with a figure each, such as findings")
    drawn: list[str] = Field([], description="names of the label values that it draws, from 1")
    figures: dict[str, str] = Field({}, description="further figure, METRIC.TARGET[.MEMBER] -> title with unit")


def details_of(settings: TaskSettings) -> dict[str, TargetDetails]:
    """Return the targets of a job by name; empty for one without."""
    if not isinstance(settings, TargetsSpec):
        return {}
    labels = {metric.name: metric.label for metric in TargetsTask.declared_metrics(settings)}
    heads = {target.name: head_of(target) for target in settings.targets}
    return {
        name: TargetDetails(
            kind=head.settings.kind,
            asks=head.asks,
            metric=head.primary.name,
            metric_name=head.primary.label,
            members=list(head.settings.members),
            drawn=list(head.settings.drawn),
            figures={figure: label for figure, label in labels.items() if figure.split(".")[1] == name},
        )
        for name, head in heads.items()
    }


def figure_titles(targets: Mapping[str, TargetDetails]) -> dict[str, str]:
    """Return a title for each figure of ``Scores``, such as "size, Lin's concordance"."""
    found = {}
    for name, target in targets.items():
        found[name] = f"{name}, {target.metric_name}"
        found |= target.figures
        found |= {f"{name}.{member}": f"{name}: {member}, {target.metric_name}" for member in target.members}
    return found
