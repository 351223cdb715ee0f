"""DSMIL: attention by likeness to the critical tile."""

from __future__ import annotations

import math

from torch import Tensor, nn

from oncofed.models.mil.base import BagHead, tile_embedding, where_there


class DSMIL(BagHead):
    """Two streams: the highest tile of each value, and attention by likeness to it.

    Li, Li and Eliceiri, CVPR 2021, equations 2 to 6. A linear layer scores each tile for each value; the tile with the
    highest score is critical. A tile's attention for a value is the softmax of the product of its query with the
    critical tile's; the bag is the sum of the tiles' information by it. The answer is the mean of the critical tile's
    score and the bag's. As in the authors' programs, products are divided by the root of the query's size, and the
    bag's score for a value sees the bags of all.

    Args:
        in_channels: features of a tile.
        out_channels: values for the bag.
        hidden: size to which features are brought first.
        attention: size of a query.
        dropout: share of the hidden features that a training step leaves out.
    """

    def __init__(
        self, in_channels: int, out_channels: int, hidden: int = 256, attention: int = 128, dropout: float = 0.25
    ) -> None:
        super().__init__()
        self.embed = tile_embedding(in_channels, hidden, dropout)
        self.score = nn.Linear(hidden, out_channels)
        self.query = nn.Sequential(nn.Linear(hidden, attention), nn.Tanh())
        self.information = nn.Linear(hidden, hidden)
        self.classify = nn.Linear(out_channels * hidden, out_channels)

    def forward(self, bags: Tensor, there: Tensor) -> Tensor:
        """Return values (batch, out); see ``BagHead``."""
        return self.with_attention(bags, there)[0]

    def with_attention(self, bags: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Return values (batch, out), and attention weights (batch, tile), the mean over values, summing to one."""
        hidden = self.embed(bags)
        scores = where_there(self.score(hidden), there, float("-inf"))
        weights = self._weights(hidden, scores, there)
        bag = weights.transpose(1, 2) @ self.information(hidden)
        values: Tensor = (scores.amax(dim=1) + self.classify(bag.flatten(1))) / 2
        return values, weights.mean(dim=2)

    def _weights(self, hidden: Tensor, scores: Tensor, there: Tensor) -> Tensor:
        """Return attention (batch, tile, value), summing to one over tiles."""
        queries = self.query(hidden)
        critical = scores.argmax(dim=1)[..., None].expand(-1, -1, queries.shape[2])
        alike = queries @ queries.gather(1, critical).transpose(1, 2) / math.sqrt(queries.shape[2])
        # A softmax in half precision loses small weights of large bags.
        weights: Tensor = where_there(alike.float(), there, float("-inf")).softmax(dim=1)
        return weights.to(hidden.dtype)
