"""Targets of kind ``survival``: how long until an event.

Some patients were not followed up to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from scipy.special import expit
from torch import Tensor
from typing_extensions import Self

from oncofed.data.targets import DatasetTarget, Encoded, FollowUp, TargetValue
from oncofed.data.time_units import DAYS, TimeUnit, days_in
from oncofed.errors import DataError
from oncofed.models.answers import Step, Told
from oncofed.tasks.metrics import Metric
from oncofed.tasks.pooled_target import PooledTarget
from oncofed.tasks.survival.cells import coarser_survival, is_survival_sums, survival_sums, told_groups
from oncofed.tasks.survival.figures import (
    auc_at,
    calibration_error,
    concordance,
    integrated_brier,
    uno_concordance,
)
from oncofed.tasks.survival.follow_up import by_patient
from oncofed.tasks.survival.losses import cox_loss, discrete_loss, failed_and_survived
from oncofed.tasks.survival.pooled import pooled_survival
from oncofed.tasks.targets.base import TARGET_KINDS, StatedTarget, TargetFigures, TargetHead, TargetSettings

# Nobody was followed longer: the unit must be another.
_LONGEST_YEARS = 130
_MOST_INTERVALS = 100
_UNO = Metric("concordance_uno", "concordance (Uno)")
_AUC = Metric("auc_at_horizon", "AUC at the horizon")
_BRIER = Metric("integrated_brier", "integrated Brier score")
_CALIBRATION = Metric("calibration_at_horizon", "calibration error at the horizon")


class SurvivalTarget(StatedTarget):
    """A time until an event.

    In one unit at all sites.

    An event at time zero counts, in the first interval. Who is censored at a time had no event by then.
    """

    kind: Literal["survival"] = "survival"
    unit: TimeUnit = Field(description="of horizon and intervals; datasets' times become it (a month is 30.4375 days)")
    horizon: float = Field(gt=0, allow_inf_nan=False, description="up to which the outcome is judged, in the unit")
    model: Literal["discrete", "cox"] = Field(
        "discrete",
        description="discrete: a hazard for each interval, and so the risk of an event by the horizon; cox: a relative "
        "risk alone, from comparisons within what a step computes at once: let that be as large as memory allows",
    )
    intervals: int | tuple[float, ...] = Field(
        10, description="up to the horizon: their number, or the time at which each ends; sites count by them"
    )

    @field_validator("intervals", mode="before")
    @classmethod
    def _are_a_number_or_ends(cls, value: Any) -> Any:
        ends = value if isinstance(value, list | tuple) else [value]
        number = len(ends) if ends is value else value
        numeric = all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends)
        if not numeric or not isinstance(number, int) or not 1 <= number <= _MOST_INTERVALS:
            raise ValueError(f"expected their number, 1 to {_MOST_INTERVALS}, or as many times at which they end")
        return value

    @model_validator(mode="after")
    def _intervals_reach_the_horizon(self) -> Self:
        ends = self.ends
        if not all(0 < end < math.inf for end in ends) or list(ends) != sorted(set(ends)) or ends[-1] != self.horizon:
            raise ValueError(
                f"intervals: found {', '.join(f'{end:g}' for end in ends)}, expected ascending times above zero of "
                f"which the last is the horizon, {self.horizon:g}"
            )
        return self

    @property
    def width(self) -> int:
        """Two: time, and one for an event."""
        return 2

    @property
    def least_batch(self) -> int:
        """Two for Cox's model: one alone tells nothing."""
        return 2 if self.model == "cox" else 1

    @property
    def ends(self) -> tuple[float, ...]:
        """When each interval ends; it holds that time."""
        if isinstance(self.intervals, int):
            return (*(self.horizon * part / self.intervals for part in range(1, self.intervals)), self.horizon)
        return self.intervals

    def encode(self, stated: TargetValue, declared: DatasetTarget) -> Encoded:
        """Return time in the job's unit, and the event."""
        if isinstance(stated, dict) and "event" in stated and "time" not in stated:
            raise DataError(f"target {self.name}: found an event without its time; state both, or neither")
        if not isinstance(stated, FollowUp):
            raise DataError(
                f"target {self.name}: found {stated!r}, expected a time and whether the event came then: "
                '{"time": 12.5, "event": true}'
            )
        days = days_in(declared.unit)
        if days is None:
            raise DataError(
                f"target {self.name}: the dataset's unit of time is {declared.unit!r}, expected one of "
                f"{', '.join(DAYS)}. Correct it in dataset.json, or register the table again"
            )
        if not math.isfinite(stated.time) or stated.time < 0:
            raise DataError(
                f"target {self.name}: found the time {stated.time:g}, expected {declared.unit} from the start of "
                "follow-up, zero or more. Is the date of the event before the first one?"
            )
        if stated.time * days > _LONGEST_YEARS * DAYS["years"]:
            raise DataError(
                f"target {self.name}: found {stated.time:g} {declared.unit}, longer than anybody lives. Is it stated "
                "in another unit?"
            )
        return stated.time * days / DAYS[self.unit], float(stated.event)


@TARGET_KINDS.register("survival")
class SurvivalHead(TargetHead[SurvivalTarget]):
    """Discrete hazards or Cox's relative risk; scored by concordance.

    Harrell's concordance stands for the target: it weights no pair, so that a few validation patients who were followed
    long do not decide which round is best, and pairs add up over sites. Uno's, which does not depend on when patients
    are censored, is told beside it. Cox's model tells no absolute risk, and so has no Brier score and no calibration.
    """

    Settings: ClassVar[type[TargetSettings]] = SurvivalTarget
    primary: ClassVar[Metric] = Metric("concordance", "concordance")
    metrics: ClassVar[tuple[Metric, ...]] = (_UNO, _AUC, _BRIER, _CALIBRATION)

    @property
    def outputs(self) -> int:
        """One an interval, or the log risk."""
        return len(self.settings.ends) if self._is_discrete else 1

    @property
    def declared_metrics(self) -> tuple[Metric, ...]:
        """Those that the model can have."""
        return self.metrics if self._is_discrete else (_UNO, _AUC)

    def loss(self, output: Tensor, truth: Tensor) -> Tensor:
        """Return each sample's part of the negative log likelihood."""
        if self._is_discrete:
            return discrete_loss(output, truth, torch.tensor(self.settings.ends, device=output.device))
        return cox_loss(output[:, 0], truth)

    def statements(self, truth: Tensor) -> Tensor:
        """Return in which intervals the event came, and which were outlived; Cox's model states nothing."""
        if not self._is_discrete:
            return super().statements(truth)
        failed, survived = failed_and_survived(truth, torch.tensor(self.settings.ends, device=truth.device))
        return failed.float().masked_fill(~(failed | survived), float("nan"))

    @property
    def steps(self) -> tuple[Step, ...]:
        """To survival at the end of each interval, or the log risk as it is."""
        if not self._is_discrete:
            return ()
        return (Step("affine", scale=(-1.0,)), Step("sigmoid"), Step("cumulative_product"))

    @property
    def told(self) -> tuple[Told, ...]:
        """The risk of an event by the horizon with the curve, or the log risk."""
        if not self._is_discrete:
            return (Told("log_risk", "log of the relative risk"),)
        unit, ends = self.settings.unit, self.settings.ends
        by_horizon = f"risk of the event by {ends[-1]:g} {unit}"
        curve = (
            Told(f"free_at_{end:g}", f"probability of no event by {end:g} {unit}", value=number, span=1.0, detail=True)
            for number, end in enumerate(ends)
        )
        return (Told("risk", by_horizon, value=len(ends) - 1, scale=-1.0, offset=1.0, span=1.0), *curve)

    def figures(
        self, answers: NDArray[np.float64], truths: NDArray[np.float64], patients: Sequence[str]
    ) -> TargetFigures:
        """Return concordance and others.

        A patient's images count as one, by their mean answer.
        """
        means, known, people = by_patient(answers, truths, patients)
        horizon, risks = self.settings.horizon, self._risks(means)
        found = {"": concordance(risks, known, horizon), _UNO.name: uno_concordance(risks, known, horizon)}
        found[_AUC.name] = auc_at(risks, known, horizon)
        if self._is_discrete:
            found[_BRIER.name] = integrated_brier(means, known, np.array(self.settings.ends))
            found[_CALIBRATION.name] = calibration_error(risks, known, horizon)
        ill, well = (
            {people[number] for number in np.flatnonzero(group)}
            for group in (known.events_by(horizon), known.free_at(horizon))
        )
        behind = {"": ill, _UNO.name: ill, _AUC.name: min(ill, well, key=len)}
        behind |= {metric.name: set(people) for metric in (_BRIER, _CALIBRATION)}
        told = {name: value for name, value in found.items() if value is not None}
        return TargetFigures(told.pop("", None), {}, told, {name: behind[name] for name in ("", *told)})

    def kinds(self, truths: NDArray[np.float64], patients: Sequence[str]) -> dict[str, set[str]]:
        """Return all patients, and those of each interval's end that cells tell."""
        _, known, people = by_patient(np.zeros((len(truths), 1)), truths, patients)
        told = told_groups(known, np.array(self.settings.ends))
        return {"": set(people)} | {name: {people[number] for number in group} for name, group in told.items()}

    def primary_figure(
        self, answers: NDArray[np.float64], truths: NDArray[np.float64], patients: Sequence[str]
    ) -> float | None:
        """Return the concordance."""
        means, known, _ = by_patient(answers, truths, patients)
        return concordance(self._risks(means), known, self.settings.horizon)

    def site_sums(
        self, answers: NDArray[np.float64], truths: NDArray[np.float64], patients: Sequence[str]
    ) -> dict[str, Any] | None:
        """Return counts of cells of intervals and risk; see ``survival.cells``."""
        means, known, people = by_patient(answers, truths, patients)
        risks = self._risks(means)
        return survival_sums(risks if self._is_discrete else expit(risks), known, people, np.array(self.settings.ends))

    def is_site_sums(self, value: Any, most: int) -> bool:
        """Return whether a value has the form of ``site_sums``."""
        return is_survival_sums(value, len(self.settings.ends), most)

    def withhold(self, sums: Mapping[str, Any], minimum: int) -> dict[str, Any] | None:
        """Return sums of coarser cells.

        Where a site's policy wants more patients in each.
        """
        return coarser_survival(sums, minimum)

    def over_sites(self, of_sites: Sequence[Mapping[str, Any]]) -> PooledTarget | None:
        """Return figures over all sites, and curves."""
        return pooled_survival(of_sites, self.settings.ends, self.settings.unit, self._is_discrete)

    def described_truth(self, truth: Encoded) -> str:
        """Return the follow-up in words."""
        if np.isnan(truth[0]):
            return ""
        return f"{'event at' if truth[1] else 'no event by'} {truth[0]:.4g} {self.settings.unit}"

    @property
    def _is_discrete(self) -> bool:
        return self.settings.model == "discrete"

    def _risks(self, answers: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what ranks patients, (case,): larger for an earlier event."""
        return 1 - answers[:, -1] if self._is_discrete else answers[:, 0]
