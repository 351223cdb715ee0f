"""Gated attention over a bag of tiles."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from oncofed.models.mil.base import BagHead, tile_embedding


class AttentionMIL(BagHead):
    """Gated attention over the tiles of a bag.

    Ilse et al., ICML 2018, equation 9.

    Args:
        in_channels: features of a tile.
        out_channels: classes.
        hidden: size to which features are brought first.
        attention: size of the attention's hidden layer.
        dropout: share of the hidden features that a training step leaves out.

    Example:
        >>> network = AttentionMIL(in_channels=8, out_channels=2).eval()
        >>> bags, there = torch.rand(2, 5, 8), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
        >>> network(bags, there).shape, network.with_attention(bags, there)[1][1].tolist()[3:]
        (torch.Size([2, 2]), [0.0, 0.0])
    """

    def __init__(
        self, in_channels: int, out_channels: int, hidden: int = 256, attention: int = 128, dropout: float = 0.25
    ) -> None:
        super().__init__()
        self.embed = tile_embedding(in_channels, hidden, dropout)
        self.tanh = nn.Linear(hidden, attention)
        self.gate = nn.Linear(hidden, attention)
        self.score = nn.Linear(attention, 1)
        self.classify = nn.Linear(hidden, out_channels)

    def forward(self, bags: Tensor, there: Tensor) -> Tensor:
        """Return logits (batch, class); see ``BagHead``."""
        return self.with_attention(bags, there)[0]

    def with_attention(self, bags: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (batch, class), and attention weights (batch, tile), summing to one."""
        hidden = self.embed(bags)
        weights = self._weights(hidden, there)
        pooled: Tensor = (weights[..., None] * hidden).sum(dim=1)
        return self.classify(pooled), weights

    def _weights(self, hidden: Tensor, there: Tensor) -> Tensor:
        scores = self.score(torch.tanh(self.tanh(hidden)) * torch.sigmoid(self.gate(hidden)))[..., 0]
        # A softmax in half precision loses small weights of large bags.
        weights: Tensor = scores.float().masked_fill(~there, float("-inf")).softmax(dim=1)
        return weights.to(hidden.dtype)
