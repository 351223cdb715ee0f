"""Networks that a job may name.

Normalisation is by instance: batch statistics differ between scanners, and averaging them over sites makes a model
that fits none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
from monai.bundle import ConfigParser
from pydantic import Field, model_validator
from torch import nn

from oncofed.data.spec import StrictModel

NetworkName = Literal["unet", "dynunet", "segresnet"]


class ModelSpec(StrictModel):
    """Which network a job trains."""

    network: NetworkName = Field("unet", description="MONAI network")
    channels: tuple[Annotated[int, Field(ge=4, le=1024)], ...] = Field(
        (16, 32, 64, 128), min_length=2, max_length=7, description="feature maps at each resolution, finest first"
    )
    residual_units: int = Field(2, ge=0, le=4, description="convolutions with a skip at each resolution (unet)")

    @model_validator(mode="after")
    def _segresnet_doubles(self) -> ModelSpec:
        doubled = tuple(self.channels[0] * 2**i for i in range(len(self.channels)))
        if self.network == "segresnet" and self.channels != doubled:
            raise ValueError(f"segresnet doubles its channels at each resolution: expected {list(doubled)}")
        return self

    @property
    def divisor(self) -> int:
        """Each axis of a network's input must be a multiple of this number of voxels."""
        return int(2 ** (len(self.channels) - 1))


def network_config(spec: ModelSpec, in_channels: int, out_channels: int, dimensions: int = 3) -> dict[str, Any]:
    """Return the network as a MONAI bundle writes it: ``_target_`` and arguments, for volumes or flat images."""
    return {**_CONFIGS[spec.network](spec, in_channels, out_channels), "spatial_dims": dimensions}


def build_network(spec: ModelSpec, in_channels: int, out_channels: int, seed: int, dimensions: int = 3) -> nn.Module:
    """Return the network of ``spec`` with initial weights that follow from ``seed`` alone.

    Args:
        spec: which network.
        in_channels: image channels.
        out_channels: classes with background.
        seed: of the initial weights; the caller's random state is left as it was.
        dimensions: 3 for volumes, 2 for flat images.

    Returns:
        A network from (batch, in_channels, x, y[, z]) to logits (batch, out_channels, x, y[, z]), float32 on the CPU.
    """
    config = network_config(spec, in_channels, out_channels, dimensions)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ConfigParser({"network": config}).get_parsed_content("network")
    assert isinstance(network, nn.Module)
    return network


def _unet(spec: ModelSpec, in_channels: int, out_channels: int) -> dict[str, Any]:
    return {
        "_target_": "UNet",
        "in_channels": in_channels,
        "out_channels": out_channels,
        "channels": list(spec.channels),
        "strides": [2] * (len(spec.channels) - 1),
        "num_res_units": spec.residual_units,
        "norm": "instance",
    }


def _dynunet(spec: ModelSpec, in_channels: int, out_channels: int) -> dict[str, Any]:
    levels = len(spec.channels)
    return {
        "_target_": "DynUNet",
        "in_channels": in_channels,
        "out_channels": out_channels,
        "filters": list(spec.channels),
        "kernel_size": [3] * levels,
        "strides": [1] + [2] * (levels - 1),
        "upsample_kernel_size": [2] * (levels - 1),
        "norm_name": "instance",
    }


def _segresnet(spec: ModelSpec, in_channels: int, out_channels: int) -> dict[str, Any]:
    levels = len(spec.channels)
    return {
        "_target_": "SegResNet",
        "in_channels": in_channels,
        "out_channels": out_channels,
        "init_filters": spec.channels[0],
        "blocks_down": [1] + [2] * (levels - 1),
        "blocks_up": [1] * (levels - 1),
        "norm": "instance",
    }


_CONFIGS: dict[NetworkName, Callable[[ModelSpec, int, int], dict[str, Any]]] = {
    "unet": _unet,
    "dynunet": _dynunet,
    "segresnet": _segresnet,
}
