"""RetinaNet whose output is one tensor.

Lin et al., *Focal Loss for Dense Object Detection* (ICCV 2017), with MONAI's heads, pyramid and anchors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.apps.detection.networks.retinanet_network import RetinaNet
from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape
from monai.networks.blocks.dynunet_block import UnetResBlock
from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork
from torch import Tensor, nn


class _Pyramid(nn.Module):
    """Residual blocks, each of half the resolution, and a feature pyramid.

    MONAI's extractor on a ResNet needs torchvision, which nothing else here does.
    """

    def __init__(
        self, axes: int, in_channels: int, channels: Sequence[int], norm: Any, finest: int, out_channels: int
    ) -> None:
        super().__init__()
        inputs = (in_channels, *channels)
        self.blocks = nn.ModuleList(
            UnetResBlock(axes, before, after, kernel_size=3, stride=1 if level == 0 else 2, norm_name=norm)
            for level, (before, after) in enumerate(zip(inputs, channels, strict=False))
        )
        self.finest, self.out_channels = finest, out_channels
        self.fpn = FeaturePyramidNetwork(axes, list(channels[finest:]), out_channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the pyramid's features, finest first."""
        found = {}
        for level, block in enumerate(self.blocks):
            x = block(x)
            if level >= self.finest:
                found[str(level)] = x
        return list(self.fpn(found).values())


class RetinaNetBoxes(nn.Module):
    """RetinaNet with what it says of every anchor as columns of one output.

    Args:
        in_channels: image channels.
        out_channels: classes, and ``4 * spatial_dims + 1`` more; see ``forward``.
        spatial_dims: 2 or 3.
        channels: of the residual blocks, finest first; each block has half the resolution of the one before.
        norm: of the residual blocks, as MONAI writes it.
        finest: number of the block from which on boxes are looked for; 1: on half of the image's resolution.
        sides: of the anchors at the finest of these resolutions, in voxels; twice as large at each further one.
        features: of the pyramid and the heads, a multiple of 8.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        spatial_dims: int,
        channels: Sequence[int],
        norm: Any,
        finest: int = 1,
        sides: Sequence[int] = (4, 6),
        features: int = 64,
    ) -> None:
        super().__init__()
        classes = out_channels - 4 * spatial_dims - 1
        if classes < 1:
            raise ValueError(f"out_channels is {out_channels}, expected at least {4 * spatial_dims + 2}")
        if not 0 <= finest < len(channels):
            raise ValueError(f"finest is {finest}, expected the number of one of {len(channels)} resolutions")
        if not sides or min(sides) < 2:
            raise ValueError(f"sides are {list(sides)}, expected at least one of 2 voxels or more")
        if features < 8 or features % 8:
            raise ValueError(f"features are {features}, expected a multiple of 8")
        pyramid = _Pyramid(spatial_dims, in_channels, channels, norm, finest, features)
        self.network = RetinaNet(
            spatial_dims,
            num_classes=classes,
            num_anchors=len(sides),
            feature_extractor=pyramid,
            size_divisible=2 ** (len(channels) - 1),
            use_list_output=True,
        )
        scales = [2**level for level in range(len(channels) - finest)]
        self._anchors = AnchorGeneratorWithAnchorShape(scales, [[side] * spatial_dims for side in sides])

    def forward(self, x: Tensor) -> Tensor:
        """Map images to values of each anchor.

        From (batch, channel, x, y[, z]) to (batch, out_channels, anchor). The values are a logit for each class, the
        box relative to the anchor as MONAI's ``BoxCoder`` encodes it (2 * spatial_dims), the anchor's low and high
        corner in voxels of the image (2 * spatial_dims), and the number of its resolution.
        """
        maps = self.network(x)
        levels = len(maps) // 2
        logits, offsets = (
            torch.cat([_of_anchors(part, self.network.num_anchors) for part in maps[half : half + levels]], dim=1)
            for half in (0, levels)
        )
        # In single precision also where the network computes in half of it: corners have more digits than that holds.
        (anchors, *_) = self._anchors(x[:1], [part[:1].float() for part in maps[:levels]])
        level = torch.cat(
            [
                anchors.new_full((self.network.num_anchors * part[0, 0].numel(), 1), n)
                for n, part in enumerate(maps[:levels])
            ]
        )
        fixed = torch.cat([anchors, level], dim=1).expand(x.shape[0], -1, -1)
        return torch.cat([logits.float(), offsets.float(), fixed], dim=2).transpose(1, 2)


def _of_anchors(values: Tensor, anchors: int) -> Tensor:
    """Return a map of a head as (batch, place and anchor, value).

    Args:
        values: (batch, anchor and value, x, y[, z]).
        anchors: at each place.
    """
    split = values.view(values.shape[0], anchors, -1, values[0, 0].numel())
    return split.permute(0, 3, 1, 2).flatten(1, 2)
