"""Mean loss of a round, without waiting for the GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oncofed.errors import TrainingError


class LossSum:
    """Running sums of a round's steps.

    They stay on the device, so that no step waits for the host.

    Args:
        loss: sum of the finite losses.
        skipped: steps whose loss was not finite.
        taken: all steps.
    """

    def __init__(self, loss: float = 0.0, skipped: int = 0, taken: int = 0) -> None:
        self._loss = torch.tensor(loss, dtype=torch.float64)
        self._skipped = torch.tensor(skipped)
        self.taken = taken

    def to(self, device: torch.device) -> LossSum:
        """Move the sums to a device."""
        self._loss, self._skipped = self._loss.to(device), self._skipped.to(device)
        return self

    def add(self, loss: Tensor) -> None:
        """Count one step."""
        finite = torch.isfinite(loss)
        self._loss += torch.where(finite, loss, 0)
        self._skipped += ~finite
        self.taken += 1

    @property
    def skipped(self) -> int:
        """Steps whose loss was not finite; a GPU waits."""
        return int(self._skipped)

    @property
    def mean(self) -> float:
        """Mean of the finite losses; a GPU waits."""
        return float(self._loss) / max(self.taken - self.skipped, 1)

    @property
    def facts(self) -> dict[str, Any]:
        """The arguments that make an equal one."""
        return {"loss": float(self._loss), "skipped": self.skipped, "taken": self.taken}

    def require_finite(self, most_skipped: int, step: int) -> None:
        """Raise where too many losses were not finite.

        Args:
            most_skipped: see ``TrainingSpec.most_skipped``.
            step: of the run, for the message.

        Raises:
            TrainingError: more steps than that were left out, or all.
        """
        skipped = self.skipped
        if skipped > most_skipped or (self.taken and skipped == self.taken):
            raise TrainingError(
                f"the loss was not finite in {skipped} of {self.taken} steps up to step {step}, expected at most "
                f"{most_skipped} (training.most_skipped). Lower training.learning_rate, or look for "
                "images with extreme intensities."
            )
