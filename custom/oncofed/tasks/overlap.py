"""Overlap of two label volumes.

All classes are counted in one pass, on their device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

Labels = NDArray[np.unsignedinteger | np.signedinteger]

# Voxels counted at once: enough to fill a processor's caches, or as GPU memory allows.
_VOXELS_AT_ONCE, _VOXELS_AT_ONCE_GPU = 1 << 20, 1 << 24
_WORD = 8


def confusion(prediction: Tensor, reference: Tensor, classes: int, ignore: int | None = None) -> NDArray[np.int64]:
    """Return a confusion matrix of voxels.

    Args:
        prediction: label values below ``classes``, of an integer type.
        reference: label values of the same shape, on the same device.
        classes: with background.
        ignore: label value of voxels that do not count.

    Returns:
        (classes + 1, classes): reference by prediction. The last row is for label values without a class.
    """
    found, expected = prediction.reshape(-1), reference.reshape(-1)
    count = _count_on_device if found.is_cuda else _count
    step = _VOXELS_AT_ONCE_GPU if found.is_cuda else _VOXELS_AT_ONCE
    total = np.zeros((classes + 1) * classes, np.int64)
    for first in range(0, len(found), step):
        total += count(found[first : first + step], expected[first : first + step], classes, ignore)
    return total.reshape(classes + 1, classes)


def _count_on_device(found: Tensor, expected: Tensor, classes: int, ignore: int | None) -> NDArray[np.int64]:
    codes = expected.to(torch.int32).clamp_(max=classes).mul_(classes).add_(found)
    last = (classes + 1) * classes
    if ignore is not None:
        codes.masked_fill_(expected == ignore, last)
    return torch.bincount(codes, minlength=last + 1)[:last].cpu().numpy()


def _count(found: Tensor, expected: Tensor, classes: int, ignore: int | None) -> NDArray[np.int64]:
    p, r = found.numpy(), expected.numpy()
    length = len(p)
    if p.dtype == r.dtype == np.uint8 and length % _WORD == 0:
        # Most of a volume is background in both: eight voxels at a time.
        words = p.view(np.int64), r.view(np.int64)
        occupied = np.flatnonzero((words[0] | words[1]) != 0)
        p, r = (word[occupied].view(np.uint8) for word in words)
    background = length - len(p)
    if ignore is not None:
        kept = r != ignore
        p, r = p[kept], r[kept]
    codes = np.minimum(r, classes).astype(np.intp) * classes + p
    counts = np.bincount(codes, minlength=(classes + 1) * classes)
    counts[0] += background
    return counts


def dice(counts: NDArray[np.int64], values: Sequence[int]) -> float:
    """Return Dice of some label values together.

    From counts of ``confusion``; NaN if they are in neither volume.
    """
    labels = list(values)
    size = int(counts[:, labels].sum()) + int(counts[labels].sum())
    return 2.0 * int(counts[np.ix_(labels, labels)].sum()) / size if size else float("nan")


def keep_largest(labels: NDArray[np.uint8], value: int) -> None:
    """Keep only a label value's largest component, in place.

    Args:
        labels: (x, y[, z]); voxels that share a face are of one component. The others become background.
        value: of the label.
    """
    mask = labels == value
    box = bounding_box(mask)
    if box is None:
        return
    pieces, count = ndimage.label(mask[box])
    if count > 1:
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        labels[box][mask[box] & (pieces != sizes.argmax())] = 0


def bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...] | None:
    """Return a mask's bounding box; None if it is empty."""
    box: list[slice] = []
    for axis in range(mask.ndim):
        # Earlier axes have cropped the mask already.
        inside = mask[tuple(box)]
        occupied = np.flatnonzero(inside.any(axis=tuple(n for n in range(mask.ndim) if n != axis)))
        if not len(occupied):
            return None
        box.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return tuple(box)
