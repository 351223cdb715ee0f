"""Targets of kind ``grade``: one of several ordered grades."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn import functional

from oncofed.data.label_names import name_key
from oncofed.data.targets import DatasetTarget, Encoded, TargetValue
from oncofed.errors import DataError
from oncofed.models.answers import Step, Told, Verdict, told_probabilities
from oncofed.suppression import LEAST_PATIENTS
from oncofed.tasks.agreement import Moments
from oncofed.tasks.classification import ranking_scores
from oncofed.tasks.metrics import Metric
from oncofed.tasks.pooled import ranking
from oncofed.tasks.pooled_target import PooledTarget, Table, TargetFigure
from oncofed.tasks.site_sums import grouped, ranked
from oncofed.tasks.targets.base import (
    TARGET_KINDS,
    NamedTarget,
    Names,
    TargetFigures,
    TargetHead,
    TargetSettings,
    patients_where,
)
from oncofed.tasks.targets.grade_table import (
    coarser_table,
    is_table,
    pooled_table,
    separable_steps,
    share_reported,
    table_of,
)

# Least share of patients in reported cells for an estimate of the hidden ones.
_LEAST_REPORTED = 0.5


class GradeTarget(NamedTarget):
    """A target with grades in an order."""

    kind: Literal["grade"] = "grade"
    grades: Names = Field(
        min_length=3, max_length=32, description="names, from the lowest to the highest; of two the kind is class"
    )

    @field_validator("grades")
    @classmethod
    def _differ(cls, grades: tuple[str, ...]) -> tuple[str, ...]:
        keys = [name_key(name) for name in grades]
        if len(set(keys)) < len(keys):
            raise ValueError(f"two grades have one name: {', '.join(grades)}")
        return grades

    @property
    def names(self) -> tuple[str, ...]:
        """The grades."""
        return self.grades

    def encode(self, stated: TargetValue, declared: DatasetTarget) -> Encoded:
        """Return the number of a stated grade, from 0 for the lowest.

        Raises:
            DataError: it is none of the dataset's or the job's grades, or the dataset's go another way.
        """
        keys = [name_key(name) for name in self.grades]
        if declared.kind == "grade":
            self._check_order([name_key(name) for name in declared.names], keys)
        scale = ", ".join(self.grades)
        if isinstance(stated, bool) or not isinstance(stated, str | int | float):
            raise DataError(f"target {self.name}: found {stated!r}, expected one of {scale}")
        key = name_key(stated if isinstance(stated, str) else f"{stated:g}")
        if declared.kind == "grade" and declared.names and key not in map(name_key, declared.names):
            raise DataError(
                f"target {self.name}: found {stated!r}, outside the dataset's scale {', '.join(declared.names)}"
            )
        if key not in keys:
            raise DataError(f"target {self.name}: found {stated!r}, outside the scale {scale}")
        return (float(keys.index(key)),)

    def _check_order(self, theirs: Sequence[str], ours: Sequence[str]) -> None:
        places = [ours.index(name) for name in theirs if name in ours]
        if places != sorted(places):
            raise DataError(
                f"target {self.name}: the dataset's grades go {', '.join(theirs)}, expected {', '.join(ours)}: one of "
                "them is not from the lowest to the highest"
            )


@TARGET_KINDS.register("grade")
class GradeHead(TargetHead[GradeTarget]):
    """Ordered cumulative logits; scored by quadratic weighted kappa.

    Of K grades there are K - 1 logits, of "at least this grade" for all but the lowest. CORAL (Cao, Mirjalili and
    Raschka, Pattern Recognition Letters 2020) shares one weight among them and learns ordered biases. A head is a slice
    of one linear output and has no weights of its own, so the order is made of the outputs: each logit is the one
    below it less a softplus of the next output (a cumulative link model, McCullagh 1980, whose steps may depend on
    the image). Probabilities never rise with the grade, whatever the weights, and the loss is CORAL's: the sum of
    their binary cross-entropies. A patient's grade is the highest that is likelier than not to be reached.

    Federated calibration is not there: probabilities are as the network gives them.
    """

    Settings: ClassVar[type[TargetSettings]] = GradeTarget
    primary: ClassVar[Metric] = Metric("quadratic_kappa", "quadratic weighted kappa", bounds=(-1, 1))

    @property
    def outputs(self) -> int:
        """One for each grade but the lowest."""
        return len(self.settings.grades) - 1

    @property
    def declared_metrics(self) -> tuple[Metric, ...]:
        """Accuracy, error in grades, and AUROC of at least each grade."""
        return (
            Metric("accuracy", thresholded=True),
            Metric("within_one", "share within one grade", thresholded=True),
            Metric("mae_grades", "mean absolute error", unit="grades", bounds=(0, self.outputs), thresholded=True),
            *(
                Metric(f"auroc_from_{number}", f"AUROC of at least {name}")
                for number, name in enumerate(self.settings.grades[1:], 1)
            ),
        )

    def loss(self, output: Tensor, truth: Tensor) -> Tensor:
        """Return each sample's sum of binary cross-entropies."""
        stated = truth[:, 0]
        known = ~stated.isnan()
        logits = torch.cat([output[:, :1], output[:, :1] - functional.softplus(output[:, 1:]).cumsum(dim=1)], dim=1)
        steps = torch.arange(1, self.outputs + 1, device=output.device)
        reached = (stated.nan_to_num(0)[:, None] >= steps).float()
        losses = functional.binary_cross_entropy_with_logits(logits, reached, reduction="none").sum(dim=1)
        return losses * known

    def statements(self, truth: Tensor) -> Tensor:
        """Return which grades are reached, for all but the lowest."""
        reached = (truth >= torch.arange(1, self.outputs + 1, device=truth.device)).float()
        return reached.masked_fill(truth.isnan(), float("nan"))

    @property
    def steps(self) -> tuple[Step, ...]:
        """To the probability of each grade, by way of that of at least each."""
        steps = range(self.outputs)
        below = tuple(tuple(1.0 if row == 0 else -float(row == column) for column in steps) for row in steps)
        apart = tuple(
            tuple(float(column == row + 1) - float(column == row) for column in range(self.outputs + 1))
            for row in steps
        )
        return (
            Step("softplus", first=1),
            Step("cumulative_sum", first=1),
            Step("linear", matrix=below),
            Step("sigmoid"),
            Step("linear", matrix=apart, offset=(1.0, *(0.0 for _ in steps))),
            Step("clip", bounds=(0.0, 1.0)),
        )

    @property
    def told(self) -> tuple[Told, ...]:
        """The probability of each grade."""
        return told_probabilities(self.settings.grades)

    @property
    def verdict(self) -> Verdict:
        """The highest grade that is likelier than not to be reached."""
        return Verdict("median", self.settings.grades)

    def figures(
        self, answers: NDArray[np.float64], truths: NDArray[np.float64], patients: Sequence[str]
    ) -> TargetFigures:
        """Return figures; a patient's cases of one grade count once."""
        found, stated, people = grouped(answers, truths[:, 0].astype(np.int64), patients)
        everybody = set(people)
        if not everybody:
            return TargetFigures(None)
        predicted = predicted_grades(found)
        distance = np.abs(predicted - stated)
        # A share of patients is a count of those that are off, and of the others.
        exact, near = (
            min(filter(None, (patients_where(off == value, people) for value in (False, True))), key=len)
            for off in (distance > 0, distance > 1)
        )
        # With the number that are off, the mean error tells how many are far off.
        behind = {"": everybody, "accuracy": exact, "within_one": near, "mae_grades": min(exact, near, key=len)}
        extra = {
            "accuracy": float((distance == 0).mean()),
            "within_one": float((distance <= 1).mean()),
            "mae_grades": float(distance.mean()),
        }
        for step in range(1, self.outputs + 1):
            groups = [patients_where((stated >= step) == value, people) for value in (False, True)]
            if all(groups):
                extra[f"auroc_from_{step}"] = ranking_scores(reach(found, step), stated >= step)[0]
                behind[f"auroc_from_{step}"] = min(groups, key=len)
        return TargetFigures(Moments.of(stated.astype(float), predicted.astype(float)).agreement, {}, extra, behind)

    def kinds(self, truths: NDArray[np.float64], patients: Sequence[str]) -> dict[str, set[str]]:
        """Return the patients of each grade."""
        return {
            name: patients_where(truths[:, 0] == value, patients) for value, name in enumerate(self.settings.grades)
        }

    def site_sums(
        self, answers: NDArray[np.float64], truths: NDArray[np.float64], patients: Sequence[str]
    ) -> dict[str, Any] | None:
        """Return a table of grades, and counts by probability.

        Returns:
            patients: their number; table: see ``grade_table.table_of``; at_least: first grade of a step -> input of
            ``pooled.ranking`` for a site.
        """
        people = len(set(patients))
        if people < LEAST_PATIENTS:
            return None
        found, stated, keys = grouped(answers, truths[:, 0].astype(np.int64), patients)
        steps = separable_steps(stated, keys, len(self.settings.grades))
        return {
            "patients": people,
            "table": table_of(stated, predicted_grades(found), keys, steps, len(self.settings.grades)),
            "at_least": {str(step): ranked(reach(found, step), stated >= step, keys) for step in steps},
        }

    def is_site_sums(self, value: Any, most: int) -> bool:
        """Return whether a value has their form."""
        return is_table(value, len(self.settings.grades), most)

    def withhold(self, sums: Mapping[str, Any], minimum: int) -> dict[str, Any] | None:
        """Return coarser sums; None: nothing is left."""
        return coarser_table(sums, minimum)

    def over_sites(self, of_sites: Sequence[Mapping[str, Any]]) -> PooledTarget | None:
        """Return figures of the sites' tables, and AUROC by grade.

        Cells of few patients are hidden and estimated: see ``grade_table.pooled_table``. Measured on five grades, kappa
        was off by 0.02 on average at three sites of 60 to 110 patients, and by 0.01 at sites of 100 to 300. Figures of
        the tables are left out if fewer than half of all patients are in reported cells.
        """
        grades = len(self.settings.grades)
        tables = [one["table"] for one in of_sites]
        table = pooled_table(tables)
        stated, predicted = np.repeat(np.arange(grades), grades), np.tile(np.arange(grades), grades)
        weights = table.reshape(-1)
        total = float(weights.sum())
        people = sum(one["patients"] for one in of_sites)
        kappa = Moments.of(stated.astype(float), predicted.astype(float), weights).agreement
        distance = np.abs(stated - predicted)
        values = {
            "quadratic_kappa": kappa,
            "accuracy": float(weights[distance == 0].sum() / total),
            "within_one": float(weights[distance <= 1].sum() / total),
            "mae_grades": float((weights * distance).sum() / total),
        }
        known = {metric.name: metric for metric in (self.primary, *self.declared_metrics)}
        figures = {
            name: TargetFigure(title=known[name].label, value=value, patients=people)
            for name, value in values.items()
            if value is not None and share_reported(tables) >= _LEAST_REPORTED
        }
        classes = {}
        for step, name in enumerate(self.settings.grades[1:], 1):
            rankings = [one["at_least"][str(step)] for one in of_sites if str(step) in one["at_least"]]
            found = ranking(rankings)
            if found:
                classes[f"at least {name}"] = found
                figures[f"auroc_from_{step}"] = TargetFigure(
                    title=known[f"auroc_from_{step}"].label,
                    value=found.auroc,
                    patients=min(found.patients_with, found.patients_without),
                    interval=found.interval,
                    bounds=found.bounds,
                )
        return PooledTarget(
            kind=self.settings.kind, patients=people, figures=figures, classes=classes, tables=[self._table(of_sites)]
        )

    def _table(self, of_sites: Sequence[Mapping[str, Any]]) -> Table:
        """Return the sums of cells; null where a site hides the cell."""
        parts = [np.array(one["table"]["cells"], dtype=float) for one in of_sites]
        cells = np.sum(parts, axis=0)
        rows = {
            name: [None if np.isnan(cell) else float(cell) for cell in row]
            for name, row in zip(self.settings.grades, cells, strict=True)
        }
        return Table(title="stated, by predicted", columns=list(self.settings.grades), rows=rows)

    def described_truth(self, truth: Encoded) -> str:
        """Return the stated grade."""
        return "" if np.isnan(truth[0]) else self.settings.grades[int(truth[0])]


def reach(probabilities: NDArray[np.float64], step: int) -> NDArray[np.float64]:
    """Return how likely at least a grade is, (case,)."""
    found: NDArray[np.float64] = np.clip(probabilities[:, step:].sum(axis=1), 0.0, 1.0)
    return found


def predicted_grades(probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the highest grade more likely reached than not, (case,)."""
    reached = probabilities[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
    return np.asarray((reached > 0.5).sum(axis=1), dtype=np.int64)
