"""Differences of two models over several sites.

Each site contributes a mean difference and its variance: ``Part``. When combined, sites are strata (Cochran, Sampling
Techniques, 1977, chapter 5), weighted by their numbers of patients.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy import stats

from oncofed.settings import StrictModel

_LEVEL = 0.95


@dataclass(frozen=True)
class Part:
    """One site's differences between two models.

    Attributes:
        patients: number of patients, each with both models.
        difference: mean over them.
        variance: of that mean, not of single differences.
    """

    patients: int
    difference: float
    variance: float

    @classmethod
    def of_sums(cls, patients: int, total: float, squares: float) -> Part:
        """Return it from sums of patients' differences and squares."""
        mean = total / patients
        spread = max(squares - patients * mean**2, 0.0) / max(patients - 1, 1)
        return cls(patients, mean, spread / patients)

    @classmethod
    def of_values(cls, values: Sequence[float] | NDArray[np.float64]) -> Part:
        """Return it from the patients' differences."""
        found = np.asarray(values, dtype=np.float64)
        spread = float(found.var(ddof=1)) if len(found) > 1 else 0.0
        return cls(len(found), float(found.mean()), spread / len(found))

    def lower_bound(self, tail: float) -> float:
        """Return the one-sided lower bound of the difference, by Student's t.

        Args:
            tail: probability that the true difference is below it.
        """
        reach = float(stats.t.isf(tail, max(self.patients - 1, 1))) * math.sqrt(self.variance)
        return self.difference - reach


class Difference(StrictModel):
    """The difference of two models on the same patients."""

    metric: str
    patients: int = Field(description="on whom it rests")
    sites: dict[str, int] = Field({}, description="patients of each site")
    difference: float = Field(description="first model less the second")
    interval: tuple[float, float] = Field(description="95 % interval, Student's t")
    p_equal: float = Field(description="two-sided, of there being no difference")
    margin: float | None = Field(None, description="by how much worse still counts as no worse (evaluation.margin)")
    p_not_inferior: float | None = Field(None, description="one-sided, of being worse by the margin or more")
    not_inferior: bool | None = Field(None, description="the whole interval lies above minus the margin")
    against: str | None = Field(None, description="SHA-256 of the second model's weights")


def combined_difference(parts: Mapping[str, Part], metric: str, margin: float | None = None) -> Difference:
    """Return the difference over all sites, stratified by site.

    Degrees of freedom by Satterthwaite (1946).

    Args:
        parts: by site; one alone is a plain paired t-test.
        metric: that is compared.
        margin: by how much a model may be worse and still count as not inferior.
    """
    patients = sum(part.patients for part in parts.values())
    shares = {site: part.patients / patients for site, part in parts.items()}
    difference = sum(shares[site] * part.difference for site, part in parts.items())
    variances = [(shares[site] ** 2 * part.variance, part.patients) for site, part in parts.items()]
    variance = sum(value for value, _ in variances)
    error = math.sqrt(variance)
    spread = sum(value**2 / max(count - 1, 1) for value, count in variances)
    freedom = variance**2 / spread if spread else math.inf
    reach = error * float(stats.t.ppf((1 + _LEVEL) / 2, freedom)) if error else 0.0

    def above(limit: float) -> float:
        """Return the p-value of the difference against a limit."""
        if not error:
            return 0.0 if difference > limit else 1.0
        return float(stats.t.sf((difference - limit) / error, freedom))

    one_sided = min(above(0.0), 1 - above(0.0)) if error else 0.5 * (difference == 0)
    low, high = difference - reach, difference + reach
    return Difference(
        metric=metric,
        patients=patients,
        sites={site: part.patients for site, part in sorted(parts.items())},
        difference=difference,
        interval=(low, high),
        p_equal=min(2 * one_sided, 1.0),
        margin=margin,
        p_not_inferior=None if margin is None else above(-margin),
        not_inferior=None if margin is None else low > -margin,
    )


def area_difference(
    first: NDArray[np.float64], second: NDArray[np.float64], labels: NDArray[np.int64], patients: Sequence[str]
) -> Part:
    """Return the difference of two mean AUROCs with its variance.

    DeLong et al. (1988).

    The contributions of a patient's images are summed before squaring, since they are not independent (Obuchowski,
    Biometrics, 1997).

    Args:
        first: probabilities, (image, class), of the first model.
        second: the same of the second.
        labels: true classes, (image,).
        patients: key of each image's patient.

    Raises:
        ValueError: a class has no patient, or all of them.
    """
    area, influence = _mean_area(first, labels)
    other, of_other = _mean_area(second, labels)
    by_patient: dict[str, float] = defaultdict(float)
    for patient, value in zip(patients, influence - of_other, strict=True):
        by_patient[patient] += value
    return Part(len(by_patient), area - other, float(sum(value**2 for value in by_patient.values())))


def _mean_area(found: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[float, NDArray[np.float64]]:
    """Return the mean one-vs-rest AUROC, and each image's influence.

    With two classes it is that of the second, which equals the first's.
    """
    classes = [1] if found.shape[1] == 2 else list(range(found.shape[1]))
    influence, areas = np.zeros(len(labels)), []
    for value in classes:
        is_it = labels == value
        if not is_it.any() or is_it.all():
            raise ValueError("a class has nobody, or everybody")
        ill, well = np.sort(found[is_it, value]), np.sort(found[~is_it, value])
        above = share_below(found[is_it, value], well)
        below = 1 - share_below(found[~is_it, value], ill)
        area = float(above.mean())
        areas.append(area)
        for members, placed in ((is_it, above), (~is_it, below)):
            count = len(placed)
            correction = math.sqrt(count / max(count - 1, 1))
            influence[members] += correction * (placed - area) / count / len(classes)
    return float(np.mean(areas)), influence


def share_below(values: NDArray[np.float64], ordered: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of ordered values below each value.

    Equal values count half.
    """
    lower, upper = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    found: NDArray[np.float64] = (lower + upper) / 2 / len(ordered)
    return found
