"""The loss of detection: focal loss of classes, smooth L1 of boxes.

Lin et al., *Focal Loss for Dense Object Detection* (ICCV 2017). Anchors are chosen by ATSS (Zhang et al., CVPR 2020),
as nnDetection does for volumes (Baumgartner et al., MICCAI 2021): small objects overlap no anchor by a fixed share.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from monai.apps.detection.utils.ATSS_matcher import ATSSMatcher
from monai.apps.detection.utils.box_coder import BoxCoder
from monai.data.box_utils import box_iou
from monai.losses.focal_loss import sigmoid_focal_loss
from torch import Tensor
from torch.nn import functional

_GAMMA, _ALPHA = 2.0, 0.25
# Below it the loss of an offset is quadratic; of torchvision's detectors.
_BETA = 1 / 9


@dataclass(frozen=True)
class Columns:
    """What the columns of a network's output for boxes hold.

    Attributes:
        classes: number of classes.
        axes: of the image.
    """

    classes: int
    axes: int

    @property
    def number(self) -> int:
        """Number of columns."""
        return self.classes + 4 * self.axes + 1

    @property
    def coder(self) -> BoxCoder:
        """How boxes are encoded relative to anchors."""
        return BoxCoder(weights=(1.0,) * (2 * self.axes))

    def split(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return logits, offsets, anchors and resolutions, each (anchor, …).

        Args:
            output: of one image, (column, anchor).
        """
        parts = torch.split(output.T, [self.classes, 2 * self.axes, 2 * self.axes, 1], dim=1)
        return parts[0], parts[1], parts[2].detach(), parts[3][:, 0].detach()


def detection_loss(
    output: Tensor, boxes: Tensor, classes: Tensor, columns: Columns, candidates: int, box_weight: float
) -> Tensor:
    """Return the mean over images of the loss for each object.

    Args:
        output: (batch, column, anchor) float32.
        boxes: (batch, most, 2 * axes), in voxels of the patch.
        classes: (batch, most) int64, from 1 on; 0: there is no such object.
        columns: of the output.
        candidates: anchors of each resolution among which an object's are chosen.
        box_weight: of the boxes' loss.
    """
    losses = []
    for values, of_image, numbers in zip(output, boxes, classes, strict=True):
        logits, offsets, anchors, levels = columns.split(values)
        corners, labels = of_image[numbers > 0], numbers[numbers > 0]
        chosen = match(corners, anchors, levels, candidates)
        hits = torch.nonzero(chosen >= 0)[:, 0]
        target = torch.zeros_like(logits)
        target[hits, labels[chosen[hits]] - 1] = 1
        loss = sigmoid_focal_loss(logits, target, _GAMMA, _ALPHA).sum()
        if len(hits):
            wanted = columns.coder.encode_single(corners[chosen[hits]], anchors[hits])
            loss = loss + box_weight * functional.smooth_l1_loss(offsets[hits], wanted, beta=_BETA, reduction="sum")
        losses.append(loss / max(1, len(hits)))
    return torch.stack(losses).mean()


def match(boxes: Tensor, anchors: Tensor, levels: Tensor, candidates: int) -> Tensor:
    """Return which box each anchor stands for, (anchor,) int64; negative: none.

    Args:
        boxes: (box, 2 * axes).
        anchors: (anchor, 2 * axes).
        levels: number of each anchor's resolution, (anchor,), rising.
        candidates: anchors of each resolution, nearest to a box, among which its own are chosen.
    """
    if not len(boxes):
        return torch.full((len(anchors),), ATSSMatcher.BELOW_LOW_THRESHOLD, device=anchors.device)
    each = torch.bincount(levels.long()).tolist()
    matcher = ATSSMatcher(candidates, box_iou, center_in_gt=False)
    overlaps, found = matcher(boxes, anchors, each, 1)
    # Where many of its candidates overlap an object alike, none may reach their mean plus their spread.
    return torch.index_copy(found, 0, overlaps.argmax(dim=1), torch.arange(len(boxes), device=anchors.device))
