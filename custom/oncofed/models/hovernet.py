"""HoVer-Net with the outputs that instance segmentation here learns."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets import HoVerNet
from torch import Tensor


class HoVerNetMaps(HoVerNet):
    """HoVer-Net with its branches as channels of one output.

    Graham et al., Medical Image Analysis 2019.

    Args:
        in_channels: image channels.
        out_channels: classes with background, and one more: a pixel's depth inside its object.
        arguments: of MONAI's HoVerNet.
    """

    def __init__(self, in_channels: int, out_channels: int, **arguments: Any) -> None:
        super().__init__(
            mode="fast",
            in_channels=in_channels,
            np_out_channels=out_channels - 1,
            decoder_padding=True,
            **arguments,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map images to output channels.

        From (batch, channel, x, y) to (batch, out_channels, x, y).
        """
        branches = super().forward(x)
        # The first of the two maps of the branch that parts touching objects.
        return torch.cat([branches["nucleus_prediction"], branches["horizontal_vertical"][:, :1]], dim=1)
