"""A network that draws, whose encoder answers for the whole image, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from monai.networks.layers import SkipConnection
from monai.networks.nets import DynUNet, SegResNet, UNet
from torch import Tensor, nn

from oncofed.models.residual_unet import ResidualUNet

# Figures of each feature over an image: its mean and its largest value. Instance normalisation leaves a mean of zero
# before the last activation, so that the mean alone says little.
POOLED = 2


class SharedEncoder(nn.Module):
    """A network for each voxel with a head on its encoder's last features.

    Args:
        network: from (batch, channel, x, y[, z]) to a map (batch, out, x, y[, z]), or several of deep supervision.
        head: from pooled features (batch, ``POOLED`` times the encoder's channels), and a row of a table where the job
            has one, to values (batch, value).
    """

    def __init__(self, network: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.head = head

    def forward(self, image: Tensor, whole: Tensor | None = None, *row: Tensor) -> Tensor:
        """Return the map of an image; with a whole image, the map and its values in a row.

        Args:
            image: (batch, channel, x, y[, z]).
            whole: the whole image, likewise; None: no values are asked for.
            row: of a table, (batch, column).

        Returns:
            The map; or (batch, map's values and then the head's).
        """
        found: Tensor = self.network(image)
        return found if whole is None else torch.cat([found.flatten(1), self.values(whole, *row)], 1)

    def values(self, whole: Tensor, *row: Tensor) -> Tensor:
        """Return the head's values of a whole image, (batch, value)."""
        features = _ENCODERS[type(self.network)](self.network, whole).flatten(2)
        found: Tensor = self.head(torch.cat([features.mean(2), features.amax(2)], 1), *row)
        return found


def _of_unet(network: nn.Module, image: Tensor) -> Tensor:
    """Return the features of a UNet's bottom, which lies in skip connections of skip connections."""
    block = network.model
    while isinstance(block, nn.Sequential) and len(block) > 1 and isinstance(block[1], SkipConnection):
        image, block = block[0](image), block[1].submodule
    found: Tensor = block(image)  # type: ignore[operator] # a module
    return found


def _of_dynunet(network: nn.Module, image: Tensor) -> Tensor:
    assert isinstance(network, DynUNet)
    image = network.input_block(image)
    for block in network.downsamples:
        image = block(image)
    found: Tensor = network.bottleneck(image)
    return found


def _of_segresnet(network: nn.Module, image: Tensor) -> Tensor:
    assert isinstance(network, SegResNet)
    found: Tensor = network.encode(image)[0]
    return found


def _of_residual_unet(network: nn.Module, image: Tensor) -> Tensor:
    assert isinstance(network, ResidualUNet)
    found: list[Tensor] = network.encoder(image)
    return found[-1]


_ENCODERS: Mapping[type[nn.Module], Callable[[nn.Module, Tensor], Tensor]] = {
    UNet: _of_unet,
    DynUNet: _of_dynunet,
    SegResNet: _of_segresnet,
    ResidualUNet: _of_residual_unet,
}
# Names of the networks whose encoder can be shared, as jobs write them.
SHARED = ("unet", "dynunet", "segresnet", "residual_unet")
