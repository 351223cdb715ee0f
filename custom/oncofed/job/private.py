"""What a job with differential privacy costs, told before anything runs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from torch import nn

from oncofed.job.spec import JobSpec
from oncofed.privacy.accountant import LEAST_NOISE, Event, epsilon, renyi_epsilon, rounded_up
from oncofed.privacy.noise import SecretRandomness
from oncofed.privacy.policy import PrivacyLimits
from oncofed.privacy.settings import LEAST_TRAINING_PATIENTS, DifferentialPrivacySpec
from oncofed.privacy.statement import statement_of
from oncofed.training.shared_noise import shared_noise, site_deviation

# Sites of these numbers of training patients are told of, as no job knows its sites'.
_PATIENTS = (50, 200, 1000)
# At which policies tell epsilons, where nobody changed it.
_POLICY_DELTA: float = PrivacyLimits.model_fields["delta"].default
_LITTLE = 10  # an epsilon above it lets odds grow more than twenty thousand times
_MOST_DELTA = 0.01
_TIMED = 1_000_000
# Above it, noise that a momentum of nearly one keeps adding up outweighs what is learned.
_MOST_MOMENTUM = 0.95
_SHORT_CLIP = 0.1


@dataclass(frozen=True)
class Costs:
    """What privacy costs a job.

    Attributes:
        epsilon: that the report will tell, by privacy loss distributions.
        renyi_epsilon: the looser one by Rényi divergences, a check by other means.
        delta: of both.
        noise_multiplier: standard deviation of the noise, in clips.
        sampling: a patient's chance to be in a step.
        steps: of each site.
        accountant: which computed epsilon.
        trained: weights that are trained.
        noise_to_signal: training patients of a site -> length of the noise in a step's gradient; the gradient itself is
            no longer than ``clip``. Where sites make noise together: of all sites.
        most_cases: training cases of all sites that noise which they make together may be for; None: noise is local.
        clip: largest norm of a patient's gradient.
        noise_s: seconds of noise for all steps, on one core of this machine.
        epsilon_of_policies: the same promise at the delta of sites' policies, where nobody changed that.
    """

    epsilon: float
    renyi_epsilon: float
    delta: float
    noise_multiplier: float
    sampling: float
    steps: int
    accountant: str
    trained: int
    noise_to_signal: dict[int, float]
    clip: float
    noise_s: float
    epsilon_of_policies: float
    most_cases: int | None = None

    @property
    def facts(self) -> dict[str, object]:
        """All of it, as JSON has it."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return it for people."""
        promise = (
            f"differential privacy: epsilon {self.epsilon:g} at delta {self.delta:g} for each training patient of each "
            f"site ({self.accountant}; by Rényi divergences {self.renyi_epsilon:.4g})"
        )
        whose = "training patients" if self.most_cases is None else "training patients of all sites"
        lengths = ", ".join(f"{length:.3g} with {n}" for n, length in self.noise_to_signal.items())
        return [
            promise,
            f"  at delta {_POLICY_DELTA:g}, at which sites' policies limit it by default: {self.epsilon_of_policies:g}",
            f"  noise multiplier {self.noise_multiplier:g}, sampling {self.sampling:g}, {self.steps} steps",
            f"  length of the noise in a step's gradient of {self.trained:,} weights: {lengths} {whose}",
            f"  length of the gradient itself: {self.clip:g} at most where as many patients are drawn as expected",
            *self._verdict(),
            "  training.batch_size is not used: sampling and patches say what a step has",
            f"  it takes about {self.noise_s:.3g} s of noise at each site, on one core, beside a step for each patient",
            *self._of_together(),
        ]

    def _of_together(self) -> list[str]:
        if self.most_cases is None:
            return []
        most = f"{self.most_cases:,} training cases of all sites at most"
        return [f"  sites make the noise together, in sums under masks: for {most}; with more, raise the learning rate"]

    def _verdict(self) -> list[str]:
        drowned = [patients for patients, length in self.noise_to_signal.items() if length > self.clip]
        if not drowned:
            return []
        return [f"  with {max(drowned)} training patients or fewer each step is more noise than gradient"]


def privacy_costs(spec: JobSpec, network: nn.Module, patients: int | None = None) -> Costs | None:
    """Return what privacy costs a job; None for one without.

    Args:
        spec: the job.
        network: its network.
        patients: training patients of the data that is registered here, to be told of, too; None: not known.

    Raises:
        SpecError: no noise keeps to the epsilon, or the accountant is not installed.
    """
    private, steps = spec.privacy.differential_privacy, spec.plan().total_steps
    promise = statement_of(private, steps)
    if private is None or promise is None:
        return None
    trained = sum(value.numel() for value in network.parameters() if value.requires_grad)
    event = Event(promise.noise_multiplier, private.sampling, steps)
    together = shared_noise(spec.plan())
    # Of all sites of the smallest roster, if none is lost.
    makers = spec.federation().smallest_roster if together else 1
    long = site_deviation(spec.plan()) * math.sqrt((makers or 1) * trained) / private.sampling
    return Costs(
        epsilon=promise.epsilon,
        renyi_epsilon=rounded_up(renyi_epsilon([event], private.delta)),
        delta=private.delta,
        noise_multiplier=promise.noise_multiplier,
        sampling=private.sampling,
        steps=steps,
        accountant=promise.accountant,
        trained=trained,
        noise_to_signal={n: long / n for n in sorted({patients or LEAST_TRAINING_PATIENTS, *_PATIENTS})},
        clip=private.clip,
        noise_s=_noise_seconds() * trained / _TIMED * steps,
        most_cases=together.most_cases if together else None,
        epsilon_of_policies=rounded_up(epsilon([event], _POLICY_DELTA)),
    )


def privacy_notes(spec: JobSpec) -> list[str]:
    """Return notes on settings that do badly under noise."""
    private, training, steps = spec.privacy.differential_privacy, spec.training, spec.plan().total_steps
    if private is None:
        return []
    found = []
    if training.optimizer != "sgd" or training.momentum > _MOST_MOMENTUM:
        has = f"{training.optimizer}{f' with momentum {training.momentum:g}' if training.optimizer == 'sgd' else ''}"
        found.append(f"{has} does badly under noise: try training: {{optimizer: sgd, momentum: 0.9}}")
    if training.schedule != "constant":
        found.append(f"a {training.schedule} rate spends steps that cost epsilon on little: try schedule: constant")
    if private.clip > _SHORT_CLIP:
        found.append(
            f"noise is as long as the clip ({private.clip:g}) says, also where gradients are shorter: try "
            f"privacy.differential_privacy.clip: {_SHORT_CLIP:g}, and raise training.learning_rate as much"
        )
    if (1 - private.sampling) ** steps > 1 / 2:
        found.append("most patients are in no step at all: raise privacy.differential_privacy.sampling")
    found += _of_promise(private, steps)
    found.append(_of_start(private))
    return found


def _of_promise(private: DifferentialPrivacySpec, steps: int) -> Iterator[str]:
    event = private.event(steps)
    promised = epsilon([event], private.delta)
    if promised > _LITTLE:
        yield f"epsilon {promised:.3g} promises little: what leaves may tell who was there; try {_LITTLE} or less"
    if private.epsilon is not None and event.noise_multiplier <= LEAST_NOISE:
        yield (
            f"the noise multiplier is {LEAST_NOISE:g}, the least that is taken, and epsilon {promised:.3g}: less than "
            f"the {private.epsilon:g} asked for"
        )
    if private.delta > _MOST_DELTA:
        yield (
            f"delta {private.delta:g} is refused by every site of {math.ceil(1 / private.delta)} training patients or "
            "more, and lets that share of patients go unprotected: try 1e-4 or less"
        )


def _of_start(private: DifferentialPrivacySpec) -> str:
    return (
        "under noise a public model to start from (--model), or a head on a public encoder, gains more than any other "
        "setting; then more patients, fewer trained weights (training.trainable)"
        + (f", a larger sampling than {private.sampling:g} with fewer steps" if private.sampling < 1 else "")
    )


def _noise_seconds() -> float:
    """Return the CPU seconds that a million numbers of noise take here."""
    stream = SecretRandomness().step()
    stream.normal(1000)
    before = time.process_time()
    stream.normal(_TIMED)
    return time.process_time() - before
