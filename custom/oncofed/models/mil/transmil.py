"""TransMIL: tiles that attend to each other."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from oncofed.models.mil.base import BagHead, tile_embedding
from oncofed.models.mil.nystrom import NystromAttention

_KERNELS = (7, 5, 3)


class TransMIL(BagHead):
    """Two layers of self-attention with a class token, and convolutions over the tiles' order between them.

    Shao et al., NeurIPS 2021. A bag's tiles, in their order, fill a square from row to row; the first ones are repeated
    until it is full. Convolutions over the square (PPEG) tell of neighbours, so that, unlike with other heads, the
    order of tiles counts. Each bag of a batch has a square of its own size.

    Args:
        in_channels: features of a tile.
        out_channels: values for the bag.
        hidden: size to which features are brought first.
        heads: of attention.
        landmarks: see ``NystromAttention``; None: half of ``hidden``, as in the paper.
        dropout: share of the attention's output that a training step leaves out.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden: int = 512,
        heads: int = 8,
        landmarks: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embed = tile_embedding(in_channels, hidden, 0.0)
        self.token = nn.Parameter(torch.randn(1, 1, hidden))
        marks = landmarks or max(1, hidden // 2)
        self.first = NystromAttention(hidden, heads, marks, dropout=dropout)
        self.second = NystromAttention(hidden, heads, marks, dropout=dropout)
        self.norm_first, self.norm_second, self.norm = (nn.LayerNorm(hidden) for _ in range(3))
        self.near = nn.ModuleList(
            nn.Conv2d(hidden, hidden, kernel, padding=kernel // 2, groups=hidden) for kernel in _KERNELS
        )
        self.classify = nn.Linear(hidden, out_channels)

    def forward(self, bags: Tensor, there: Tensor) -> Tensor:
        """Return values (batch, out); see ``BagHead``."""
        tokens, filled = self._before_last(bags, _Squares(there))
        tokens = tokens + self.second(self.norm_second(tokens), filled)
        values: Tensor = self.classify(self.norm(tokens[:, 0]))
        return values

    def with_attention(self, bags: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Return values (batch, out), and the class token's attention in the last layer, (batch, tile), summing to one.

        Attention by landmarks may be a little below zero, which is taken as zero.
        """
        squares = _Squares(there)
        tokens, filled = self._before_last(bags, squares)
        last, found = self.second.with_first_token(self.norm_second(tokens), filled)
        # A repeated tile counts as often as it is there.
        weights = torch.zeros(there.shape, device=bags.device).scatter_add(
            1, squares.tile, found[:, 1:].float().clamp(min=0) * squares.filled
        )
        weights = weights + torch.finfo(torch.float32).tiny * there
        return self.classify(self.norm((tokens + last)[:, 0])), weights / weights.sum(dim=1, keepdim=True)

    def _before_last(self, bags: Tensor, squares: _Squares) -> tuple[Tensor, Tensor]:
        """Return class token and tiles (batch, 1 + place, hidden) before the last layer, and which are there."""
        hidden = squares.fill(self.embed(bags))
        tokens = torch.cat([self.token.to(hidden.dtype).expand(len(hidden), -1, -1), hidden], dim=1)
        filled = torch.cat([squares.filled.new_ones(len(hidden), 1), squares.filled], dim=1)
        tokens = tokens + self.first(self.norm_first(tokens), filled)
        return torch.cat([tokens[:, :1], self._with_neighbours(tokens[:, 1:], squares)], dim=1), filled

    def _with_neighbours(self, hidden: Tensor, squares: _Squares) -> Tensor:
        """Return tiles with their neighbours' (PPEG)."""
        image = squares.image(hidden)
        return squares.places(image + sum(convolution(image) for convolution in self.near))


class _Squares:
    """Squares of tiles, each as large as its bag needs, in a batch of the largest.

    Args:
        there: (batch, tile) bool, of real tiles.

    Attributes:
        filled: places that a bag fills, from the first on, (batch, place) bool.
        tile: at each place, (batch, place) int64; of an empty place any.
    """

    def __init__(self, there: Tensor) -> None:
        self._largest = math.isqrt(max(there.shape[1] - 1, 0)) + 1
        tiles = there.sum(dim=1)[:, None]
        self._side = tiles.double().sqrt().ceil().long()
        place = torch.arange(self._largest**2, device=there.device)[None]
        self.filled = place < self._side.square()
        order = (~there).int().argsort(dim=1, stable=True)
        self.tile = order.gather(1, place % tiles)
        row, column = place // self._largest, place % self._largest
        self._inside = (row < self._side) & (column < self._side)
        self._place_of_pixel = (row * self._side + column).clamp(max=self._largest**2 - 1)
        self._pixel_of_place = (place // self._side * self._largest + place % self._side).clamp(
            max=self._largest**2 - 1
        )

    def fill(self, hidden: Tensor) -> Tensor:
        """Return what lies at each place, (batch, place, hidden), of tiles' (batch, tile, hidden)."""
        return _taken(hidden, self.tile, self.filled)

    def image(self, hidden: Tensor) -> Tensor:
        """Return squares (batch, hidden, row, column), zero outside a bag's own, of what lies at each place."""
        pixels = _taken(hidden, self._place_of_pixel, self._inside)
        return pixels.transpose(1, 2).reshape(len(pixels), -1, self._largest, self._largest)

    def places(self, image: Tensor) -> Tensor:
        """Return what lies at each place, of squares; see ``image``."""
        return _taken(image.flatten(2).transpose(1, 2), self._pixel_of_place, self.filled)


def _taken(values: Tensor, index: Tensor, valid: Tensor) -> Tensor:
    """Return values (batch, place, value) by index (batch, place), zero where not valid."""
    found = values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))
    return found.masked_fill(~valid[..., None], 0)
