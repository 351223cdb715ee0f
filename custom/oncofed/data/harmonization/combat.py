"""ComBat from sums: where sites measure differently, apart from how their patients differ.

A value is a mean over all sites, what covariates say of the patient, and the site's own shift and scale (Johnson, Li
and Rabinovic, Biostatistics 2007; Fortin et al., NeuroImage 2018). Mean, effects and spread follow from sums that add
up over sites (Chen et al., NeuroImage 2022). A site's shift and scale follow from these and from its own patients: they
need not leave it, and a site that joins later finds its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oncofed.errors import DataError
from oncofed.suppression import LEAST_PATIENTS

Numbers = NDArray[np.float64]

# Of how a covariate varies, this share at least is within sites: else a site's shift cannot be told from its effect.
_LEAST_WITHIN = 0.01
# A spread below this share of the mean is rounding.
_CONSTANT = 1e-7
# The posterior is a fixed point; it is found within some dozen iterations.
_CLOSE, _MOST_ITERATIONS = 1e-12, 10_000


@dataclass(frozen=True, eq=False)
class Sums:
    """What one site's patients add up to.

    Scatter is about the site's own means, so that sums of large values lose no digits.

    Attributes:
        patients: how many.
        covariates: sum of each, (covariate,).
        scatter: of covariates with each other, (covariate, covariate).
        values: sum of each, (value,).
        joint: scatter of covariates with values, (covariate, value).
        squares: scatter of each value with itself, (value,).
    """

    patients: int
    covariates: Numbers
    scatter: Numbers
    values: Numbers
    joint: Numbers
    squares: Numbers


@dataclass(frozen=True, eq=False)
class Common:
    """What the sites agree on.

    Attributes:
        mean: of each value over all patients, (value,).
        spread: of each value within sites, apart from covariates, (value,); 0: it never varies, and stays as it is.
        effects: of covariates on values, (covariate, value).
        covariates: mean of each over all patients, (covariate,), which stands for one that is missing.
    """

    mean: Numbers
    spread: Numbers
    effects: Numbers
    covariates: Numbers


@dataclass(frozen=True, eq=False)
class Shift:
    """How one site measures, in spreads from the common mean.

    Attributes:
        shift: of each value, (value,).
        scale: its variance at the site, as a share of the common one, (value,).
    """

    shift: Numbers
    scale: Numbers


def sums_of(values: Numbers, covariates: Numbers) -> Sums:
    """Return the sums of one site's patients.

    Args:
        values: (patient, value), without missing ones.
        covariates: whose effect is kept, (patient, covariate), without missing ones.
    """
    patients = len(values)
    x = covariates - covariates.mean(axis=0)
    y = values - values.mean(axis=0)
    return Sums(patients, covariates.sum(axis=0), x.T @ x, values.sum(axis=0), x.T @ y, (y * y).sum(axis=0))


def agree(sites: Sequence[Sums], names: Sequence[str] = ()) -> Common:
    """Return what the sites' sums say together.

    Args:
        sites: the sums of each, in any order.
        names: of the covariates, for messages.

    Raises:
        DataError: there is one site alone, one has fewer than five patients, no value varies, or a covariate goes with
            the site.
    """
    if len(sites) < 2:
        raise DataError(
            f"found sums of {len(sites)} site{'' if len(sites) == 1 else 's'}, expected two at least: what is one "
            "scanner's shows beside another's"
        )
    fewest = min(site.patients for site in sites)
    if fewest < LEAST_PATIENTS:
        raise DataError(f"found a site with {fewest} patients, expected {LEAST_PATIENTS} at least")
    patients = sum(site.patients for site in sites)
    mean_x = _total([site.covariates for site in sites]) / patients
    mean_y = _total([site.values for site in sites]) / patients
    within = _total([site.scatter for site in sites])
    between = _total([site.patients * np.outer(*2 * (site.covariates / site.patients - mean_x,)) for site in sites])
    _refuse_confounded(within, within + between, names)
    joint = _total([site.joint for site in sites])
    effects: Numbers = np.linalg.pinv(within, rcond=1e-10, hermitian=True) @ joint
    squares = _total([site.squares for site in sites])
    left = np.maximum(squares - (effects * joint).sum(axis=0), 0.0)
    spread: Numbers = np.sqrt(left / patients)
    spread = np.where(spread > _CONSTANT * np.maximum(np.abs(mean_y), _CONSTANT), spread, 0.0)
    if not spread.any():
        raise DataError("found values that are the same in every patient, expected some that vary")
    return Common(mean_y, spread, effects, mean_x)


def shift_of(site: Sums, common: Common) -> Shift:
    """Return how a site measures, with empirical Bayes: values that few patients tell of lean on the site's others.

    A site that had no part in what is common finds its own as well.

    Args:
        site: its sums.
        common: what the sites agreed on.

    Raises:
        DataError: it has fewer than five patients.
    """
    if site.patients < LEAST_PATIENTS:
        raise DataError(
            f"a scanner's shift is told from {LEAST_PATIENTS} patients at least, found fewer: register more, "
            "or leave data.harmonization out"
        )
    known = common.spread > 0
    shift, scale = np.zeros_like(common.mean), np.ones_like(common.mean)
    shift[known], scale[known] = _posterior(*_standardized(site, common), site.patients)
    return Shift(shift, scale)


def distances(site: Sums, common: Common) -> tuple[float, float, float, float]:
    """Return how far a site's values are from the common ones, before and after.

    Args:
        site: its sums.
        common: what the sites agreed on.

    Returns:
        The mean over values of how far the site's mean lies from the common one, apart from covariates, in spreads,
        before and after; and the factor by which its spread differs, likewise (1: not at all).
    """
    shift, variance = _standardized(site, common)
    own, known = shift_of(site, common), common.spread > 0
    after = (shift - own.shift[known]) / np.sqrt(own.scale[known])
    varies = variance > 0

    def factor(variances: Numbers) -> float:
        return float(np.exp(np.abs(np.log(variances[varies]) / 2).mean())) if varies.any() else 1.0

    means = float(np.abs(shift).mean()), float(np.abs(after).mean())
    return *means, factor(variance), factor(variance / own.scale[known])


def _standardized(site: Sums, common: Common) -> tuple[Numbers, Numbers]:
    """Return mean and variance at a site of the values that vary, in common spreads and apart from covariates."""
    known = common.spread > 0
    spread, effects = common.spread[known], common.effects[:, known]
    moved = (site.covariates / site.patients - common.covariates) @ effects
    found = (site.values[known] / site.patients - common.mean[known] - moved) / spread
    left = site.squares[known] - 2 * (effects * site.joint[:, known]).sum(axis=0)
    left = np.maximum(left + (effects * (site.scatter @ effects)).sum(axis=0), 0.0)
    return found, left / spread**2 / (site.patients - 1)


def harmonized(values: Numbers, covariates: Numbers, common: Common, site: Shift) -> Numbers:
    """Return values as the average site would have measured them, (patient, value).

    Args:
        values: (patient, value).
        covariates: (patient, covariate); NaN where missing, for which the mean stands.
        common: what the sites agreed on.
        site: where they were measured.
    """
    x = np.where(np.isnan(covariates), 0.0, covariates - common.covariates)
    expected = common.mean + x @ common.effects
    moved: Numbers = (values - expected - site.shift * common.spread) / np.sqrt(site.scale) + expected
    return np.where(common.spread > 0, moved, values)


def _posterior(shift: Numbers, variance: Numbers, patients: int) -> tuple[Numbers, Numbers]:
    """Return the posterior means of a site's shifts and variances.

    Priors are normal and inverse gamma, by the moments over the site's values. Where these cannot tell priors, as of
    one value alone, what was found stands; a variance of 0 then means that nothing is to be scaled.
    """
    several = len(shift) > 1
    of_shifts, of_variances = (float(found.var(ddof=1)) if several else 0.0 for found in (shift, variance))
    if of_shifts <= 0 or of_variances <= 0:
        return shift, np.where(variance > 0, variance, 1.0)
    usual, mean = shift.mean(), variance.mean()
    form, size = (2 * of_variances + mean**2) / of_variances, (mean * of_variances + mean**3) / of_variances
    old_shift, old_variance = shift, variance
    for _ in range(_MOST_ITERATIONS):
        new_shift = (of_shifts * patients * shift + old_variance * usual) / (of_shifts * patients + old_variance)
        squares = (patients - 1) * variance + patients * (shift - new_shift) ** 2
        new_variance = (squares / 2 + size) / (patients / 2 + form - 1)
        change = max(
            np.abs(new_shift - old_shift).max(), np.abs(new_variance / np.maximum(old_variance, _CLOSE) - 1).max()
        )
        old_shift, old_variance = new_shift, new_variance
        if change < _CLOSE:
            break
    return old_shift, old_variance


def _refuse_confounded(within: Numbers, whole: Numbers, names: Sequence[str]) -> None:
    """Refuse covariates, or sums of them, that vary between sites alone.

    Raises:
        DataError: names the one that has the largest part.
    """
    values, directions = np.linalg.eigh(whole)
    there = values > 1e-12 * max(float(values.max(initial=0.0)), 1e-300)
    if not there.any():
        return
    scaled = directions[:, there] / np.sqrt(values[there])
    shares, parts = np.linalg.eigh(scaled.T @ within @ scaled)
    if shares[0] >= _LEAST_WITHIN:
        return
    worst = int(np.abs(np.sqrt(np.diag(whole)) * (scaled @ parts[:, 0])).argmax())
    name = names[worst] if worst < len(names) else f"covariate {worst}"
    raise DataError(
        f"{name} goes with the site: it varies between the sites and hardly within them, so its effect cannot be told "
        "from the scanner's. Leave it out of data.harmonization.preserve"
    )


def _total(parts: Sequence[Numbers]) -> Numbers:
    total: Numbers = np.sum(np.stack(parts), axis=0)
    return total
