"""MONAI's batch-normalised networks with another normalisation."""

from __future__ import annotations

from torch import nn


def without_batch_norm(network: nn.Module, groups: int = 8) -> nn.Module:
    """Replace batch by group normalisation, and return the network.

    Wu and He, ECCV 2018.

    MONAI's ResNet and HoVer-Net pass their argument ``norm`` on to some of their layers only.

    Args:
        network: changed in place.
        groups: of channels; every layer's channels must be a multiple of it.
    """
    for name, child in network.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(network, name, nn.GroupNorm(groups, child.num_features))
        else:
            without_batch_norm(child, groups)
    return network
