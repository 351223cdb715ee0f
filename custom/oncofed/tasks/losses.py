"""Losses that MONAI has not, or not with labels to ignore."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_SMOOTH = 1e-5


def dice_ce(logits: Tensor, label: Tensor, ignore: int | None = None) -> Tensor:
    """Return soft Dice plus cross-entropy, both as mean over samples; voxels to be ignored count in neither.

    Dice has squared predictions in its denominator (Milletari et al., 3DV 2016) and leaves background out.

    Args:
        logits: (batch, class, x, y[, z]).
        label: (batch, 1, x, y[, z]), whole numbers.
        ignore: label value of voxels that nobody labelled.
    """
    target = label[:, 0].long()
    places = list(range(2, logits.ndim))
    counted = torch.ones_like(target, dtype=logits.dtype) if ignore is None else (target != ignore).to(logits.dtype)
    target = target if ignore is None else target.masked_fill(target == ignore, 0)
    each = functional.cross_entropy(logits, target, reduction="none") * counted
    flat = list(range(1, each.ndim))
    entropy = (each.sum(flat) / counted.sum(flat).clamp_min(1)).mean()
    values = torch.arange(1, logits.shape[1], device=logits.device).view(1, -1, *[1] * len(places))
    wanted = (target[:, None] == values).to(logits.dtype) * counted[:, None]
    found = logits.softmax(dim=1)[:, 1:] * counted[:, None]
    overlap = (found * wanted).sum(places)
    sizes = (found * found).sum(places) + wanted.sum(places)
    return (1 - (2 * overlap + _SMOOTH) / (sizes + _SMOOTH)).mean() + entropy
