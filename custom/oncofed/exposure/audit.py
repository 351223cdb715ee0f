"""Audits a job's noise in one run (Steinke, Nasr and Jagielski, NeurIPS 2023).

Canaries, gradients of the largest length in directions of their own, are in the run or not by a coin each. Right
guesses of which are there show an epsilon that the noise has at least. Guesses of 200 canaries, all of them right, show
4.2: it cannot tell missing noise from little noise, and is no test of the code.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.stats import binom
from torch import nn

from oncofed.exposure.results import Audit
from oncofed.privacy.noise import SecretRandomness
from oncofed.privacy.settings import DifferentialPrivacySpec
from oncofed.training.patient_gradients import ClippedSum

_MOST_CANARIES, _FEWEST_CANARIES = 1000, 100
_MOST_ADDED = 100_000  # about four seconds
_GUESSED = 10  # one canary in so many is guessed to be there, and one not to be
_DOUBT = 0.05


def audit(private: DifferentialPrivacySpec, steps: int, key: bytes) -> Audit | None:
    """Return what an audit of a job's steps shows; None where it would take long.

    No patient's gradient is in it: they would only add to the noise.

    Args:
        private: of the job.
        steps: of the job.
        key: of all that is random.
    """
    canaries = min(_MOST_CANARIES, int(2 * _MOST_ADDED / (private.sampling * steps)))
    if canaries < _FEWEST_CANARIES:
        return None
    deviation = private.event(steps).noise_multiplier * private.clip
    randomness = SecretRandomness(key)
    there = randomness.step().uniform(canaries) < 0.5
    total, seen = ClippedSum([nn.Parameter(torch.zeros(canaries))], private.clip), torch.zeros(canaries).double()
    for _ in range(steps):
        stream = randomness.step()
        total.clear()
        for number in stream.draws(canaries, private.sampling):
            if there[number]:
                canary = torch.zeros(canaries)
                canary[number] = private.clip
                total.add([canary])
        total.add_noise(stream, deviation)
        seen += total.sums[0]
    order, guessed = seen.argsort(), canaries // _GUESSED
    right = int(there[order[-guessed:]].sum() + (~there[order[:guessed]]).sum())
    return Audit(
        epsilon_at_least=at_least(right, 2 * guessed, canaries, private.delta),
        epsilon_most=at_least(2 * guessed, 2 * guessed, canaries, private.delta),
        delta=private.delta,
        right=right,
        guesses=2 * guessed,
        canaries=canaries,
    )


def at_least(right: int, guesses: int, canaries: int, delta: float) -> float:
    """Return the epsilon below which so many right guesses are unlikely (5 %).

    Their Theorem 5.2, with its term of delta.

    Args:
        right: guesses.
        guesses: of whether a canary is there.
        canaries: in all.
        delta: of the claim.
    """
    fewer = np.arange(1, right + 1)
    low, high = 0.0, 30.0
    for _ in range(40):
        middle = (low + high) / 2
        chance = binom(guesses, 1 / (1 + math.exp(-middle)))
        so_many = chance.sf(right - 1)
        nearly = ((chance.sf(right - 1 - fewer) - so_many) / fewer).max(initial=0.0)
        low, high = (middle, high) if so_many + 2 * canaries * delta * nearly <= _DOUBT else (low, middle)
    return low
