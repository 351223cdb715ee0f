"""Noise that sites make together, in figures that rest on no patient.

Each site adds a part of it to its own sum of clipped gradients; the server is given the sum over sites alone. A site's
update is its sum divided by the cases expected in its step, and its share of the mean is by cases, so that the mean is
the sum over all patients, divided by the cases expected of all sites. (Kairouz, Liu and Steinke, ICML 2021.)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

from oncofed.errors import FederationError, SpecError
from oncofed.models.weights import sum_of_squares
from oncofed.privacy.secure_aggregation.ring import FRACTION_BITS
from oncofed.privacy.settings import LEAST_TRAINING_PATIENTS
from oncofed.training.optimizer import learning_rate
from oncofed.training.plan import Plan

# A sum of rounded normal numbers is one of normal numbers, rounded, but for less than 1e-10 (Kairouz et al., 2021).
_LEAST_STEPS = 2**10
# Of float32's steps the rounding alone counts: exp(-2 pi^2 16^2) of the whole.
_LEAST_FLOAT_STEPS = 16
_FLOAT_STEP = 2.0**-23
# No normal number of SecretStream is larger; a vector of d of them is longer than sqrt(d) + 10 once in 10**21.
_LARGEST = 10.0
# What a value of an update may be, within the ring's 128.
_LARGEST_VALUE = 100.0
_ROUNDING = 1e-6


@dataclass(frozen=True)
class SharedNoise:
    """A site's part in a job whose noise sites make together.

    Attributes:
        deviation: of the noise in a site's sum of clipped gradients.
        clip: largest norm of a patient's gradient.
        sampling: a patient's chance to be in a step.
        least_rate: least learning rate of the job's steps.
        rate: largest.
        weight_decay: of each step.
    """

    deviation: float
    clip: float
    sampling: float
    least_rate: float
    rate: float
    weight_decay: float

    @property
    def most_cases(self) -> int:
        """Training cases of all sites, above which the ring's steps are too coarse for the noise."""
        return int(self._of_update(1) * 2**FRACTION_BITS / _LEAST_STEPS)

    def longest(self, weights: Mapping[str, Tensor], trained: Collection[str]) -> float:
        """Return a length that no site's update reaches, whatever its patients are.

        Sites declare it in place of the length that they have, which would tell of patients by their own noise alone.

        Args:
            weights: from which the round's step starts.
            trained: names of those that are trained.
        """
        numbers = sum(weights[name].numel() for name in trained)
        start = math.sqrt(sum(sum_of_squares(weights[name]) for name in trained))
        noise = self.deviation * (math.sqrt(numbers) + _LARGEST) / LEAST_TRAINING_PATIENTS
        step = self.rate * ((self.clip + noise) / self.sampling + self.weight_decay * start)
        return (step + _ROUNDING * start) * (1 + _ROUNDING)

    def require_fine(self, weights: Mapping[str, Tensor], trained: Collection[str], cases: int) -> None:
        """Refuse weights so large that an update is rounded as coarsely as its noise.

        Args:
            weights: from which the round's step starts.
            trained: names of those that are trained.
            cases: of the site, for training.

        Raises:
            FederationError: the noise would be rounded off.
        """
        largest = max(float(weights[name].abs().max()) for name in trained)
        if not self._of_update(cases) >= _LEAST_FLOAT_STEPS * _FLOAT_STEP * largest:
            raise FederationError(
                f"the model has a weight of {largest:.3g}, beside which float32 rounds a step's noise off: expected "
                "smaller weights, or a larger training.learning_rate"
            )

    def _of_update(self, cases: int) -> float:
        """Return the least deviation of a number of an update of ``cases``."""
        return self.least_rate * self.deviation / (self.sampling * cases)


def shared_noise(plan: Plan) -> SharedNoise | None:
    """Return a site's part in a job's noise; None where each site makes all of its own.

    Raises:
        SpecError: the ring of secure aggregation cannot carry it, or see ``DifferentialPrivacySpec.event``.
    """
    private, secure, training = plan.privacy.differential_privacy, plan.privacy.secure_aggregation, plan.training
    if private is None or secure is None or not plan.privacy.shares_noise:
        return None
    rates = [learning_rate(training, step, plan.total_steps) for step in range(plan.total_steps)]
    noise = SharedNoise(
        deviation=site_deviation(plan),
        clip=private.clip,
        sampling=private.sampling,
        least_rate=min(rates),
        rate=training.learning_rate,
        weight_decay=training.weight_decay,
    )
    fewest = secure.minimum_sites * LEAST_TRAINING_PATIENTS
    if noise.most_cases < fewest:
        raise SpecError(
            f"training.learning_rate: a step's noise is so small beside the steps in which masked updates are counted "
            f"that all sites together may have {noise.most_cases} training cases, expected at least {fewest}: raise "
            "it, take schedule: constant without warmup_steps, or less sampling"
        )
    largest = noise.rate * (noise.clip + _LARGEST * noise.deviation / LEAST_TRAINING_PATIENTS) / noise.sampling
    if largest > _LARGEST_VALUE:
        raise SpecError(
            f"training.learning_rate: a number of an update may come to {largest:.3g}, expected at most "
            f"{_LARGEST_VALUE:g}, as masked updates hold it: lower it, or privacy.differential_privacy.clip"
        )
    return noise


def site_deviation(plan: Plan) -> float:
    """Return the deviation of the noise in a site's sum of clipped gradients.

    Of n sites of a round's roster, some are lost and some take their own noise away; that of all others together is the
    whole.

    Raises:
        SpecError: see ``DifferentialPrivacySpec.event``.
    """
    private = plan.privacy.differential_privacy
    if private is None:
        return 0.0
    whole = private.event(plan.total_steps).noise_multiplier * private.clip
    return whole / math.sqrt(plan.privacy.noise_makers)
