"""Targets of kind ``value``: a number with a unit and a plausible range."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator
from scipy import stats
from torch import Tensor
from torch.nn import functional

from oncofed.data.targets import DatasetTarget, Encoded, TargetValue
from oncofed.data.units import Unit, conversion_factor
from oncofed.errors import DataError
from oncofed.models.answers import Step, Told
from oncofed.suppression import LEAST_PATIENTS
from oncofed.tasks.agreement import Moments
from oncofed.tasks.metrics import Metric
from oncofed.tasks.pooled_target import PooledTarget, TargetFigure
from oncofed.tasks.sum_forms import is_count, is_patients, is_sum
from oncofed.tasks.targets.base import TARGET_KINDS, StatedTarget, TargetFigures, TargetHead, TargetSettings

# Of a normal distribution: 90 % and 95 % lie within so many standard deviations.
_WITHIN_90, _WITHIN_95 = float(stats.norm.ppf(0.95)), float(stats.norm.ppf(0.975))
# Sums are of values as shares of the range; further digits could carry hidden information.
_DIGITS = 5
_LEAST_LOG_SPREAD, _MOST_LOG_SPREAD = -7.0, 7.0


class ValueTarget(StatedTarget):
    """A target that is a number."""

    kind: Literal["value"] = "value"
    unit: Unit = Field("", description="of the values, by UCUM, such as mm; other units of its dimension are converted")
    range: tuple[float, float] = Field(
        description="plausible least and greatest value; a case outside is set aside. Training has its middle as 0 and "
        "its ends as -1 and 1"
    )
    loss: Literal["mse", "huber", "gaussian"] = Field(
        "mse", description="gaussian also learns how far off it may be (heteroscedastic)"
    )
    huber_from: float = Field(0.1, gt=0, le=2, description="share of half the range from which errors count linearly")
    beta: float = Field(
        0.5, ge=0, le=1, description="of the beta-NLL of loss gaussian: 0 is the likelihood, 1 weighs cases as mse does"
    )

    @field_validator("range")
    @classmethod
    def _rises(cls, ends: tuple[float, float]) -> tuple[float, float]:
        if not (math.isfinite(ends[0]) and math.isfinite(ends[1]) and ends[0] < ends[1]):
            raise ValueError(f"found {ends[0]:g} to {ends[1]:g}, expected a lower end and a higher one")
        return ends

    def encode(self, stated: TargetValue, declared: DatasetTarget) -> Encoded:
        """Return a value in the job's unit.

        Raises:
            DataError: it is no number, in a unit of another dimension, or outside the plausible range.
        """
        if isinstance(stated, bool) or not isinstance(stated, int | float) or not math.isfinite(stated):
            raise DataError(f"target {self.name}: found {stated!r}, expected a number")
        try:
            value = stated * conversion_factor(declared.unit, self.unit)
        except DataError as error:
            raise DataError(f"target {self.name}: {error}") from None
        low, high = self.range
        if not low <= value <= high:
            converted = f", {value:g} {self.unit}," if declared.unit != self.unit else ""
            raise DataError(
                f"target {self.name}: found {stated:g} {declared.unit}{converted} outside the plausible range, "
                f"{low:g} to {high:g} {self.unit}. Correct the value, its unit, or the job's range"
            )
        return (float(value),)


@TARGET_KINDS.register("value")
class ValueHead(TargetHead[ValueTarget]):
    """Squared error, Huber's loss or beta-NLL; scored by Lin's concordance.

    The network learns values on a scale from -1 to 1 that the job's plausible range gives, so that no site's values
    are needed for it; its answers are bounded by the range. The loss ``gaussian`` has a second output, the logarithm of
    the variance, and is the beta-NLL of Seitzer et al. (ICLR 2022): the likelihood alone neglects cases that it takes
    to be uncertain. Federated calibration of the spread is not there; how many true values lie within its 90 %
    interval is reported.
    """

    Settings: ClassVar[type[TargetSettings]] = ValueTarget
    primary: ClassVar[Metric] = Metric("concordance_correlation", "Lin's concordance", bounds=(-1, 1))

    @property
    def outputs(self) -> int:
        """The value, and with loss ``gaussian`` the logarithm of its variance."""
        return 2 if self._has_spread else 1

    @property
    def declared_metrics(self) -> tuple[Metric, ...]:
        """Errors in the target's unit, bounded by its range."""
        unit, width = self.settings.unit, self._half * 2
        found = (
            Metric("mae", "mean absolute error", unit=unit, bounds=(0, width)),
            Metric("rmse", "root mean squared error", unit=unit, bounds=(0, width)),
            Metric("r2", "R²", bounds=(-1e6, 1)),
            Metric("bias", "bias (Bland-Altman)", unit=unit, bounds=(-width, width)),
            Metric("limit_low", "lower limit of agreement", unit=unit, bounds=(-5 * width, 5 * width)),
            Metric("limit_high", "upper limit of agreement", unit=unit, bounds=(-5 * width, 5 * width)),
        )
        return (*found, Metric("coverage_90", "share within the 90 % interval")) if self._has_spread else found

    def loss(self, output: Tensor, truth: Tensor) -> Tensor:
        """Return each sample's loss on the scale from -1 to 1."""
        known = ~truth[:, 0].isnan()
        stated = ((truth[:, 0] - self._middle) / self._half).nan_to_num(0)
        predicted = output[:, 0]
        if self.settings.loss == "huber":
            return functional.huber_loss(predicted, stated, reduction="none", delta=self.settings.huber_from) * known
        if not self._has_spread:
            return functional.mse_loss(predicted, stated, reduction="none") * known
        log_variance = output[:, 1].clamp(_LEAST_LOG_SPREAD, _MOST_LOG_SPREAD)
        likelihood = 0.5 * (log_variance + (predicted - stated).square() * (-log_variance).exp())
        return likelihood * (self.settings.beta * log_variance).exp().detach() * known

    @property
    def steps(self) -> tuple[Step, ...]:
        """To the value and, with loss ``gaussian``, its standard deviation, in the unit."""
        half = (self._half,)
        value = (
            Step("affine", scale=half, offset=(self._middle,), last=1),
            Step("clip", bounds=self.settings.range, last=1),
        )
        if not self._has_spread:
            return value
        return (
            *value,
            Step("clip", bounds=(_LEAST_LOG_SPREAD, _MOST_LOG_SPREAD), first=1),
            Step("affine", scale=(0.5,), first=1),
            Step("exp", first=1),
            Step("affine", scale=half, first=1),
        )

    @property
    def told(self) -> tuple[Told, ...]:
        """The value and its spread."""
        unit = self.settings.unit
        named = f"_{unit}" if unit else ""
        found = (Told(f"value{named}", "value", unit, span=2 * self._half),)
        return (*found, Told(f"sd{named}", "standard deviation", unit, value=1)) if self._has_spread else found

    def figures(
        self, answers: NDArray[np.float64], truths: NDArray[np.float64], patients: Sequence[str]
    ) -> TargetFigures:
        """Return agreement and errors over patients' mean values."""
        predicted, stated, people = _by_patient(answers, truths, patients)
        if not people:
            return TargetFigures(None)
        x, y = self._shares(stated), self._shares(predicted[:, 0])
        moments = Moments.of(x, y)
        extra = self._errors(moments, float(np.abs(x - y).mean()))
        if self._has_spread:
            extra["coverage_90"] = float(_inside(predicted, stated).mean())
        behind = {name: set(people) for name in ("", *extra)}
        return TargetFigures(moments.agreement, {}, extra, behind)

    def site_sums(
        self, answers: NDArray[np.float64], truths: NDArray[np.float64], patients: Sequence[str]
    ) -> dict[str, Any] | None:
        """Return sums over patients, of values as shares of the range.

        Returns:
            patients: their number; sums: of stated values, predictions, squares of both, squared and absolute
            differences; inside: number of stated values within the 90 % interval, None if that tells of few patients
            or the target has no spread.
        """
        predicted, stated, people = _by_patient(answers, truths, patients)
        if len(people) < LEAST_PATIENTS:
            return None
        x, y = self._shares(stated), self._shares(predicted[:, 0])
        inside = int(_inside(predicted, stated).sum()) if self._has_spread else None
        if inside is not None and not _tells_of_enough(inside, len(people)):
            inside = None
        # Products follow from the squared differences, and lose more digits where those are small.
        sums = (x, y, x**2, y**2, (x - y) ** 2, np.abs(x - y))
        return {
            "patients": len(people),
            "sums": [round(float(part.sum()), _DIGITS) for part in sums],
            "inside": inside,
        }

    def is_site_sums(self, value: Any, most: int) -> bool:
        """Return whether a value has their form."""
        if not isinstance(value, Mapping) or set(value) != {"patients", "sums", "inside"}:
            return False
        patients, sums, inside = value["patients"], value["sums"], value["inside"]
        if not is_patients(patients, most) or not isinstance(sums, list) or len(sums) != 6:
            return False
        if not all(is_sum(part, 0, patients, _DIGITS) for part in sums):
            return False
        return inside is None or (
            self._has_spread and is_count(inside, patients) and _tells_of_enough(inside, patients)
        )

    def withhold(self, sums: Mapping[str, Any], minimum: int) -> dict[str, Any] | None:
        """Return the sums where enough patients are behind them."""
        if sums["patients"] < minimum:
            return None
        inside = sums["inside"]
        enough = inside is None or _tells_of_enough(inside, sums["patients"], minimum)
        return dict(sums) if enough else {**sums, "inside": None}

    def over_sites(self, of_sites: Sequence[Mapping[str, Any]]) -> PooledTarget | None:
        """Return agreement and errors, exact up to the sums' digits."""
        people = sum(one["patients"] for one in of_sites)
        x, y, xx, yy, squares, absolute = (sum(one["sums"][n] for one in of_sites) for n in range(6))
        shares = Moments(people, x, y, xx, yy, (xx + yy - squares) / 2)
        values = {"concordance_correlation": shares.agreement}
        values |= self._errors(shares, absolute / people)
        known = {metric.name: metric for metric in (self.primary, *self.declared_metrics)}
        figures = {
            name: TargetFigure(title=known[name].title, unit=known[name].unit, value=value, patients=people)
            for name, value in values.items()
            if value is not None
        }
        counting = [one for one in of_sites if one["inside"] is not None]
        if counting:
            counted = sum(one["patients"] for one in counting)
            share = sum(one["inside"] for one in counting) / counted
            title = known["coverage_90"].title
            figures["coverage_90"] = TargetFigure(title=title, value=share, patients=counted)
        return PooledTarget(kind=self.settings.kind, patients=people, figures=figures)

    def described_truth(self, truth: Encoded) -> str:
        """Return the stated value with its unit."""
        return "" if np.isnan(truth[0]) else f"{truth[0]:g} {self.settings.unit}".strip()

    @property
    def _has_spread(self) -> bool:
        return bool(self.settings.loss == "gaussian")

    @property
    def _middle(self) -> float:
        return float(sum(self.settings.range)) / 2

    @property
    def _half(self) -> float:
        return float(self.settings.range[1] - self.settings.range[0]) / 2

    def _shares(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return values as shares of the range, from 0 to 1."""
        found: NDArray[np.float64] = (values - self.settings.range[0]) / (2 * self._half)
        return found

    def _errors(self, moments: Moments, absolute: float) -> dict[str, float]:
        """Return the errors, in the unit.

        Args:
            moments: of stated and predicted values as shares of the range.
            absolute: mean absolute difference of the shares.
        """
        width = 2 * self._half
        reach = _WITHIN_95 * moments.spread_of_difference
        found = {
            "mae": absolute * width,
            "rmse": math.sqrt(moments.squared_error) * width,
            "bias": moments.bias * width,
            "limit_low": (moments.bias - reach) * width,
            "limit_high": (moments.bias + reach) * width,
        }
        explained = moments.explained
        found |= {} if explained is None else {"r2": max(explained, -1e6)}
        return {name: value for name, value in found.items() if not math.isnan(value)}


def _by_patient(
    answers: NDArray[np.float64], truths: NDArray[np.float64], patients: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str]]:
    """Return mean answers and stated values by patient.

    (patient, values), (patient,), and the patients' keys.
    """
    people = list(dict.fromkeys(patients))
    number = {patient: index for index, patient in enumerate(people)}
    of_case = [number[patient] for patient in patients]
    counts = np.bincount(of_case, minlength=len(people)) if people else np.ones(0)
    predicted, stated = np.zeros((len(people), answers.shape[1])), np.zeros(len(people))
    np.add.at(predicted, of_case, answers)
    np.add.at(stated, of_case, truths[:, 0])
    return predicted / counts[:, None], stated / counts, people


def _inside(predicted: NDArray[np.float64], stated: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return whether stated values lie within the 90 % interval, (patient,)."""
    return np.asarray(np.abs(predicted[:, 0] - stated) <= _WITHIN_90 * predicted[:, 1])


def _tells_of_enough(count: int, whole: int, least: int = LEAST_PATIENTS) -> bool:
    """Return whether count and remainder are zero or large enough."""
    return all(part == 0 or part >= least for part in (count, whole - count))
