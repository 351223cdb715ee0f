"""Epsilons of many patients at once, each of whom was in other steps.

What steps cost together is a convolution of their distributions of privacy loss: a product of Fourier transforms
(Koskela, Jälkö and Honkela, AISTATS 2020). Each kind of step is transformed once, whoever was in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.fft import irfft, next_fast_len, rfft
from scipy.signal import lfilter
from scipy.special import logsumexp

from oncofed.errors import SpecError

Array = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

_TAIL = 1e-15  # mass of losses beyond the grid, which counts as infinite loss
_ORDERS = np.concatenate([-(2.0 ** np.arange(6, -7, -1)), 2.0 ** np.arange(-6, 7)])  # of moments that bound the tails
_LEAST, _NOTHING = 1e-300, -50.0  # of a transform, and of its logarithm where all of a product is rounding
_WIDTH, _OVERSAMPLED = 0.005, 8  # of a loss where the sum is read off, and points by the highest frequency in it
_NUMBERS_AT_ONCE = 1 << 22


def epsilons(kinds: Sequence[Any], steps: Counts, interval: float, delta: float) -> Array:
    """Return an upper bound of each group's epsilon, (group,); infinity where delta is too small.

    Args:
        kinds: distributions of one step's privacy loss, of dp-accounting (``PrivacyLossDistribution``).
        steps: of each kind that a group was in, (group, kind).
        interval: between losses of the distributions.
        delta: in (0, 1).

    Raises:
        SpecError: the library holds distributions otherwise than this release knows.
    """
    less, more = zip(*map(losses_of, kinds), strict=True)
    return np.maximum(_one_way(less, steps, interval, delta), _one_way(more, steps, interval, delta))


@dataclass(frozen=True)
class Losses:
    """A distribution of one step's privacy loss.

    Attributes:
        masses: of losses on a grid, one interval apart.
        lowest: loss of the first, in intervals.
        infinite: mass of infinite loss.
    """

    masses: Array
    lowest: int
    infinite: float


def losses_of(kind: Any) -> tuple[Losses, Losses]:
    """Return the losses of one patient less, and of one more.

    The library has no public way to them; a test holds them against what it tells in public.

    Args:
        kind: ``PrivacyLossDistribution``.

    Raises:
        SpecError: it holds them otherwise than this release knows.
    """
    try:
        dense = [one.to_dense_pmf() for one in (kind._pmf_remove, kind._pmf_add)]
        less, more = (Losses(np.asarray(one._probs), int(one._lower_loss), float(one._infinity_mass)) for one in dense)
    except (AttributeError, TypeError) as error:
        found = metadata.version("dp-accounting")
        raise SpecError(
            f"found dp-accounting {found}, which holds its distributions otherwise ({error}): expected 0.6, so that "
            "what patients spent is computed as tested. Install it: pip install 'dp-accounting==0.6.*'"
        ) from None
    return less, more


def _one_way(losses: Sequence[Losses], steps: Counts, interval: float, delta: float) -> Array:
    masses, lowest = [loss.masses for loss in losses], np.array([loss.lowest for loss in losses])
    infinite = -np.expm1(steps @ np.array([math.log1p(-loss.infinite) for loss in losses])) + _TAIL
    low, high = _range(masses, lowest, steps, interval)
    size = next_fast_len(max(high - low + 1, *(len(mass) for mass in masses)), real=True)
    transforms = np.array([rfft(mass, size) for mass in masses])
    # Zero to the power of no steps is one.
    logarithms = np.log(np.where(np.abs(transforms) < _LEAST, _LEAST, transforms))
    frequencies = np.arange(_needed(logarithms.real, steps))
    logarithms = logarithms[:, : len(frequencies)]
    # Sums of many steps are smooth: a few of their points tell all.
    points = min(size, next_fast_len(max(_OVERSAMPLED * len(frequencies), math.ceil(size * interval / _WIDTH)), True))
    turn = -2j * math.pi / size * frequencies  # transforms begin at the loss zero, and wrap around
    found: list[float] = []
    at_once = max(1, _NUMBERS_AT_ONCE // points)
    for begin in range(0, len(steps), at_once):
        some = steps[begin : begin + at_once]
        product = np.exp(some @ logarithms + np.multiply.outer(some @ lowest - low, turn))
        for mass, beyond in zip(irfft(product, points, axis=1), infinite[begin:], strict=False):
            found.append(_epsilon(mass, low * interval, interval * size / points, beyond, delta))
    return np.array(found)


def _needed(logarithms: Array, steps: Counts) -> int:
    """Return how many of the lowest frequencies are in any group's product."""
    known, most = logarithms.astype(np.float32), np.full(logarithms.shape[1], -np.inf, np.float32)
    at_once = max(1, _NUMBERS_AT_ONCE // logarithms.shape[1])
    for begin in range(0, len(steps), at_once):
        most = np.maximum(most, (steps[begin : begin + at_once].astype(np.float32) @ known).max(0))
    return int(np.nonzero(most > _NOTHING)[0][-1]) + 1


def _range(masses: Sequence[Array], lowest: npt.NDArray[np.int64], steps: Counts, interval: float) -> Any:
    """Return the least and the largest loss, in intervals, beyond which no group has more than a tail (Chernoff)."""
    moments = np.array(
        [
            logsumexp(np.multiply.outer(_ORDERS, (start + np.arange(len(mass))) * interval), b=mass, axis=1)
            for mass, start in zip(masses, lowest, strict=True)
        ]
    )
    bounds = (steps @ moments + math.log(2 / _TAIL)) / _ORDERS / interval
    return math.floor(bounds[:, _ORDERS < 0].max(1).min()), math.ceil(bounds[:, _ORDERS > 0].min(1).max())


def _epsilon(mass: Array, low: float, interval: float, infinite: float, delta: float) -> float:
    """Return the least epsilon of a distribution of losses.

    Args:
        mass: around each loss.
        low: the first loss.
        interval: between losses.
        infinite: mass of infinite loss.
        delta: in (0, 1).
    """
    if infinite > delta:
        return math.inf
    first = max(0, math.floor(-low / interval))  # losses below zero add nothing
    losses = low + interval * np.arange(first, len(mass))
    if not len(losses):
        return 0.0
    kept = np.maximum(mass[first:], 0.0)
    # From each loss on: delta of an epsilon there is above - below, whose masses count by exp(epsilon - loss). A sum
    # over points lacks a twelfth of the interval's square, times the density, of the integral at most (Euler and
    # Maclaurin).
    above = infinite + np.cumsum(kept[::-1])[::-1] + kept * interval / 12
    below = lfilter([1.0], [1.0, -math.exp(-interval)], kept[::-1])[::-1]
    enough = np.nonzero(above - below > delta)[0]
    last = int(enough[-1]) + 1 if len(enough) else 0
    if last >= len(losses):
        return float(losses[-1])
    if above[last] <= delta:
        return float(losses[last]) if last else 0.0
    return max(0.0, float(losses[last]) + math.log((above[last] - delta) / below[last]))
