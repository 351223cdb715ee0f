"""Targets of kind ``mask``: classes or regions that are drawn, beside other targets of the image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor

from oncofed.data.targets import Encoded
from oncofed.models.answers import Step, Told
from oncofed.suppression import are_told_beside, withheld_counts
from oncofed.tasks.metrics import Metric
from oncofed.tasks.over_sites import figure
from oncofed.tasks.pooled import MEAN
from oncofed.tasks.pooled_target import PooledTarget, TargetFigure
from oncofed.tasks.settings import TaskSection, TaskSettings
from oncofed.tasks.site_sums import DIGITS_OF_FIGURES, figure_sums
from oncofed.tasks.sum_forms import is_part, is_patients, is_sum
from oncofed.tasks.surfaces import SURFACE_METRICS
from oncofed.tasks.targets.base import TARGET_KINDS, TargetFigures, TargetHead, TargetSettings

# In a case's figures, all of which are zero or more: it cannot be judged, or was not computed.
UNKNOWN = -1.0


class MaskTarget(TargetSettings):
    """A target that is drawn."""

    kind: str = "mask"
    mask: TaskSection = Field(description="the task of that name, with its settings")
    # Types of the tasks that it may be learned by.
    learned_by: ClassVar[tuple[str, ...]] = ("segmentation", "regions")

    @field_validator("mask")
    @classmethod
    def _is_a_mask(cls, mask: TaskSettings) -> TaskSettings:
        if mask.type not in cls.learned_by:
            raise ValueError(f"found a task {mask.type}, expected {' or '.join(cls.learned_by)}")
        return mask

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the classes or regions."""
        return tuple(self.mask.figure_names)

    @property
    def drawn(self) -> tuple[str, ...]:
        """Names of the mask's label values."""
        return tuple(self.mask.classes.values())


@TARGET_KINDS.register("mask")
class MaskHead(TargetHead[MaskTarget]):
    """The figures of masks, made of each case's.

    The network draws the mask itself: this head has none of its outputs, and a case's answer is how well its mask was
    drawn (``encoded``).
    """

    Settings: ClassVar[type[TargetSettings]] = MaskTarget
    primary: ClassVar[Metric] = Metric("dice", "Dice")
    metrics: ClassVar[tuple[Metric, ...]] = SURFACE_METRICS
    has_own_figure: ClassVar[bool] = True

    @property
    def outputs(self) -> int:
        """None: the map is no output of a head."""
        return 0

    def loss(self, output: Tensor, truth: Tensor) -> Tensor:
        """Return zeros: the map has the loss of its own task."""
        return output.new_zeros(len(truth))

    @property
    def steps(self) -> tuple[Step, ...]:
        """None."""
        return ()

    @property
    def told(self) -> tuple[Told, ...]:
        """None: a mask is told as a picture."""
        return ()

    def encoded(self, figures: Mapping[str, float]) -> NDArray[np.float64]:
        """Return a case's figures as an answer, (values,), ``UNKNOWN`` where there is none.

        Args:
            figures: of the case, ``METRIC.MEMBER`` -> value, NaN where it cannot be judged.
        """
        found = np.array([figures.get(name, np.nan) for name in self._columns], np.float64)
        return np.where(np.isnan(found), UNKNOWN, found)

    def answer(self, outputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return answers of cases whose mask was not judged."""
        return np.full((len(outputs), len(self._columns)), UNKNOWN)

    def figures(
        self, answers: NDArray[np.float64], truths: NDArray[np.float64], patients: Sequence[str]
    ) -> TargetFigures:
        """Return means over patients.

        The primary figure is that of the patients', each a mean over what their masks can judge.
        """
        values = self._by_patient(answers, patients)
        means = {name: float(np.mean(list(of.values()))) for name, of in values.items()}
        own = {f"{self.primary.name}.{member}": member for member in self.members}
        return TargetFigures(
            means.get(MEAN),
            {member: means[name] for name, member in own.items() if name in means},
            {name: value for name, value in means.items() if name not in own and name != MEAN},
            {"" if name == MEAN else own.get(name, name): set(of) for name, of in values.items()},
        )

    def site_sums(
        self, answers: NDArray[np.float64], truths: NDArray[np.float64], patients: Sequence[str]
    ) -> dict[str, Any] | None:
        """Return sums of patients' primary figures; see ``figure_sums``.

        The mean over a patient's members stays where a member's sums do: beside the others it tells them.
        """
        values = self._by_patient(answers, patients)
        known = {f"{self.primary.name}.{member}": member for member in self.members}
        own = {known.get(name, name): of for name, of in values.items() if name in known or name == MEAN}
        sums = figure_sums(own, MEAN)
        return _without(sums, {MEAN} if set(sums["figures"]) != set(own) else set()) if sums else None

    def is_site_sums(self, value: Any, most: int) -> bool:
        """Return whether a value has their form."""
        if not isinstance(value, Mapping) or set(value) != {"patients", "figures"}:
            return False
        people, figures = value["patients"], value["figures"]
        if not is_patients(people, most) or not isinstance(figures, Mapping) or not figures:
            return False
        return set(figures) <= {MEAN, *self.members} and all(
            isinstance(row, list)
            and len(row) == 3
            and is_patients(row[0], people)
            and is_part(row[0], people)
            and all(is_sum(part, 0, row[0], DIGITS_OF_FIGURES) for part in row[1:])
            for row in figures.values()
        )

    def withhold(self, sums: Mapping[str, Any], minimum: int) -> dict[str, Any] | None:
        """Return the sums that enough patients are behind, and whose lack tells of as many."""
        if sums["patients"] < minimum:
            return None
        counts = {name: row[0] for name, row in sums["figures"].items() if name != MEAN}
        hidden = withheld_counts(counts, sums["patients"], minimum)
        # Where the site sends the mean, it hides no member: those that are not there nobody has.
        return _without(sums, hidden if are_told_beside(counts, sums["patients"], minimum) else {*hidden, MEAN})

    def over_sites(self, of_sites: Sequence[Mapping[str, Any]]) -> PooledTarget | None:
        """Return the mean primary figure over the patients of all sites, in all and by member."""
        found, primary = {}, self.primary
        for name in (MEAN, *self.members):
            of_all = figure(sums["figures"][name] for sums in of_sites if name in sums["figures"])
            if of_all:
                title = primary.label if name == MEAN else f"{primary.label} of {name}"
                found[primary.name if name == MEAN else f"{primary.name}.{name}"] = TargetFigure(
                    title=title, value=of_all.mean, patients=of_all.patients, interval=of_all.interval
                )
        people = sum(sums["patients"] for sums in of_sites)
        return PooledTarget(kind=self.settings.kind, patients=people, figures=found)

    def described(self, answer: NDArray[np.float64]) -> dict[str, float | str]:
        """Return one case's figures by name."""
        found = zip(self._columns, answer.tolist(), strict=False)
        return {name: value for name, value in found if value != UNKNOWN}

    def own_figures(self, answer: NDArray[np.float64]) -> list[float]:
        """Return one case's primary figure of each member that its mask can judge."""
        found = self.described(answer)
        names = [f"{self.primary.name}.{member}" for member in self.members]
        return [float(found[name]) for name in names if name in found]

    def shares(self, answer: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return none: a case's figures are no answer of the model."""
        return np.zeros(0)

    @property
    def asks(self) -> str:
        """What it draws."""
        return f"contours of {', '.join(self.members)}"

    def in_short(self, answer: NDArray[np.float64]) -> str:
        """Return what stands beside the contours."""
        return "contours"

    def members_told(self, truth: Encoded) -> set[str]:
        """Return none: what a mask holds is not told."""
        return set()

    def described_truth(self, truth: Encoded) -> str:
        """Return whether the case has a mask."""
        return "" if np.isnan(truth[0]) else "a mask"

    @property
    def _columns(self) -> tuple[str, ...]:
        metrics = (self.primary, *self.metrics)
        return tuple(f"{metric.name}.{member}" for metric in metrics for member in self.members)

    def _by_patient(self, answers: NDArray[np.float64], patients: Sequence[str]) -> dict[str, dict[str, float]]:
        """Return each figure of each patient, a mean over cases, with the mean of their primary ones (``MEAN``)."""
        of_cases: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for answer, patient in zip(answers, patients, strict=True):
            figures = {name: value for name, value in self.described(answer).items() if isinstance(value, float)}
            own = self.own_figures(answer)
            for name, value in {**figures, **({MEAN: float(np.mean(own))} if own else {})}.items():
                of_cases[name][patient].append(value)
        return {
            name: {patient: float(np.mean(values)) for patient, values in of.items()} for name, of in of_cases.items()
        }


def _without(sums: Mapping[str, Any], names: set[str]) -> dict[str, Any] | None:
    """Return sums without some figures; None without any."""
    figures = {name: row for name, row in sums["figures"].items() if name not in names}
    return {**sums, "figures": figures} if figures else None
