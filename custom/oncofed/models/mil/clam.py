"""CLAM with a single attention branch: attention that also learns from single tiles."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from oncofed.models.mil.gated import AttentionMIL
from oncofed.models.mil.own_loss import with_own_loss

_MARGIN = 1.0  # of the smooth top-1 SVM loss (Berrada et al., ICLR 2018), whose temperature is one


class ClamSB(AttentionMIL):
    """CLAM-SB: gated attention with a loss on a bag's most and least attended tiles.

    Lu et al., Nature Biomedical Engineering 5, 2021: for each class a linear layer tells tiles that speak for it from
    others. Of a bag of the class the most attended tiles are taken to do so, the least attended ones not; of a
    bag of another class the most attended ones do not. The loss is the smooth top-1 SVM loss, a mean over the tiles
    taken. For "class" read any statement that the task's outputs make: a finding is there,
    the grade is at least this, the event came in this interval. A value makes none, and a bag of fewer than two tiles
    has no most and least attended ones: neither has a loss of tiles.

    Args:
        in_channels: features of a tile.
        out_channels: values for the bag.
        hidden: size to which features are brought first.
        attention: size of the attention's hidden layer.
        dropout: share of the hidden features that a training step leaves out.
        statements: that the task's outputs make; None: one for each value.
        tiles: most, and least, attended tiles taken; half the bag at most.
        tile_weight: of the loss of tiles beside the task's; the paper has 0.3 beside 0.7.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden: int = 256,
        attention: int = 128,
        dropout: float = 0.25,
        statements: int | None = None,
        tiles: int = 8,
        tile_weight: float = 0.3 / 0.7,
    ) -> None:
        super().__init__(in_channels, out_channels, hidden, attention, dropout)
        self._tiles, self._tile_weight = tiles, tile_weight
        self.speaks = nn.Linear(hidden, 2 * (statements or out_channels))

    def forward(self, bags: Tensor, there: Tensor) -> Tensor:
        """Return values (batch, out); while training the losses of tiles stand behind them, see ``own_loss``."""
        if not self.training:
            return self.with_attention(bags, there)[0]
        hidden = self.embed(bags)
        weights = self._weights(hidden, there)
        outputs: Tensor = self.classify((weights[..., None] * hidden).sum(dim=1))
        return with_own_loss(outputs, *self._tile_losses(hidden, weights, there))

    def _tile_losses(self, hidden: Tensor, weights: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Return losses (batch, statement) if each statement holds, and if not."""
        most = min(self._tiles, weights.shape[1])
        taken = (there.sum(dim=1, keepdim=True) // 2).clamp(max=most)
        is_taken = (torch.arange(most, device=there.device)[None] < taken).to(hidden.dtype)
        attention = weights.detach().float()
        top = attention.masked_fill(~there, float("-inf")).topk(most).indices
        bottom = attention.masked_fill(~there, float("inf")).topk(most, largest=False).indices
        of_top, of_bottom = (self._errors(hidden, chosen, is_taken, taken) for chosen in (top, bottom))
        return self._tile_weight * (of_top[0] + of_bottom[1]) / 2, self._tile_weight * of_top[1]

    def _errors(self, hidden: Tensor, chosen: Tensor, is_taken: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean losses of some tiles if they speak for a statement, and if not, (batch, statement) each."""
        found = hidden.gather(1, chosen[..., None].expand(-1, -1, hidden.shape[2]))
        against, speaks = self.speaks(found).float().chunk(2, dim=2)
        of_tiles = (functional.softplus(_MARGIN + against - speaks), functional.softplus(_MARGIN + speaks - against))
        shares = (is_taken / taken.clamp(min=1))[..., None]
        first, second = ((errors * shares).sum(dim=1) for errors in of_tiles)
        return first, second
