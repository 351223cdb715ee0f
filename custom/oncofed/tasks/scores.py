"""Scores of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from oncofed.tasks.parts import Parts


@dataclass(frozen=True)
class Scores:
    """A model's metrics on some cases.

    Attributes:
        mean: the task's metric; None if undefined for the cases.
        by_class: the same for each class with enough cases.
        extra_metrics: other figures, by name.
    """

    mean: float | None
    by_class: dict[str, float] = field(default_factory=dict)
    extra_metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation(Scores):
    """A model's scores on some cases of one site.

    Attributes:
        cases: number of cases.
        interval: 95 % confidence interval of the metric, over patients; None if not requested, or with fewer than five
            patients.
        by_case: each case's name and figures, for the site only; empty if details were not requested.
        patients: keys of all patients of the cases, for the site only.
        behind: patients behind each class and further figure (``Task.patients_behind``), for the site only.
        parts: of the mean (``Task.parts``), if it is one of several figures.
        may_leave: whether figures may leave the site at all (``Task.may_leave``).
    """

    cases: int = 0
    interval: tuple[float, float] | None = None
    by_case: tuple[tuple[str, dict[str, float | str]], ...] = ()
    patients: frozenset[str] = frozenset()
    behind: Mapping[str, frozenset[str]] = field(default_factory=dict)
    parts: Parts = field(default_factory=dict)
    may_leave: bool = True
