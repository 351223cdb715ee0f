"""FedAvgM, FedAdam and FedYogi: optimizers on the server.

FedAvgM: Hsu, Qi and Brown, 2019, arXiv:1909.06335. FedAdam and FedYogi: Reddi et al., ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from oncofed.algorithms.base import Algorithm, weighted_sum
from oncofed.algorithms.registry import register_algorithm
from oncofed.algorithms.settings import AlgorithmSettings


class FedOptSettings(AlgorithmSettings):
    """The mean update is the gradient of a server optimizer.

    Reddi et al., ICLR 2021; Hsu et al., 2019.
    """

    name: Literal["fedavgm", "fedadam", "fedyogi"]
    learning_rate: float | None = Field(
        None, gt=0, le=10, description="of the server; null: 1 for fedavgm, 0.01 for fedadam and fedyogi"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of the mean update (beta 1)")
    second_momentum: float = Field(0.99, ge=0, lt=1, description="of its square (beta 2); fedadam, fedyogi")
    tau: float = Field(1e-3, gt=0, le=1, description="smallest scale of a step; fedadam, fedyogi")


@register_algorithm("fedavgm")
class FedAvgM(Algorithm[FedOptSettings]):
    """Momentum on the server (Hsu, Qi and Brown, 2019)."""

    Settings = FedOptSettings
    needs_only_sums = True

    def update_tensor(self, name: str, value: Tensor, deltas: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Step along the running sum of mean updates."""
        velocity = self.state_tensor(f"velocity.{name}", value)
        velocity.mul_(self.settings.momentum).add_(weighted_sum(deltas, shares))
        return value + (self.settings.learning_rate or 1.0) * velocity


@register_algorithm("fedadam")
class FedAdam(Algorithm[FedOptSettings]):
    """Adam on the server (Reddi et al., ICLR 2021).

    This is algorithm 2, as in the paper without bias correction.
    """

    Settings = FedOptSettings
    needs_only_sums = True

    def update_tensor(self, name: str, value: Tensor, deltas: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Step along the running mean, scaled for each weight."""
        settings = self.settings
        delta = weighted_sum(deltas, shares)
        first = self.state_tensor(f"first.{name}", value)
        first.mul_(settings.momentum).add_(delta, alpha=1 - settings.momentum)
        key = f"second.{name}"
        if key not in self._state:
            self._state[key] = torch.full_like(value, settings.tau**2)
        second = self._state[key]
        self._update_second(second, delta.square())
        return value + (settings.learning_rate or 0.01) * first / (second.sqrt() + settings.tau)

    def _update_second(self, second: Tensor, square: Tensor) -> None:
        beta2 = self.settings.second_momentum
        second.mul_(beta2).add_(square, alpha=1 - beta2)


@register_algorithm("fedyogi")
class FedYogi(FedAdam):
    """Yogi on the server (Reddi et al., ICLR 2021).

    This is algorithm 2: the scale falls slowly as updates shrink.
    """

    def _update_second(self, second: Tensor, square: Tensor) -> None:
        second.sub_((1 - self.settings.second_momentum) * square * torch.sign(second - square))
