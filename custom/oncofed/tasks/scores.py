"""Scores of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Scores:
    """How well a model does on some cases.

    Attributes:
        mean: the task's metric; None where the cases cannot tell it.
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
        cases: how many cases.
        interval: in which the metric lies with 95 % confidence, over patients; None where it was not asked for, or
            fewer than five patients stand behind it.
        by_case: each case's name and figures, for the site's own eyes; empty where details were not asked for.
        patients: keys of all patients who were looked at, for the site's own eyes.
        behind: of each class and further figure the patients on whom it rests (``Task.patients_behind``), likewise.
    """

    cases: int = 0
    interval: tuple[float, float] | None = None
    by_case: tuple[tuple[str, dict[str, float | str]], ...] = ()
    patients: frozenset[str] = frozenset()
    behind: Mapping[str, frozenset[str]] = field(default_factory=dict)
