"""Predictive entropy, voxel by voxel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Largest entropy, stored as a byte, for equally likely classes.
LARGEST = 255


def entropy_bytes(likely: Tensor) -> Tensor:
    """Return normalised entropy, (1, …) uint8 from 0 to ``LARGEST``.

    Args:
        likely: probability of each class, (class, …) float32; (1, …): of the second of two classes.
    """
    entropy: Tensor
    if len(likely) == 1:
        entropy, classes = torch.special.entr(likely) + torch.special.entr(1 - likely), 2
    else:
        entropy, classes = torch.special.entr(likely).sum(0, keepdim=True), len(likely)
    return entropy.mul_(LARGEST / math.log(classes)).round_().clamp_(0, LARGEST).to(torch.uint8)


def mean_entropy(found: Tensor, entropy: Tensor) -> float | None:
    """Return the mean entropy of findings, 0 to 1.

    Over the voxels found, and those that share a face with them, as nearly all others are certain background. None if
    nothing was found.

    Args:
        found: labels or numbers of objects, (x, y[, z]); 0: background.
        entropy: of the same voxels, uint8; see ``entropy_bytes``.
    """
    inside = found > 0
    near = inside.clone()
    for axis in range(inside.ndim):
        length = inside.shape[axis] - 1
        near.narrow(axis, 1, length).logical_or_(inside.narrow(axis, 0, length))
        near.narrow(axis, 0, length).logical_or_(inside.narrow(axis, 1, length))
    count = int(near.sum())
    return float(entropy[near].sum(dtype=torch.int64)) / (LARGEST * count) if count else None
