"""Privacy loss of noisy steps, composed over jobs.

Neighbours are two sets of training patients, one of which lacks one patient; their number is public. A step draws each
patient alone with the same probability (Poisson sampling), adds up gradients no longer than the clip, and adds normal
noise. What such steps tell together is computed by privacy loss distributions (Sommer et al., PETS 2019; Doroshenko et
al., PETS 2022) of Google's dp-accounting, which bounds from above.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import gammaln, logsumexp
from scipy.stats import norm

from oncofed.errors import SpecError
from oncofed.privacy import composition

LEAST_NOISE = 0.3  # below it one step of all patients has an epsilon above 20 at a delta of 1e-5
_MOST_NOISE = 1e4

_FINE, _COARSE = 1e-4, 1e-3
_FINEST, _MOST_WIDE = 1e-5, 1e-2
_LEAST_DELTA = 1e-9  # below it transforms of many kinds at once are rounding
_NEAR = 0.002  # what many epsilons at once may be too large by
_CLOSE = 5e-4  # relative difference of two multipliers that count as one
_ORDERS = tuple(range(2, 128))  # of Rényi divergences: whole ones alone have an exact sum


@dataclass(frozen=True, order=True)
class Event:
    """Steps of one kind.

    Args:
        noise_multiplier: the noise's standard deviation, in clips.
        sampling: a patient's chance to be in a step, in (0, 1].
        steps: how many.
    """

    noise_multiplier: float
    sampling: float
    steps: int


def accountant_name() -> str:
    """Return the accountant and its version, as reports name it."""
    _library()
    return f"PLD, dp-accounting {metadata.version('dp-accounting')}"


def epsilon(events: Iterable[Event], delta: float) -> float:
    """Return what all events together cost a patient who was in each.

    Equal calls are computed once.

    Args:
        events: of one job or of many, in any order.
        delta: in (0, 1).

    Returns:
        An upper bound; infinity where delta is too small for floating point.

    Raises:
        SpecError: the library is not installed.
    """
    merged = _merged(events)
    return _epsilon(merged, delta, _interval(merged)) if merged else 0.0


def epsilons(groups: Sequence[Iterable[Event]], delta: float) -> list[float]:
    """Return what the events of each group cost a patient who was in each, in the order of the groups.

    Each is an upper bound, within 0.01 of ``epsilon``, and of many kinds of steps much sooner known.

    Args:
        groups: of events, of one job or of many.
        delta: in (0, 1).

    Raises:
        SpecError: the library is not installed.
    """
    merged = [_merged(_steps_of_all(group)) for group in groups]
    kinds = sorted({(event.noise_multiplier, event.sampling) for group in merged for event in group})
    if not kinds or delta < _LEAST_DELTA:
        return [epsilon(group, delta) for group in merged]
    place = {kind: number for number, kind in enumerate(kinds)}
    steps = np.zeros((len(merged), len(kinds)), np.int64)
    for row, group in zip(steps, merged, strict=True):
        for event in group:
            row[place[event.noise_multiplier, event.sampling]] = event.steps
    interval = min(_wide_enough(group, delta) for group in merged if group)
    losses = [_one_step(*kind, interval) for kind in kinds]
    return [float(value) for value in composition.epsilons(losses, steps, interval, delta)]


def renyi_epsilon(events: Iterable[Event], delta: float) -> float:
    """Return the looser bound by Rényi divergences (Mironov, CSF 2017), which is soon computed for many patients."""
    steps = (event.steps * _divergences(event.noise_multiplier, event.sampling) for event in events)
    total = sum(steps, np.zeros(len(_ORDERS)))
    return float(_library().rdp.compute_epsilon(_ORDERS, total, delta)[0])


@lru_cache(maxsize=256)
def _divergences(noise_multiplier: float, sampling: float) -> npt.NDArray[np.float64]:
    """Return a step's Rényi divergence of each order (Mironov, Talwar and Zhang, 2019, equation 3)."""
    order = np.array(_ORDERS, np.float64)
    if sampling >= 1:
        return np.asarray(order / (2 * noise_multiplier**2), np.float64)
    order, drawn = order[:, None], np.arange(_ORDERS[-1] + 1.0)
    ways = gammaln(order + 1) - gammaln(drawn + 1) - gammaln(order - drawn + 1)  # minus infinity above the order
    chance = (order - drawn) * math.log1p(-sampling) + drawn * math.log(sampling)
    moments = logsumexp(ways + chance + drawn * (drawn - 1) / (2 * noise_multiplier**2), axis=1)
    return np.asarray(moments / (order[:, 0] - 1), np.float64)


@lru_cache(maxsize=64)
def noise_multiplier_for(epsilon: float, delta: float, sampling: float, steps: int) -> float:
    """Return the least noise that keeps to an epsilon.

    Rounded up in the fourth digit, so that all sites of a job come to the same.

    Args:
        epsilon: of all steps together, at most.
        delta: in (0, 1).
        sampling: a patient's chance to be in a step.
        steps: of the whole job at one site.

    Raises:
        SpecError: no noise is enough, or the library is not installed.
    """

    def cost(noise: float, interval: float) -> float:
        events = (Event(noise, sampling, steps),)
        return _epsilon(events, delta, max(interval, _interval(events)))

    low, high = LEAST_NOISE, 4 * LEAST_NOISE
    if cost(low, _COARSE) <= epsilon:
        return low
    while cost(high, _COARSE) > epsilon:
        low, high = high, 4 * high
        if high > _MOST_NOISE:
            raise SpecError(
                f"found epsilon {epsilon:g} at delta {delta:g} for {steps} steps, which no noise keeps: expected a "
                "larger epsilon or delta, or fewer steps"
            )
    near = brentq(lambda noise: math.log(cost(noise, _COARSE) / epsilon), low, high, rtol=_CLOSE)
    noise = rounded_up(near)
    while cost(noise, _FINE) > epsilon:
        noise = rounded_up(noise * (1 + _CLOSE))
    return noise


@lru_cache(maxsize=1024)
def _epsilon(events: tuple[Event, ...], delta: float, interval: float) -> float:
    first, *others = (_distribution(event, interval) for event in events)
    for other in others:
        first = first.compose(other)
    return float(first.get_epsilon_for_delta(delta))


@lru_cache(maxsize=64)
def _distribution(event: Event, interval: float) -> Any:
    """Return the privacy loss distribution of all steps of an event."""
    if event.sampling >= 1:
        (event,) = _steps_of_all([event])
    one = _one_step(event.noise_multiplier, event.sampling, interval)
    return one.self_compose(event.steps) if event.steps > 1 else one


@lru_cache(maxsize=256)
def _one_step(noise_multiplier: float, sampling: float, interval: float) -> Any:
    return _library().pld.privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, value_discretization_interval=interval, sampling_prob=sampling
    )


def _steps_of_all(events: Iterable[Event]) -> list[Event]:
    """Return events whose steps of all patients are one: sums of normal losses are normal, which is exact."""
    known = list(events)
    precision = sum(event.steps / event.noise_multiplier**2 for event in known if event.sampling >= 1)
    sampled = [event for event in known if event.sampling < 1]
    return [*sampled, Event(1 / math.sqrt(precision), 1.0, 1)] if precision else sampled


def _merged(events: Iterable[Event]) -> tuple[Event, ...]:
    """Return events of the same kind as one, in a fixed order."""
    steps: Counter[tuple[float, float]] = Counter()
    for event in events:
        steps[event.noise_multiplier, event.sampling] += event.steps
    return tuple(sorted(Event(noise, sampling, count) for (noise, sampling), count in steps.items() if count))


def _interval(events: tuple[Event, ...]) -> float:
    """Return the width of a bin of privacy loss: coarser where losses are so large that it does not matter."""
    load = sum(event.steps * (event.sampling / event.noise_multiplier) ** 2 for event in events)
    return _FINE * 10.0 ** math.ceil(math.log10(max(load / 1000, 1)))


def _wide_enough(events: tuple[Event, ...], delta: float) -> float:
    """Return a width of bins by which an epsilon is too large by little.

    A bin adds a sixth of its square to the variance of a step's loss.
    """
    steps = sum(event.steps for event in events)
    spread = math.sqrt(sum(event.steps * (event.sampling / event.noise_multiplier) ** 2 for event in events))
    slope = 0.5 + max(norm.isf(delta), 0.0) / (2 * spread)  # of epsilon by variance, were the loss normal
    width = math.sqrt(6 * _NEAR / (steps * slope))
    return _FINEST * 2.0 ** max(
        0, math.floor(math.log2(min(width, _MOST_WIDE) / _FINEST))
    )  # few, that are computed once


def rounded_up(value: float, digits: int = 4) -> float:
    """Return a number rounded up in its last digit."""
    if not (0 < value < math.inf):
        return value
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return float(f"{math.ceil(value / unit) * unit:.{digits}g}")


@lru_cache(maxsize=1)
def _library() -> Any:
    try:
        import dp_accounting  # noqa: PLC0415 - an extra, and it takes a second to import
    except ImportError:
        raise SpecError(
            "epsilons are computed by dp-accounting, which is not installed here: pip install 'oncofed[privacy]'"
        ) from None
    return dp_accounting
