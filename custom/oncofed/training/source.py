"""Where a training's batches come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from oncofed.data.batches import BatchBuilder, BatchStream
from oncofed.data.inputs import BatchSource
from oncofed.data.prepared import PreparedCases
from oncofed.privacy.noise import SecretRandomness
from oncofed.training.patient_draws import PatientDraws
from oncofed.training.plan import Plan


class Source(Protocol):
    """An endless, resumable stream of what a step learns from."""

    def __iter__(self) -> Iterator[Any]:
        """Return itself."""

    def __next__(self) -> Any:
        """Return a step's batch, or its patients."""

    def state(self) -> dict[str, Tensor]:
        """Return the state after the last step."""

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from a state."""

    def begin_round(self) -> None:
        """Note that steps follow which no earlier process has begun."""


def training_source(
    plan: Plan, prepared: PreparedCases, input_: BatchSource, seed: int, device: torch.device, rank: int, size: int
) -> Source:
    """Return shuffled epochs, or draws of patients where the job has differential privacy.

    Args:
        plan: what to train.
        prepared: the cases.
        input_: turns them into batches.
        seed: of epochs; draws of patients have none.
        device: where batches are wanted.
        rank: of this process among those that train together.
        size: how many these are.
    """
    private = plan.privacy.differential_privacy
    if private is None:
        return BatchStream(prepared, input_, plan.training.batch_size // size, seed, device)
    return PatientDraws(
        [case.patient for case in prepared.cases],
        BatchBuilder(prepared, input_, device),
        sampling=private.sampling,
        patches=private.patches,
        randomness=SecretRandomness(),
        rank=rank,
        size=size,
    )
