"""The interface of a head over a bag of tiles."""

from __future__ import annotations

from torch import Tensor, nn


class BagHead(nn.Module):
    """A network from a bag of tiles' features to values for the bag.

    Padding tiles, which fill a batch up to its longest bag, have no effect.
    """

    def with_attention(self, bags: Tensor, there: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return values (batch, out) and how much each tile counts, in one pass over the tiles.

        The latter is (batch, tile), with sum one; None where the head cannot say.

        Args:
            bags: (batch, tile, feature).
            there: (batch, tile) bool, of real tiles.
        """
        return self(bags, there), None


def tile_embedding(in_channels: int, hidden: int, dropout: float) -> nn.Sequential:
    """Return layers that bring a tile's features to a common size.

    Features of different encoders have very different sizes and scales.
    """
    return nn.Sequential(nn.LayerNorm(in_channels), nn.Linear(in_channels, hidden), nn.ReLU(), nn.Dropout(dropout))


def where_there(values: Tensor, there: Tensor, other: float = 0.0) -> Tensor:
    """Return tiles' values (batch, tile, value), those of padding replaced by ``other``."""
    return values.masked_fill(~there[..., None], other)
