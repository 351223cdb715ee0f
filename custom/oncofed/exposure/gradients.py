"""Gradients as an attacker computes them: network, weights and loss are known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from oncofed.data.augment import Batch
from oncofed.data.batches import BatchBuilder
from oncofed.data.prepared import PreparedCases
from oncofed.exposure.groups import Patients
from oncofed.models.weights import Weights, load_weights
from oncofed.privacy.noise import SecretStream
from oncofed.tasks import Task
from oncofed.training import Plan


class KnownModel:
    """A job's network with the weights that all participants have.

    Args:
        plan: of the job.
        weights: before the update.
        device: that computes.

    Attributes:
        parameters: those that are trained, by name.
    """

    def __init__(self, plan: Plan, weights: Weights, device: torch.device) -> None:
        self._task: Task[Any] = plan.build_task()
        self._network = plan.build_network().to(device)
        load_weights(self._network, weights)
        self._network.train()
        for module in self._network.modules():
            if isinstance(module, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)):
                module.eval()  # nobody knows what was dropped
        self.parameters = {name: value for name, value in self._network.named_parameters() if value.requires_grad}

    def gradient(self, batch: Batch, differentiable: bool = False) -> Tensor:
        """Return the gradient of a batch's loss, (weights,) float32.

        Args:
            batch: on the model's device.
            differentiable: with respect to the batch, in turn.
        """
        loss = self._task.loss(self._task.forward(self._network, batch).float(), batch)
        found = torch.autograd.grad(
            loss, list(self.parameters.values()), create_graph=differentiable, allow_unused=True
        )
        parts = zip(found, self.parameters.values(), strict=True)
        return torch.cat([(torch.zeros_like(own) if value is None else value).flatten() for value, own in parts])

    def flat(self, weights: Weights) -> Tensor:
        """Return the trained ones of some weights, (weights,) float32, on the CPU."""
        return torch.cat([weights[name].flatten().float() for name in self.parameters])


def with_noise(gradient: Tensor, clip: float, deviation: float, stream: SecretStream) -> Tensor:
    """Return a patient's gradient, (weights,), as a step under differential privacy gives it away.

    Args:
        gradient: of the patient.
        clip: largest norm that is left.
        deviation: of the noise.
        stream: of random numbers.
    """
    clipped: Tensor = gradient * (clip / gradient.norm().clamp(min=1e-30)).clamp(max=1)
    return clipped + deviation * stream.normal(len(gradient), gradient.device).float()


def patches_of(plan: Plan, patients: Patients, count: int, seed: int, device: torch.device) -> list[Batch]:
    """Return patches of each patient, unchanged.

    Args:
        plan: of the job.
        patients: each with cases.
        count: patches of each.
        seed: of their places.
        device: where they are wanted.
    """
    input_ = plan.build_task().input("none")
    prepared = PreparedCases([case for cases in patients for case in cases], input_, device)
    builder, generator = BatchBuilder(prepared, input_, device), Generator().manual_seed(seed)
    found, first = [], 0
    for cases in patients:
        found.append(builder.build([first + number % len(cases) for number in range(count)], generator))
        first += len(cases)
    prepared.close()
    return found
