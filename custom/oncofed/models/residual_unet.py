"""A U-Net with a residual encoder, as nnU-Net's presets M, L and XL have it.

Isensee et al., *nnU-Net Revisited: A Call for Rigorous Validation in 3D Medical Image Segmentation*, MICCAI 2024;
blocks of He et al., *Bag of Tricks for Image Classification with Convolutional Neural Networks*, CVPR 2019. Weights
have the names that they have in nnU-Net's ``ResidualEncoderUNet``, apart from a bias before a normalisation, which
changes nothing and is left out. MONAI's own residual U-Nets have one kernel and one step for all axes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.networks.layers.factories import Conv, Pool
from monai.networks.layers.utils import get_norm_layer
from torch import Tensor, nn
from torch.nn import functional

from oncofed.data.topology import blocks_of

_SLOPE = 0.01
_CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class _Convolution(nn.Module):
    """A convolution, its normalisation, and an activation where there is one."""

    def __init__(
        self,
        inside: int,
        outside: int,
        kernel: Sequence[int],
        *,
        norm: Any,
        stride: Sequence[int] | int = 1,
        active: bool = True,
    ) -> None:
        super().__init__()
        axes, padding = len(kernel), [side // 2 for side in kernel]
        self.conv = Conv[Conv.CONV, axes](inside, outside, kernel, stride, padding, bias=False)
        self.norm = get_norm_layer(norm, axes, outside)
        self.nonlin = nn.LeakyReLU(_SLOPE, inplace=True) if active else nn.Identity()

    def forward(self, values: Tensor) -> Tensor:
        return self.nonlin(self.norm(self.conv(values)))  # type: ignore[no-any-return]


class _Convolutions(nn.Module):
    """Convolutions in turn."""

    def __init__(self, inside: int, outside: int, kernel: Sequence[int], norm: Any) -> None:
        super().__init__()
        self.convs = nn.Sequential(_Convolution(inside, outside, kernel, norm=norm))

    def forward(self, values: Tensor) -> Tensor:
        return self.convs(values)  # type: ignore[no-any-return]


class _ResidualBlock(nn.Module):
    """Two convolutions beside a skip, which is averaged where the block goes down."""

    def __init__(self, inside: int, outside: int, kernel: Sequence[int], stride: Sequence[int], norm: Any) -> None:
        super().__init__()
        axes = len(kernel)
        self.conv1 = _Convolution(inside, outside, kernel, norm=norm, stride=stride)
        self.conv2 = _Convolution(outside, outside, kernel, norm=norm, active=False)
        skip: list[nn.Module] = [Pool[Pool.AVG, axes](stride, stride)] if math.prod(stride) > 1 else []
        if inside != outside:
            skip.append(_Convolution(inside, outside, [1] * axes, norm=norm, active=False))
        self.skip = nn.Sequential(*skip)
        self.nonlin2 = nn.LeakyReLU(_SLOPE, inplace=True)

    def forward(self, values: Tensor) -> Tensor:
        return self.nonlin2(self.conv2(self.conv1(values)) + self.skip(values))  # type: ignore[no-any-return]


class _ResidualBlocks(nn.Module):
    """Blocks of one resolution, the first of which goes down to it."""

    def __init__(
        self, number: int, inside: int, outside: int, kernel: Sequence[int], stride: Sequence[int], norm: Any
    ) -> None:
        super().__init__()
        still = [1] * len(kernel)
        first = _ResidualBlock(inside, outside, kernel, stride, norm)
        self.blocks = nn.Sequential(
            first, *(_ResidualBlock(outside, outside, kernel, still, norm) for _ in range(1, number))
        )

    def forward(self, values: Tensor) -> Tensor:
        return self.blocks(values)  # type: ignore[no-any-return]


class _Encoder(nn.Module):
    def __init__(
        self, in_channels: int, channels: Sequence[int], blocks: Sequence[int], norm: Any, **axes: Any
    ) -> None:
        super().__init__()
        kernels, strides = axes["kernels"], axes["strides"]
        self.stem = _Convolutions(in_channels, channels[0], kernels[0], norm)
        wider = zip(blocks, [channels[0], *channels], channels, kernels, strides, strict=False)
        self.stages = nn.ModuleList(_ResidualBlocks(*one, norm) for one in wider)

    def forward(self, image: Tensor) -> list[Tensor]:
        values, found = self.stem(image), []
        for stage in self.stages:
            values = stage(values)
            found.append(values)
        return found


class _Decoder(nn.Module):
    """The way up; ``seg_layers`` are counted from the coarsest resolution, as nnU-Net counts them."""

    def __init__(self, channels: Sequence[int], out_channels: int, outputs: int, norm: Any, **axes: Any) -> None:
        super().__init__()
        kernels, strides = axes["kernels"], axes["strides"]
        dimensions, steps = len(kernels[0]), len(channels) - 1
        transposed, convolution = Conv[Conv.CONVTRANS, dimensions], Conv[Conv.CONV, dimensions]
        upwards = range(steps - 1, -1, -1)
        self.transpconvs = nn.ModuleList(
            transposed(channels[n + 1], channels[n], strides[n + 1], strides[n + 1]) for n in upwards
        )
        self.stages = nn.ModuleList(_Convolutions(2 * channels[n], channels[n], kernels[n], norm) for n in upwards)
        self.seg_layers = nn.ModuleDict(
            {str(steps - 1 - n): convolution(channels[n], out_channels, 1) for n in range(outputs)}
        )

    def forward(self, skips: list[Tensor], coarser: bool) -> list[Tensor]:
        """Return the outputs, finest first; of the finest resolution alone unless ``coarser`` ones are wanted."""
        values, found = skips[-1], []
        for number, (up, stage, skip) in enumerate(zip(self.transpconvs, self.stages, skips[-2::-1], strict=True)):
            values = stage(torch.cat([up(values), skip], 1))
            last = number == len(self.stages) - 1
            if str(number) in self.seg_layers and (coarser or last):
                found.append(self.seg_layers[str(number)](values))
        return found[::-1]


class ResidualUNet(nn.Module):
    """A U-Net whose encoder has residual blocks, and whose decoder has one convolution at each resolution.

    Args:
        spatial_dims: axes of the images.
        in_channels: of the images.
        out_channels: values for each voxel.
        channels: feature maps of each resolution, finest first.
        strides: of each resolution, by axis; None: 1, then 2.
        kernel_size: likewise; None: 3.
        blocks: of each resolution; None: as in nnU-Net's presets, 1, 3, 4, and 6 of each further one.
        deep_supervision: coarser outputs that are put out beside the finest while it trains.
        norm: as MONAI's ``get_norm_layer`` takes it.
    """

    def __init__(
        self,
        *,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int],
        strides: Sequence[Sequence[int]] | None = None,
        kernel_size: Sequence[Sequence[int]] | None = None,
        blocks: Sequence[int] | None = None,
        deep_supervision: int = 0,
        norm: Any = ("instance", {"affine": True}),
    ) -> None:
        super().__init__()
        levels = len(channels)
        blocks = blocks or blocks_of(levels)
        if len(blocks) != levels or min(blocks) < 1:
            raise ValueError(
                f"blocks: found {list(blocks)}, expected {levels} numbers from 1, one for each of channels"
            )
        every = [1, *[2] * (levels - 1)]
        axes = {
            "strides": strides or [[step] * spatial_dims for step in every],
            "kernels": kernel_size or [[3] * spatial_dims] * levels,
        }
        self._coarser = deep_supervision > 0
        self.encoder = _Encoder(in_channels, channels, blocks, norm, **axes)
        self.decoder = _Decoder(channels, out_channels, 1 + deep_supervision, norm, **axes)
        self.apply(_initialise)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits (batch, out, x, y[, z]).

        With coarser outputs (batch, output, out, x, y[, z]), finest first.
        """
        coarser = self._coarser and self.training
        outputs: list[Tensor] = self.decoder(self.encoder(image), coarser)
        if not coarser:
            return outputs[0]
        return torch.stack([functional.interpolate(output, image.shape[2:]) for output in outputs], 1)


def _initialise(module: nn.Module) -> None:
    """Draw weights as nnU-Net does (He et al., ICCV 2015, for the activation's slope)."""
    if isinstance(module, _CONVOLUTIONS):
        nn.init.kaiming_normal_(module.weight, a=_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, _ResidualBlock) and getattr(module.conv2.norm, "weight", None) is not None:
        nn.init.zeros_(module.conv2.norm.weight)  # a block begins as its skip
