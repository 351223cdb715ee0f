"""A named target's figures over the patients of several sites.

One form for all kinds: what a target's sums tell is figures, rankings, tables and plots, which a page shows without
knowing the kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from pydantic import Field

from oncofed.settings import StrictModel
from oncofed.tasks.pooled import Ranking, Reliability


class TargetFigure(StrictModel):
    """A figure of a target over the patients of all sites."""

    title: str
    value: float
    patients: int = Field(description="behind it; of a figure that compares two groups, those of the smaller one")
    unit: str = ""
    interval: tuple[float, float] | None = Field(None, description="95 % interval over patients; null: not known")
    bounds: tuple[float, float] | None = Field(
        None, description="between which it certainly lies; null: it follows from the sums up to rounding"
    )


class Line(StrictModel):
    """A line of a plot."""

    name: str
    points: list[tuple[float, float]]
    steps: bool = Field(False, description="the value holds until the next point, as of a survival curve")


class Plot(StrictModel):
    """A plot of a target; never of single patients."""

    title: str
    x: str = Field(description="label of the axis, with its unit")
    y: str
    lines: list[Line]
    diagonal: bool = Field(False, description="draw the line on which both axes agree")

    @property
    def is_empty(self) -> bool:
        """Whether no line leads anywhere: it has where it starts alone, or nothing."""
        return not any(len(line.points) > (0 if self.diagonal else 1) for line in self.lines)


class Table(StrictModel):
    """A table of counts or figures; null: too few patients."""

    title: str
    columns: list[str]
    rows: dict[str, list[float | None]]

    @property
    def is_empty(self) -> bool:
        """Whether it tells no number."""
        return all(cell is None for row in self.rows.values() for cell in row)


class PooledTarget(StrictModel):
    """A target on the test patients of all sites together."""

    kind: str
    patients: int = Field(description="who state the target at the sites that sent its sums")
    sites: list[str] = Field([], description="those sites")
    withheld: list[str] = Field([], description="sites that answered without its sums")
    figures: dict[str, TargetFigure] = Field({}, description="by METRIC or METRIC.MEMBER; the target's own first")
    classes: dict[str, Ranking] = Field({}, description="of each class or finding that the sites could judge")
    reliability: dict[str, Reliability] = Field({}, description="by class or finding; empty name: of the target")
    uncalibrated: dict[str, Reliability] = Field({}, description="the same without the temperatures that were learned")
    tables: list[Table] = Field([], description="such as predicted grades by stated ones")
    plots: list[Plot] = Field([], description="beside ROC and reliability, which follow from the others")


class TargetSums(Protocol):
    """A target's sums: their form, suppression and figures.

    Every sum over a target holds ``patients``, how many of the site state it, and rests on at least five of them.
    """

    @property
    def members(self) -> tuple[str, ...]:
        """Names of parts with a figure each, such as findings."""

    @property
    def makes_mean(self) -> bool:
        """Whether the job's metric is a mean of its figure and other targets'."""

    @property
    def has_own_figure(self) -> bool:
        """Whether its figure is made patient by patient; else it is the mean of its members'."""

    def is_site_sums(self, value: Any, most: int) -> bool:
        """Return whether a value has the form of the target's sums.

        Args:
            value: as sent.
            most: cases that the site has at most.
        """

    def withhold(self, sums: Mapping[str, Any], minimum: int) -> dict[str, Any] | None:
        """Return sums without what rests on too few patients.

        Args:
            sums: in their form.
            minimum: fewest patients behind a number, by the site's policy.

        Returns:
            None where nothing is left.
        """

    @property
    def tempered(self) -> tuple[str, ...]:
        """Parts with a temperature of their own: findings, "" of a class; none of other kinds."""

    def over_sites(self, of_sites: Sequence[Mapping[str, Any]]) -> PooledTarget | None:
        """Return the figures over all sites; None: they cannot be known.

        Args:
            of_sites: sums of each.
        """

    def thresholds(self, of_sites: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Return each finding's threshold; empty if none is chosen.

        Args:
            of_sites: sums of each, over its validation patients.
        """

    def use_thresholds(self, thresholds: Mapping[str, float]) -> None:
        """Use thresholds of probabilities.

        Args:
            thresholds: by finding; empty: none are known.
        """


NO_TARGETS: Mapping[str, TargetSums] = MappingProxyType({})
