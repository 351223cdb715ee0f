"""A step's gradient under differential privacy.

DP-SGD (Abadi et al., CCS 2016) with the patient as unit: the mean gradient of a patient's samples is clipped, patients
are added up, noise is added to the sum, and the sum is divided by a number that does not depend on who was drawn.
"""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor, nn

from oncofed.data.cases import Cases
from oncofed.privacy.noise import SecretStream
from oncofed.training.batch_gradients import BatchGradients
from oncofed.training.parallel import Group
from oncofed.training.patient_draws import PatientDraw
from oncofed.training.plan import Plan
from oncofed.training.private_plan import require_same_buffers
from oncofed.training.shared_noise import site_deviation

_LOG = logging.getLogger(__name__)


class ClippedSum:
    """A sum of clipped gradients, and its noise.

    In float64, so that one patient changes it by the clip at most, whatever else is in it.

    Args:
        parameters: whose gradients they are.
        clip: largest norm of a patient's gradient, over all parameters together.
    """

    def __init__(self, parameters: list[nn.Parameter], clip: float) -> None:
        self._parameters, self._clip = parameters, clip
        self.sums = [torch.zeros_like(value, dtype=torch.float64) for value in parameters]

    def clear(self) -> None:
        """Begin anew."""
        torch._foreach_zero_(self.sums)

    def add(self, gradients: list[Tensor | None]) -> bool:
        """Add a patient's gradient, clipped.

        One that is not finite counts as zero.

        Args:
            gradients: of each parameter; None: zero. They are overwritten.

        Returns:
            Whether it was finite.
        """
        there = [(total, value) for total, value in zip(self.sums, gradients, strict=True) if value is not None]
        norms = [torch.linalg.vector_norm(value, dtype=torch.float64) for _, value in there]
        norm = float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0
        if not math.isfinite(norm):
            return False
        share = min(1.0, self._clip / norm) if norm else 1.0
        for total, value in there:
            total.add_(value, alpha=share)
        return True

    def add_noise(self, stream: SecretStream, deviation: float) -> None:
        """Add normal noise to each number.

        Args:
            stream: of random numbers that nobody else knows.
            deviation: of the noise.
        """
        for total in self.sums:
            total.add_(stream.normal(total.numel(), total.device).view(total.shape), alpha=deviation)

    def write(self, divisor: float) -> None:
        """Set the parameters' gradients to the sum, divided."""
        for parameter, total in zip(self._parameters, self.sums, strict=True):
            parameter.grad = (total / divisor).to(parameter.dtype)


def private_gradients(
    plan: Plan, cases: Cases, batches: BatchGradients, network: nn.Module, group: Group | None
) -> PatientGradients | None:
    """Return what computes a private job's gradients; None for a job without differential privacy.

    Of a group the first process alone makes noise.

    Args:
        plan: what to train.
        cases: the site's, whose training patients are counted.
        batches: computes the gradient of one patient's samples.
        network: that is trained.
        group: the processes that train together; None: this one alone.

    Raises:
        SpecError: see ``DifferentialPrivacySpec.event``.
    """
    private = plan.privacy.differential_privacy
    if private is None:
        return None
    deviation = site_deviation(plan)
    # By what a site weighs in the mean of all: then the mean is the sum over all patients, divided by one number.
    counted = len(cases.train) if plan.privacy.shares_noise else len({case.patient for case in cases.train})
    return PatientGradients(
        batches,
        network,
        clip=private.clip,
        deviation=deviation if group is None or group.rank == 0 else 0.0,
        divisor=private.sampling * counted,
        group=group,
    )


class PatientGradients:
    """Computes a step's noisy gradient over patients.

    Args:
        batches: computes the gradient of one patient's samples.
        network: whose trained parameters get gradients.
        clip: largest norm of a patient's gradient.
        deviation: see below.
        divisor: of the sum: how many patients are expected in a step, or cases where sites make noise together.
        group: the processes that train together, each with patients of its own; None: this one alone.

    Attributes:
        deviation: of the noise in the sum, of this process alone: none where another one makes it, less where several
            sites make it together.
    """

    def __init__(
        self,
        batches: BatchGradients,
        network: nn.Module,
        *,
        clip: float,
        deviation: float,
        divisor: float,
        group: Group | None = None,
    ) -> None:
        self._batches, self._network, self._group = batches, network, group
        self.deviation, self._divisor = deviation, divisor
        self._parameters = [value for value in network.parameters() if value.requires_grad]
        self._sum = ClippedSum(self._parameters, clip)
        self._told = False

    def compute(self, draw: PatientDraw) -> Tensor:
        """Compute the gradient, in place; return the patients' mean loss.

        The loss is for this process: it must not leave the site, and no decision may rest on it.

        Raises:
            TrainingError: one sample alone does not fit into memory.
            SpecError: the network keeps something of patients besides its weights.
        """
        self._sum.clear()
        buffers = {name: value.clone() for name, value in self._network.named_buffers()}
        # The scaler, which scales nothing here, wants to have seen a loss, also where nobody is drawn.
        self._batches.scaler.scale(torch.zeros((), device=self._sum.sums[0].device))
        loss, counted = 0.0, 0
        for batch in draw:
            own = self._batches.compute(batch)
            if self._sum.add([value.grad for value in self._parameters]) and math.isfinite(own):
                loss, counted = loss + float(own), counted + 1
            elif not self._told:
                self._told = True
                _LOG.warning("the gradient of a patient is not finite: it counts as zero, now and from now on")
        require_same_buffers(self._network, buffers)
        if self.deviation:
            self._sum.add_noise(draw.stream, self.deviation)
        if self._group:
            self._group.add_up(self._sum.sums)
        self._sum.write(self._divisor)
        return torch.tensor(loss / max(counted, 1), device=self._sum.sums[0].device)
