"""Epsilons, held against published values and against other accountants."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import gammaln, logsumexp
from scipy.stats import norm

pytest.importorskip("dp_accounting")

from dp_accounting.pld import privacy_loss_distribution

from oncofed.errors import SpecError
from oncofed.privacy.accountant import (
    Event,
    accountant_name,
    epsilon,
    epsilons,
    noise_multiplier_for,
    renyi_epsilon,
)
from oncofed.privacy.composition import losses_of

# Noise multiplier, sampling, steps, delta -> by Google's PLD 0.6.0, Opacus' PRV 1.6.0 (its upper end), Opacus' RDP.
_TABLE = [
    (1.0, 0.01, 1000, 1e-5, 1.8282, 1.8384, 2.1014),
    (0.8, 0.04, 2000, 1e-5, 20.3236, 20.3345, 22.0627),
    (1.1, 256 / 60000, 14061, 1e-5, 2.3816, 2.3917, 2.5965),
    (2.0, 0.10, 500, 1e-4, 4.8213, 4.8316, 5.3220),
    (1.0, 0.16, 480, 1e-3, 22.1561, 22.1676, 24.6026),
    (4.0, 0.16, 480, 1e-3, 2.7462, 2.7565, 3.1138),
    (1.0, 1, 10, 1e-3, 14.0794, 14.0903, 15.4587),
    (6.0, 1, 50, 1e-3, 3.8502, 3.8606, 4.3238),
    (8.0, 0.5, 200, 1e-3, 2.7182, 2.7284, 3.0758),
    (0.6, 0.02, 300, 1e-4, 6.8760, 6.8867, 8.2692),
    (1.2, 0.08, 300, 1e-5, 6.974, 6.984, 7.670),
    (1.3, 0.08, 480, 1e-5, 7.894, 7.905, 8.615),
    (1.03, 0.16, 75, 1e-4, 8.049, 8.059, 9.173),
]
_JOB, _OTHER = Event(1.2, 0.08, 300), Event(2.0, 0.10, 500)


@pytest.mark.parametrize(("noise", "sampling", "steps", "delta", "pld", "prv", "rdp"), _TABLE)
def test_published_values(
    noise: float, sampling: float, steps: int, delta: float, pld: float, prv: float, rdp: float
) -> None:
    event = Event(noise, sampling, steps)
    assert epsilon([event], delta) == pytest.approx(pld, abs=0.005)
    assert epsilon([event], delta) == pytest.approx(prv - 0.01, abs=0.01)
    # Orders between whole ones make Opacus' bound a little tighter.
    assert renyi_epsilon([event], delta) == pytest.approx(_renyi(event, delta), rel=1e-6)
    assert epsilon([event], delta) < renyi_epsilon([event], delta) < 1.2 * rdp


@pytest.mark.parametrize("events", [[_JOB], [_JOB, _OTHER, _JOB], [_OTHER, Event(4.0, 1.0, 20), Event(9.0, 1e-3, 7)]])
def test_the_looser_bound_is_that_of_the_library(events: list[Event]) -> None:
    dp_accounting = pytest.importorskip("dp_accounting")
    accountant = dp_accounting.rdp.RdpAccountant(range(2, 128))
    for event in events:
        noise = dp_accounting.GaussianDpEvent(event.noise_multiplier)
        accountant.compose(dp_accounting.PoissonSampledDpEvent(event.sampling, noise), event.steps)
    assert renyi_epsilon(events, 1e-5) == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-9)


@pytest.mark.parametrize(
    ("events", "expected"), [([_JOB, _JOB], 10.223), ([_JOB, _OTHER], 9.316), ([_OTHER, _JOB], 9.316)]
)
def test_jobs_add_up_to_less_than_their_sum(events: list[Event], expected: float) -> None:
    assert epsilon(events, 1e-5) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(
    ("noise", "steps", "delta", "shown"), [(1, 1, 1e-5, 4.38), (5, 50, 1e-5, 6.57), (1, 10, 1e-3, 14.0794)]
)
def test_every_patient_in_each_step_is_exact(noise: float, steps: int, delta: float, shown: float) -> None:
    exact = _gaussian(math.sqrt(steps) / noise, delta)
    assert exact == pytest.approx(shown, abs=0.005)
    assert epsilon([Event(noise, 1, steps)], delta) == pytest.approx(exact, abs=1e-3)


@pytest.mark.parametrize(("noise", "sampling"), [(0.5, 0.02), (1, 0.1), (2, 0.5)])
def test_one_sampled_step_is_exact(noise: float, sampling: float) -> None:
    """Both distributions are known: the best test of them is a threshold."""

    def excess(eps: float) -> float:
        at = noise**2 * math.log((math.exp(eps) - 1 + sampling) / sampling) + 0.5
        without, with_ = norm.sf(at / noise), norm.sf((at - 1) / noise)
        return float((1 - sampling) * without + sampling * with_ - math.exp(eps) * without - 1e-5)

    assert epsilon([Event(noise, sampling, 1)], 1e-5) == pytest.approx(brentq(excess, 1e-6, 30), abs=1e-3)


def test_a_patient_of_many_records_has_more_than_a_record_of_one() -> None:
    """Why a record is no unit: ten of them at epsilon 1 each are 14.43."""
    mu = brentq(lambda mu: _gaussian(mu, 1e-5) - 1, 0.01, 1)
    assert epsilon([Event(1 / (10 * mu), 1, 1)], 1e-5) == pytest.approx(14.43, abs=0.01)


@pytest.mark.parametrize(
    ("steps", "sampling", "target", "noise"),
    [(300, 0.16, 8, 1.85), (300, 0.08, 8, 1.11), (1000, 0.08, 3, 3.64), (1000, 0.02, 8, 0.73)],
)
def test_noise_for_an_epsilon(steps: int, sampling: float, target: float, noise: float) -> None:
    found = noise_multiplier_for(target, 1e-5, sampling, steps)
    assert found == pytest.approx(noise, rel=0.005, abs=0.006)
    assert 0.99 * target < epsilon([Event(found, sampling, steps)], 1e-5) <= target


def test_noise_of_an_unreachable_epsilon() -> None:
    with pytest.raises(SpecError, match="no noise keeps: expected a larger epsilon"):
        noise_multiplier_for(1e-4, 1e-9, 1, 10)


def test_no_steps_cost_nothing() -> None:
    assert epsilon([], 1e-5) == 0
    assert epsilon([Event(1, 0.1, 0)], 1e-5) == 0


def test_huge_losses_are_told_and_not_computed_for_ever() -> None:
    assert epsilon([Event(0.3, 1, 100_000)], 1e-5) > 100_000


def test_the_accountant_is_named_with_its_version() -> None:
    assert accountant_name().startswith("PLD, dp-accounting 0.")


def _gaussian(mu: float, delta: float) -> float:
    """Return the exact epsilon of normal noise (Balle and Wang, ICML 2018)."""

    def excess(eps: float) -> float:
        return float(norm.cdf(mu / 2 - eps / mu) - math.exp(eps + norm.logcdf(-eps / mu - mu / 2)) - delta)

    return float(brentq(excess, 1e-9, 500))


def _renyi(event: Event, delta: float) -> float:
    """Return the bound by whole orders (Mironov et al., 2019; Canonne et al., NeurIPS 2020)."""
    found = []
    q = event.sampling
    for order in range(2, 128):
        terms = []
        for k in range(order + 1):
            if q == 1 and k < order:
                continue
            chance = 0.0 if q == 1 else (order - k) * math.log1p(-q) + k * math.log(q)
            ways = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
            terms.append(ways + chance + k * (k - 1) / (2 * event.noise_multiplier**2))
        loss = event.steps * logsumexp(terms) / (order - 1)
        found.append(loss + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1))
    return float(min(found))


@pytest.mark.parametrize("row", _TABLE)
def test_at_once_is_close_to_one_by_one(row: tuple[float, ...]) -> None:
    event, delta = Event(row[0], row[1], int(row[2])), row[3]
    (found,) = epsilons([[event]], delta)
    assert epsilon([event], delta) - 1e-3 < found < epsilon([event], delta) + 0.005


def test_many_kinds_of_steps_at_once_are_close_to_one_by_one() -> None:
    kinds = [Event(6 + number / 3, 0.02 + number / 300, 100 + 50 * (number % 5)) for number in range(12)]
    groups = [kinds, [_JOB, _JOB], [_JOB, _OTHER], [Event(4.0, 1.0, 20), _JOB], []]
    for group, found in zip(groups, epsilons(groups, 1e-5), strict=True):
        assert found == pytest.approx(epsilon(group, 1e-5), abs=0.005)


def test_of_a_tiny_delta_many_are_as_one() -> None:
    groups = [[Event(30.0, 0.01, 5)], [Event(20.0, 0.01, 5)]]
    assert epsilons(groups, 1e-12) == [epsilon(group, 1e-12) for group in groups]


def test_a_delta_below_what_may_happen_anyway_is_infinite() -> None:
    assert epsilons([[_JOB], []], 1e-300) == [math.inf, 0.0]


@pytest.mark.parametrize("sampling", [0.1, 1.0])
def test_distributions_are_read_as_the_library_tells_them(sampling: float) -> None:
    """Private parts of it are read: where this fails, see ``composition.losses_of`` beside the library's source."""
    interval = 1e-3
    kind = privacy_loss_distribution.from_gaussian_mechanism(
        1.1, value_discretization_interval=interval, sampling_prob=sampling
    )
    for promised in (0.05, 0.5, 2.0):
        deltas = []
        for way in losses_of(kind):
            beyond = promised - interval * (way.lowest + np.arange(len(way.masses)))
            deltas.append(way.infinite + (way.masses * -np.expm1(np.minimum(beyond, 0.0))).sum())
        assert max(deltas) == pytest.approx(kind.get_delta_for_epsilon(promised), rel=1e-9)


def test_a_library_that_holds_distributions_otherwise_is_refused_by_name() -> None:
    with pytest.raises(SpecError, match=r"found dp-accounting .* expected 0\.6"):
        losses_of(SimpleNamespace(_pmf_remove=SimpleNamespace()))
