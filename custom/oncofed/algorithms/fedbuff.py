"""FedBuff (Nguyen et al., AISTATS 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from oncofed.algorithms.base import Algorithm, weighted_sum
from oncofed.algorithms.registry import register_algorithm
from oncofed.algorithms.schedule import Buffered
from oncofed.algorithms.settings import AlgorithmSettings
from oncofed.errors import SpecError


class FedBuffSettings(AlgorithmSettings):
    """Sites never wait; the server steps at a full buffer.

    Nguyen et al., AISTATS 2022.
    """

    name: Literal["fedbuff"]
    buffer: int = Field(
        2, ge=1, le=1000, description="updates of a step, which is what a round is here; at most as many as sites"
    )
    learning_rate: float = Field(1.0, gt=0, le=10, description="of the server")


@register_algorithm("fedbuff")
class FedBuff(Algorithm[FedBuffSettings]):
    """Steps along the buffer's mean update, discounting stale updates."""

    Settings = FedBuffSettings

    @property
    def schedule(self) -> Buffered:
        """A full buffer ends a round."""
        return Buffered(self.settings.buffer)

    def check_sites(self, sites: int) -> None:
        """Refuse a buffer that needs two updates of one site."""
        if sites < self.settings.buffer:
            raise SpecError(
                f"strategy.buffer is {self.settings.buffer}, found {sites} sites that train, of which one would count "
                f"twice in every step. Lower it to {max(sites, 1)}, or name more sites."
            )

    def update_tensor(self, name: str, value: Tensor, deltas: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
        """Step along the mean update."""
        return value + self.settings.learning_rate * weighted_sum(deltas, shares)
