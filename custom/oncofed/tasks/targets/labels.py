"""Targets of kind ``labels``: findings, of which several may hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from torch import Tensor
from torch.nn import functional
from typing_extensions import Self

from oncofed.data.label_names import name_key
from oncofed.data.targets import DatasetTarget, Encoded, TargetValue
from oncofed.errors import DataError
from oncofed.models.answers import Step, Told, Verdict, told_probabilities
from oncofed.suppression import LEAST_PATIENTS
from oncofed.tasks.calibration import temperature_sums
from oncofed.tasks.classification import ranking_scores
from oncofed.tasks.metrics import Metric
from oncofed.tasks.pooled import Ranking, Reliability, best_threshold, f1_at
from oncofed.tasks.pooled_target import PooledTarget, TargetFigure
from oncofed.tasks.site_sums import classification_sums, grouped
from oncofed.tasks.sum_forms import (
    are_named,
    coarser_classification,
    is_classification,
    is_part,
    is_patients,
    without_telling_rows,
)
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

# Threshold of a finding for which no validation patients chose one.
UNKNOWN_THRESHOLD = 0.5


class LabelsTarget(NamedTarget):
    """A target of which several findings may hold."""

    kind: Literal["labels"] = "labels"
    findings: Names = Field(min_length=1, max_length=256, description="names")
    positive_weight: dict[str, float] = Field(
        {},
        description="finding -> how much a case that has it counts beside one that has not; the share of cases without "
        "it by that of cases with it evens out a rare one",
    )

    @field_validator("findings")
    @classmethod
    def _differ(cls, findings: tuple[str, ...]) -> tuple[str, ...]:
        keys = [name_key(name) for name in findings]
        if len(set(keys)) < len(keys):
            raise ValueError(f"two findings have one name: {', '.join(findings)}")
        return findings

    @model_validator(mode="after")
    def _weights_are_of_findings(self) -> Self:
        strange = sorted(set(self.positive_weight) - set(self.findings))
        if strange:
            raise ValueError(f"positive_weight: {strange[0]} is none of the findings {', '.join(self.findings)}")
        if any(not 0 < weight <= 1000 for weight in self.positive_weight.values()):
            raise ValueError("positive_weight: found a weight that is not above 0 and up to 1000")
        return self

    @property
    def width(self) -> int:
        """One number a finding."""
        return len(self.findings)

    @property
    def names(self) -> tuple[str, ...]:
        """The findings."""
        return self.findings

    @property
    def members(self) -> tuple[str, ...]:
        """The findings."""
        return self.findings

    def encode(self, stated: TargetValue, declared: DatasetTarget) -> Encoded:
        """Return 1 or 0 of each finding, NaN if not looked for.

        Findings that the job does not name are left out.
        """
        if not isinstance(stated, dict):
            raise DataError(
                f"target {self.name}: found {stated!r}, expected findings with true or false, such as "
                f"{{{self.findings[0]!r}: true}}"
            )
        known = {name_key(name): float(holds) for name, holds in stated.items()}
        return tuple(known.get(name_key(name), float("nan")) for name in self.findings)


@TARGET_KINDS.register("labels")
class LabelsHead(TargetHead[LabelsTarget]):
    """Binary cross-entropy of each finding; scored by the mean AUROC.

    The mean is over findings that some cases have and some have not. The threshold of a finding is that of the best F1
    over the validation patients of all sites, 0.5 if unknown; so is the temperature that divides its logit.
    """

    Settings: ClassVar[type[TargetSettings]] = LabelsTarget
    primary: ClassVar[Metric] = Metric("auroc", "AUROC")
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("auprc", "average precision (AUPRC)"),
        Metric("f1", "F1", thresholded=True),
        Metric("auprc", "average precision (AUPRC)", per_class=True),
        Metric("f1", "F1", per_class=True, thresholded=True),
    )
    chooses_thresholds: ClassVar[bool] = True
    learns_temperatures: ClassVar[bool] = True

    @property
    def tempered(self) -> tuple[str, ...]:
        """Each finding."""
        return self.settings.findings

    @property
    def outputs(self) -> int:
        """One a finding."""
        return len(self.settings.findings)

    @property
    def declared_metrics(self) -> tuple[Metric, ...]:
        """Those of the kind, and how many findings the cases can judge."""
        return (*self.metrics, Metric("judged", "findings that the cases can judge", bounds=(0, self.outputs)))

    def loss(self, output: Tensor, truth: Tensor) -> Tensor:
        """Return each sample's mean cross-entropy over its known findings."""
        known = ~truth.isnan()
        weights = [self.settings.positive_weight.get(name, 1.0) for name in self.settings.findings]
        of_each = functional.binary_cross_entropy_with_logits(
            output, truth.nan_to_num(0), reduction="none", pos_weight=torch.tensor(weights, device=output.device)
        )
        return (of_each * known).sum(dim=1) / known.sum(dim=1).clamp(min=1)

    def statements(self, truth: Tensor) -> Tensor:
        """Return the findings as they are stated."""
        return truth

    @property
    def steps(self) -> tuple[Step, ...]:
        """To the probability of each finding."""
        scale = tuple(1 / self.known_temperatures.get(name, 1.0) for name in self.settings.findings)
        return (*([Step("affine", scale=scale)] if self.known_temperatures else []), Step("sigmoid"))

    @property
    def told(self) -> tuple[Told, ...]:
        """The probability of each finding."""
        return told_probabilities(self.settings.findings)

    @property
    def verdict(self) -> Verdict:
        """The findings that are said."""
        findings = self.settings.findings
        return Verdict("at_least", findings, tuple(self._threshold(name) for name in findings))

    def figures(
        self, answers: NDArray[np.float64], truths: NDArray[np.float64], patients: Sequence[str]
    ) -> TargetFigures:
        """Return figures; of each finding a patient's alike cases count once."""
        members: dict[str, float] = {}
        of_each: dict[str, dict[str, float]] = {"auprc": {}, "f1": {}}
        behind: dict[str, set[str]] = {}
        for name in self.settings.findings:
            found, labels, people = self._of_finding(name, answers, truths, patients)
            groups = [patients_where(labels == value, people) for value in (0, 1)]
            if not all(groups):
                continue
            members[name], of_each["auprc"][name] = ranking_scores(found[:, 1], labels == 1)
            of_each["f1"][name] = _f1(found[:, 1] >= self._threshold(name), labels == 1)
            smaller = min(groups, key=len)
            behind |= {name: smaller, f"auprc.{name}": smaller, f"f1.{name}": smaller}
        extra = {f"{metric}.{name}": value for metric, found in of_each.items() for name, value in found.items()}
        extra |= {metric: float(np.mean(list(found.values()))) for metric, found in of_each.items() if found}
        extra["judged"] = float(len(members))
        fewest = min((behind[name] for name in members), key=len, default=set[str]())
        behind |= {"": fewest, "auprc": fewest, "f1": fewest, "judged": set(patients)}
        return TargetFigures(float(np.mean(list(members.values()))) if members else None, members, extra, behind)

    def kinds(self, truths: NDArray[np.float64], patients: Sequence[str]) -> dict[str, set[str]]:
        """Return the patients with each finding, and those without it."""
        found = {}
        for number, name in enumerate(self.settings.findings):
            for value, word in ((1, "with"), (0, "without")):
                found[f"{word} {name}"] = patients_where(truths[:, number] == value, patients)
        return found

    def site_sums(
        self, answers: NDArray[np.float64], truths: NDArray[np.float64], patients: Sequence[str]
    ) -> dict[str, Any] | None:
        """Return of each finding what ``site_sums.classification_sums`` makes of two classes.

        A finding that was looked for in too few patients, or in all but too few, is left out.
        """
        people = len(set(patients))
        if people < LEAST_PATIENTS:
            return None
        found = {}
        for name in self.settings.findings:
            probabilities, labels, keys = self._of_finding(name, answers, truths, patients)
            known = self.known_temperatures.get(name)
            without = 1 / known if known else None
            sums = classification_sums(probabilities, labels, keys, {0: f"no {name}", 1: name}, without)
            if sums and is_part(sums["patients"], people):
                found[name] = without_telling_rows(sums, 2)
        return {"patients": people, "findings": found} if found else None

    def temperature_sums(
        self, answers: NDArray[np.float64], truths: NDArray[np.float64], patients: Sequence[str]
    ) -> dict[str, dict[str, Any]]:
        """Return sums of each finding that at least five patients have, and five have not."""
        found, people = {}, len(set(patients))
        for name, number in zip(self.settings.findings, range(self.outputs), strict=True):
            probabilities, labels, keys = self._of_finding(name, answers, truths, patients)
            sides = [patients_where(truths[:, number] == value, patients) for value in (0, 1)]
            sums = temperature_sums(probabilities, labels, keys)
            if sums and min(map(len, sides)) >= LEAST_PATIENTS and is_part(sums["patients"], people):
                found[name] = sums
        return found

    def is_site_sums(self, value: Any, most: int) -> bool:
        """Return whether a value has their form."""
        return (
            isinstance(value, Mapping)
            and set(value) == {"patients", "findings"}
            and is_patients(value["patients"], most)
            and are_named(value["findings"], self.settings.findings)
            and all(
                is_classification(sums, [name], most)
                and is_part(sums["patients"], value["patients"])
                and sums == without_telling_rows(sums, 2)
                for name, sums in value["findings"].items()
            )
        )

    def withhold(self, sums: Mapping[str, Any], minimum: int) -> dict[str, Any] | None:
        """Return coarser sums of the findings that enough patients state."""
        if sums["patients"] < minimum:
            return None
        enough = {
            name: one
            for name, one in sums["findings"].items()
            if one["patients"] >= minimum and is_part(one["patients"], sums["patients"], minimum)
        }
        coarse = {name: coarser_classification(one, minimum) for name, one in enough.items()}
        return {**sums, "findings": {name: without_telling_rows(one, 2) for name, one in coarse.items()}}

    def over_sites(self, of_sites: Sequence[Mapping[str, Any]]) -> PooledTarget | None:
        """Return each finding's figures, and means over judged findings.

        F1 follows from the cells, as AUROC between sites does: no site counts patients by a threshold.
        """
        rankings: dict[str, Ranking] = {}
        reliability: dict[str, Reliability] = {}
        uncalibrated: dict[str, Reliability] = {}
        for name in self.settings.findings:
            sums = _of_finding(of_sites, name)
            rankings |= rankings_of(sums, [name])
            sure = reliability_of(sums)
            if sure:
                reliability[name] = sure
            if before := reliability_of(sums, 1):
                uncalibrated[name] = before
        figures = ranked_figures(rankings, self.settings.findings)
        fewest = figures["auroc"].patients if figures else 0
        f1 = {name: f1_at(one, self._threshold(name)) for name, one in rankings.items()}
        if f1:
            figures["f1"] = TargetFigure(title="F1", value=float(np.mean(list(f1.values()))), patients=fewest)
        for name, value in f1.items():
            chosen = "" if name in self.known_thresholds else " (none was learned)"
            title = f"F1 of {name} at threshold {self._threshold(name):.3g}{chosen}"
            figures[f"f1.{name}"] = TargetFigure(title=title, value=value, patients=figures[f"auroc.{name}"].patients)
        for name, sure in reliability.items():
            figures[f"calibration_error.{name}"] = calibration_figure(sure, name)
            if name in uncalibrated:
                figures[f"calibration_error.before.{name}"] = calibration_figure(uncalibrated[name], name, before=True)
        people = sum(one["patients"] for one in of_sites)
        figures["judged"] = TargetFigure(
            title=f"findings that the sites could judge, of {self.outputs}", value=len(rankings), patients=people
        )
        return PooledTarget(
            kind=self.settings.kind,
            patients=people,
            figures=figures,
            classes=rankings,
            reliability=reliability,
            uncalibrated=uncalibrated,
        )

    def thresholds(self, of_sites: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Return each finding's threshold of the best F1."""
        rankings = [rankings_of(_of_finding(of_sites, name), [name]) for name in self.settings.findings]
        return {name: best_threshold(one) for of_finding in rankings for name, one in of_finding.items()}

    def described_truth(self, truth: Encoded) -> str:
        """Return the findings that hold, and those that were not looked for."""
        if np.isnan(truth).all():
            return ""
        named = list(zip(self.settings.findings, truth, strict=True))
        held = ", ".join(name for name, value in named if value == 1) or "none"
        unknown = ", ".join(name for name, value in named if np.isnan(value))
        return f"{held} (not looked for: {unknown})" if unknown else held

    def _threshold(self, name: str) -> float:
        return self.known_thresholds.get(name, UNKNOWN_THRESHOLD)

    def _of_finding(
        self, name: str, answers: NDArray[np.float64], truths: NDArray[np.float64], patients: Sequence[str]
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], list[str]]:
        """Return probabilities (group, 2), labels and patients of a finding.

        Of cases in which it was looked for.
        """
        number = self.settings.findings.index(name)
        known = np.flatnonzero(~np.isnan(truths[:, number]))
        likely = answers[known, number]
        both = np.stack([1 - likely, likely], axis=1)
        return grouped(both, truths[known, number].astype(np.int64), [patients[int(i)] for i in known])


def _of_finding(of_sites: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    return [one["findings"][name] for one in of_sites if name in one["findings"]]


def _f1(said: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    return float(2 * (said & truth).sum() / max(said.sum() + truth.sum(), 1))
