"""An image's or a slide's features and those of a table's row, put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from oncofed.models.mil import BagHead
from oncofed.models.mil.own_loss import without_own_loss
from oncofed.models.table import RowFeatures

Fusion = Literal["concat", "film", "none"]
# Features that the image's network gives, and those of a row.
IMAGE_FEATURES, ROW_FEATURES = 64, 16
_SMALL = 0.01
# Of a row's features, in training, as a row scales and shifts all of the image's: without it a few dozen patients'
# noise is learned by heart (benchmarks/covariates.py).
_DROPPED = 0.5


class FusedNetwork(nn.Module):
    """A network over an image, or a bag, and a row.

    Of the image's features and the row's, ``concat`` gives the head both; ``film`` scales and shifts the image's by the
    row's (Perez et al., AAAI 2018); ``none`` leaves the row out, for comparison.

    Args:
        network: from the image, or the bag, to ``IMAGE_FEATURES`` values.
        columns: of the row; see ``models.table.column_settings``.
        out_channels: values.
        fusion: as above.
    """

    def __init__(self, network: nn.Module, columns: Sequence[Any], out_channels: int, fusion: Fusion) -> None:
        super().__init__()
        self.network = network
        self._fusion = fusion
        if fusion != "none":
            self.row = RowFeatures(columns, ROW_FEATURES)
        if fusion == "film":
            # It begins near the identity: a row that tells nothing is not to disturb the image's features.
            self.dropped = nn.Dropout(_DROPPED)
            self.scale_and_shift = nn.Linear(ROW_FEATURES, 2 * IMAGE_FEATURES)
            nn.init.normal_(self.scale_and_shift.weight, std=_SMALL)
            nn.init.zeros_(self.scale_and_shift.bias)
        self.head = nn.Linear(IMAGE_FEATURES + (ROW_FEATURES if fusion == "concat" else 0), out_channels)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return values (batch, out), and behind them the network's own losses where it has any.

        Args:
            inputs: the network's own, and rows (batch, column).
        """
        *image, table = inputs
        return self._joined(self.network(*image), table)

    def with_attention(self, *inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return values (batch, out), and attention over tiles as the network has it; see ``BagHead``."""
        *image, table = inputs
        found, attention = with_attention(self.network, *image)
        return self._joined(found, table), attention

    def _joined(self, found: Tensor, table: Tensor) -> Tensor:
        found, own = without_own_loss(found, IMAGE_FEATURES)
        features = torch.relu(found)
        if self._fusion == "concat":
            features = torch.cat([features, self.row(table)], dim=1)
        elif self._fusion == "film":
            scale, shift = self.scale_and_shift(self.dropped(self.row(table))).chunk(2, dim=1)
            features = features * (1 + scale) + shift
        return torch.cat([self.head(features), own], dim=1)


def with_attention(network: nn.Module, *inputs: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return a network's values for bags, and attention (batch, tile) that sums to one per bag, in one pass.

    Args:
        network: over bags; None of attention where it has none.
        inputs: bags (batch, tile, feature), which tiles are there (batch, tile) bool, and rows where it takes them.
    """
    if isinstance(network, FusedNetwork | BagHead):
        return network.with_attention(*inputs)
    return network(*inputs), None
