"""Targets of kind ``class``: one of several classes."""

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
from oncofed.tasks.calibration import temperature_sums
from oncofed.tasks.classification import class_scores
from oncofed.tasks.metrics import Metric
from oncofed.tasks.pooled_target import PooledTarget
from oncofed.tasks.site_sums import classification_sums, grouped
from oncofed.tasks.sum_forms import coarser_classification, is_classification, without_telling_rows
from oncofed.tasks.targets.base import (
    TARGET_KINDS,
    NamedTarget,
    Names,
    TargetFigures,
    TargetHead,
    TargetSettings,
    patients_where,
)
from oncofed.tasks.targets.rankings import calibration_figure, ranked_figures, rankings_of, reliability_of


class ClassTarget(NamedTarget):
    """A target of which one class holds."""

    kind: Literal["class"] = "class"
    classes: Names = Field(min_length=2, max_length=256, description="names; the second of two is the positive")

    @field_validator("classes")
    @classmethod
    def _differ(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        keys = [name_key(name) for name in classes]
        if len(set(keys)) < len(keys):
            raise ValueError(f"two classes have one name: {', '.join(classes)}")
        return classes

    @property
    def names(self) -> tuple[str, ...]:
        """The classes."""
        return self.classes

    @property
    def members(self) -> tuple[str, ...]:
        """The classes, where there are more than two."""
        return self.classes if len(self.classes) > 2 else ()

    def encode(self, stated: TargetValue, declared: DatasetTarget) -> Encoded:
        """Return the number of a stated class."""
        keys = [name_key(name) for name in self.classes]
        if not isinstance(stated, str) or name_key(stated) not in keys:
            raise DataError(f"target {self.name}: found {stated!r}, expected one of {', '.join(self.classes)}")
        return (float(keys.index(name_key(stated))),)


@TARGET_KINDS.register("class")
class ClassHead(TargetHead[ClassTarget]):
    """Cross-entropy over classes; scored by AUROC.

    One temperature divides its logits, learned over the validation patients of all sites.
    """

    Settings: ClassVar[type[TargetSettings]] = ClassTarget
    primary: ClassVar[Metric] = Metric("auroc", "AUROC")
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("auprc", "average precision (AUPRC)"),
        Metric("balanced_accuracy", thresholded=True),
        Metric("calibration_error"),
    )

    learns_temperatures: ClassVar[bool] = True
    tempered: ClassVar[tuple[str, ...]] = ("",)

    @property
    def outputs(self) -> int:
        """One a class."""
        return len(self.settings.classes)

    def loss(self, output: Tensor, truth: Tensor) -> Tensor:
        """Return each sample's cross-entropy."""
        stated = truth[:, 0]
        known = ~stated.isnan()
        target = stated.nan_to_num(0).long()
        return functional.cross_entropy(output, target, reduction="none") * known

    def statements(self, truth: Tensor) -> Tensor:
        """Return one for the stated class, zero for the others."""
        holds = (truth == torch.arange(self.outputs, device=truth.device)).float()
        return holds.masked_fill(truth.isnan(), float("nan"))

    @property
    def steps(self) -> tuple[Step, ...]:
        """To the probability of each class."""
        known = self.known_temperatures.get("")
        return (*([Step("affine", scale=(1 / known,))] if known else []), Step("softmax"))

    @property
    def told(self) -> tuple[Told, ...]:
        """The probability of each class."""
        return told_probabilities(self.settings.classes)

    @property
    def verdict(self) -> Verdict:
        """The most probable class."""
        return Verdict("largest", self.settings.classes)

    def figures(
        self, answers: NDArray[np.float64], truths: NDArray[np.float64], patients: Sequence[str]
    ) -> TargetFigures:
        """Return figures; a patient's cases of one class count once."""
        found, labels, people = grouped(answers, truths[:, 0].astype(np.int64), patients)
        scores = class_scores(found, labels, self._names)
        of_class = [patients_where(labels == value, people) for value in range(self.outputs)]
        everyone = set(people)
        smaller = [min(own, everyone - own, key=len) for own in of_class]
        fewest = min((own for own in of_class if own), key=len, default=set[str]())
        members = {name: scores.by_class[name] for name in self.settings.members if name in scores.by_class}
        behind = {"": fewest, **dict.fromkeys((metric.name for metric in self.metrics), fewest)}
        behind |= {name: smaller[self.settings.classes.index(name)] for name in members}
        return TargetFigures(scores.mean, members, scores.extra_metrics, behind)

    def kinds(self, truths: NDArray[np.float64], patients: Sequence[str]) -> dict[str, set[str]]:
        """Return the patients of each class."""
        return {
            name: patients_where(truths[:, 0] == value, patients) for value, name in enumerate(self.settings.classes)
        }

    def site_sums(
        self, answers: NDArray[np.float64], truths: NDArray[np.float64], patients: Sequence[str]
    ) -> dict[str, Any] | None:
        """Return counts by predicted probability, and sums for calibration.

        Answers have the temperature; sums of confidence come a second time without it.
        """
        known = self.known_temperatures.get("")
        without = 1 / known if known else None
        sums = classification_sums(answers, truths[:, 0].astype(np.int64), patients, self._names, without)
        return without_telling_rows(sums, self.outputs) if sums else None

    def temperature_sums(
        self, answers: NDArray[np.float64], truths: NDArray[np.float64], patients: Sequence[str]
    ) -> dict[str, dict[str, Any]]:
        """Return sums of all patients; none where one to four have a class."""
        if any(0 < len(people) < LEAST_PATIENTS for people in self.kinds(truths, patients).values()):
            return {}
        sums = temperature_sums(answers, truths[:, 0].astype(np.int64), patients)
        return {"": sums} if sums else {}

    def is_site_sums(self, value: Any, most: int) -> bool:
        """Return whether a value has their form."""
        return is_classification(value, self.settings.classes, most) and value == without_telling_rows(
            value, self.outputs
        )

    def withhold(self, sums: Mapping[str, Any], minimum: int) -> dict[str, Any] | None:
        """Return coarser sums."""
        if sums["patients"] < minimum:
            return None
        return without_telling_rows(coarser_classification(sums, minimum), self.outputs)

    def over_sites(self, of_sites: Sequence[Mapping[str, Any]]) -> PooledTarget | None:
        """Return AUROC, average precision and calibration."""
        rankings = rankings_of(of_sites, self.settings.classes)
        sure, before = (reliability_of(of_sites, which) for which in (0, 1))
        figures = ranked_figures(rankings, self.settings.members)
        if sure:
            figures["calibration_error"] = calibration_figure(sure)
        if before:
            figures["calibration_error.before"] = calibration_figure(before, before=True)
        return PooledTarget(
            kind=self.settings.kind,
            patients=sum(one["patients"] for one in of_sites),
            figures=figures,
            classes=rankings,
            reliability={"": sure} if sure else {},
            uncalibrated={"": before} if before else {},
        )

    @property
    def _names(self) -> dict[int, str]:
        return dict(enumerate(self.settings.classes))

    def members_told(self, truth: Encoded) -> set[str]:
        """Return the stated class, where there are more than two."""
        return {self.settings.classes[int(truth[0])]} if self.settings.members and not np.isnan(truth[0]) else set()

    def described_truth(self, truth: Encoded) -> str:
        """Return the stated class."""
        return "" if np.isnan(truth[0]) else self.settings.classes[int(truth[0])]
