"""A vision transformer that returns logits alone."""

from __future__ import annotations

from typing import Any

from monai.networks.nets import ViT
from torch import Tensor


class ViTClassifier(ViT):
    """MONAI's ViT that returns logits alone.

    The original ``forward`` also returns every layer's states.

    Args:
        in_channels: image channels.
        out_channels: classes.
        arguments: of MONAI's ViT.
    """

    def __init__(self, in_channels: int, out_channels: int, **arguments: Any) -> None:
        # An activation at the end, which MONAI's default has, would bound the logits.
        super().__init__(
            in_channels, classification=True, num_classes=out_channels, post_activation="none", **arguments
        )
        # MONAI builds unused layers for cross-attention, which would never get a gradient.
        for name, parameter in self.named_parameters():
            parameter.requires_grad_("cross_attn" not in name)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (batch, class)."""
        logits: Tensor = super().forward(x)[0]
        return logits
