"""Mean and maximum over a bag: what attention must beat."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from oncofed.models.mil.base import BagHead, tile_embedding, where_there


class _Pooling(BagHead):
    """Layers over tiles, one vector for the bag, one linear layer.

    Args:
        in_channels: features of a tile.
        out_channels: values for the bag.
        hidden: size to which features are brought first.
        dropout: share of the hidden features that a training step leaves out.
    """

    def __init__(self, in_channels: int, out_channels: int, hidden: int = 256, dropout: float = 0.25) -> None:
        super().__init__()
        self.embed = tile_embedding(in_channels, hidden, dropout)
        self.classify = nn.Linear(hidden, out_channels)

    def forward(self, bags: Tensor, there: Tensor) -> Tensor:
        """Return values (batch, out); see ``BagHead``."""
        values: Tensor = self.classify(self.pooled(self.embed(bags), there))
        return values

    @abstractmethod
    def pooled(self, hidden: Tensor, there: Tensor) -> Tensor:
        """Return one vector a bag, (batch, hidden), of its tiles' (batch, tile, hidden)."""


class MeanPooling(_Pooling):
    """The mean of a bag's tiles.

    Ilse et al., ICML 2018, equation 5, on the level of embeddings.
    """

    def pooled(self, hidden: Tensor, there: Tensor) -> Tensor:
        """Return the mean over real tiles."""
        # A sum over thousands of tiles has too few digits in half precision.
        total = where_there(hidden, there).sum(dim=1, dtype=torch.float32)
        return (total / there.sum(dim=1, keepdim=True)).to(hidden.dtype)


class MaxPooling(_Pooling):
    """The greatest value of each feature over a bag's tiles.

    Ilse et al., ICML 2018, equation 4, on the level of embeddings.
    """

    def pooled(self, hidden: Tensor, there: Tensor) -> Tensor:
        """Return the maximum over real tiles."""
        return where_there(hidden, there, float("-inf")).amax(dim=1)
