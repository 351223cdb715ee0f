"""Dice with cross-entropy, in memory independent of the classes.

And what it becomes for unknown classes and for regions.

MONAI's ``DiceLoss(ignore_index=…)`` and ``DiceCELoss`` keep probabilities and one-hot labels for the backward pass,
each as large as the logits; their cross-entropy is a mean over voxels of the batch, not over samples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_SMOOTH = 1e-5
# Values (classes times voxels) of a slab: enough to fill a core's cache, or to keep a GPU busy.
_TOGETHER_CPU, _TOGETHER_GPU = 1 << 18, 1 << 24


def dice_ce(logits: Tensor, label: Tensor, ignore: int | None = None, known: Tensor | None = None) -> Tensor:
    """Return soft Dice plus cross-entropy.

    Both are means over samples; ignored voxels count in neither.

    Dice has squared predictions in its denominator (Milletari et al., 3DV 2016) and leaves background out.

    Between the passes only the inputs are kept: with 105 classes, probabilities and one-hot labels would each take as
    much memory as the logits. Sums and gradients are bit-identical each time, on a GPU too. No second derivative.

    Of a sample in which some classes were not looked for it is the marginal loss (Shi et al., Medical Image Analysis
    2021): a voxel labelled background is background or of one of these classes, whose probabilities add up; Dice is a
    mean over the others.

    Args:
        logits: (batch, class, x, y[, z]), float32 or float64.
        label: (batch, 1, x, y[, z]), whole numbers; of a class that was not looked for there are none.
        ignore: label value of unlabelled voxels.
        known: (batch, class) bool, classes that were looked for in a sample, background first; None: all.
    """
    loss: Tensor = _DiceCE.apply(logits, label[:, 0], ignore, known)  # type: ignore[no-untyped-call]
    return loss


def conditional_divergence(logits: Tensor, teacher: Tensor, label: Tensor, known: Tensor) -> Tensor:
    """Return a network's divergence from its teacher where nobody looked.

    Among background and the classes that were not looked for, in voxels labelled background: the Kullback-Leibler
    divergence of what is likely given that it is one of these (after ConDistFL, Wang et al., MICCAI workshops 2023). A
    mean over voxels, then over samples; zero of a sample in which all classes were looked for.

    Args:
        logits: (batch, class, x, y[, z]).
        teacher: logits of the teacher, likewise.
        label: (batch, 1, x, y[, z]), whole numbers.
        known: (batch, class) bool, classes that were looked for in a sample, background first.
    """
    unknown = _merged(known)[:, :, None]
    found, wanted = (values.flatten(2).masked_fill(~unknown, -torch.inf).log_softmax(1) for values in (logits, teacher))
    # Of a class that was looked for both are minus infinity, and count nothing.
    gap = (wanted.masked_fill(~unknown, 0) - found.masked_fill(~unknown, 0)) * wanted.exp()
    # A label to be ignored is not zero.
    counts = (label.flatten(1) == 0).to(logits.dtype)
    return ((gap.sum(1) * counts).sum(1) / counts.sum(1).clamp_min(1)).mean()


def dice_bce(logits: Tensor, member: Tensor, counts: Tensor | None = None) -> Tensor:
    """Return soft Dice plus binary cross-entropy of overlapping regions.

    Both are means over regions and samples, as nnU-Net's ``DC_and_BCE_loss``; Dice has squared predictions in its
    denominator, as that of ``dice_ce``.

    Args:
        logits: (batch, region, x, y[, z]).
        member: whether a voxel is of a region, likewise, bool.
        counts: (batch, 1, x, y[, z]) bool, voxels that count; None: all.
    """
    wanted = member.flatten(2).to(logits.dtype)
    values = logits.flatten(2)
    there = torch.ones_like(values[:, :1]) if counts is None else counts.flatten(2).to(values.dtype)
    entropy = functional.binary_cross_entropy_with_logits(values, wanted, reduction="none") * there
    dice = soft_dice(values.sigmoid() * there, wanted * there).mean()
    return dice + (entropy.sum(2) / there.sum(2).clamp_min(1)).mean()


def soft_dice(found: Tensor, wanted: Tensor) -> Tensor:
    """Return one minus soft Dice of each region, (batch, region).

    Args:
        found: probabilities, (batch, region, voxel); zero where a voxel does not count.
        wanted: one or zero, likewise.
    """
    overlap, sizes = (found * wanted).sum(2), found.square().sum(2) + wanted.sum(2)
    return 1 - (2 * overlap + _SMOOTH) / (sizes + _SMOOTH)


class _DiceCE(torch.autograd.Function):
    """The loss with its gradient, computed slab by slab."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, label: Tensor, ignore: int | None, known: Tensor | None) -> Tensor:
        """Return the loss.

        Of logits (batch, class, ...) and a label (batch, ...).
        """
        batch, classes = logits.shape[:2]
        # Per sample: cross-entropy and number of voxels that count; per sample and class: the sums of Dice.
        entropy, counted = logits.new_zeros(batch), logits.new_zeros(batch)
        overlap, squares, sizes_of_label = (logits.new_zeros(batch, classes) for _ in range(3))
        for values, target, one_hot, counts in _slabs(logits, label, ignore):
            log_p = values.log_softmax(dim=1)
            each = log_p.gather(1, target[:, None].long())[:, 0]
            if known is not None:
                merged = log_p.masked_fill(~_merged(known)[:, :, None], -torch.inf).logsumexp(1)
                each = torch.where(target == 0, merged, each)
            found = log_p.exp_()
            if counts is not None:
                each, found = each * counts, found.mul_(counts[:, None])
            entropy = entropy - each.sum(dim=1)
            counted = counted + (target.shape[1] if counts is None else counts.sum(dim=1))
            overlap = overlap + (found * one_hot).sum(dim=2)
            squares = squares + found.square_().sum(dim=2)
            sizes_of_label = sizes_of_label + one_hot.sum(dim=2)
        sizes = (squares + sizes_of_label)[:, 1:] + _SMOOTH
        doubled = 2 * overlap[:, 1:] + _SMOOTH
        counted = counted.clamp_min(1)
        weights = _class_weights(known, sizes)
        ctx.save_for_backward(logits, label, counted, sizes, doubled, known)
        ctx.ignore = ignore
        return ((1 - doubled / sizes) * weights).mean() + (entropy / counted).mean()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of the logits.

        With p the probabilities, t a voxel's class, and a, b the loss's derivatives by Dice's overlaps and squares:
        the derivative by p is ``a`` at t plus ``2 b p``, and softmax turns any g into ``p (g - sum of g p)``.
        Cross-entropy changes the logits by p minus one at t, or minus the shares of p in what is merged.
        """
        logits, label, counted, sizes, doubled, known = ctx.saved_tensors
        batch, classes = logits.shape[:2]
        by_overlap, by_square = logits.new_zeros(batch, classes), logits.new_zeros(batch, classes)
        weights = _class_weights(known, sizes)
        by_overlap[:, 1:] = -2 / sizes / doubled.numel() * weights
        by_square[:, 1:] = doubled / sizes.square() / doubled.numel() * weights
        by_overlap, by_square = (by_overlap * gradient)[:, :, None], (2 * by_square * gradient)[:, :, None]
        by_entropy = (gradient / counted / batch)[:, None]
        result = torch.empty_like(logits).flatten(2)
        parts = torch.split(result, _step(logits), dim=2)
        for part, (values, target, one_hot, counts) in zip(parts, _slabs(logits, label, ctx.ignore), strict=True):
            p = values.softmax(dim=1)
            torch.mul(p, by_square, out=part)
            part.addcmul_(one_hot, by_overlap).mul_(p)
            part.addcmul_(p, (by_entropy - part.sum(dim=1))[:, None])
            wanted = one_hot
            if known is not None:
                shares = values.masked_fill(~_merged(known)[:, :, None], -torch.inf).softmax(1)
                wanted = torch.where((target == 0)[:, None], shares, one_hot)
            part.addcmul_(wanted, by_entropy[:, None], value=-1)
            if counts is not None:
                part.mul_(counts[:, None])
        return result.reshape(logits.shape), None, None, None


def _merged(known: Tensor) -> Tensor:
    """Return what a background voxel may be of, (batch, class) bool."""
    return torch.cat([torch.ones_like(known[:, :1]), ~known[:, 1:]], 1)


def _class_weights(known: Tensor | None, like: Tensor) -> Tensor | float:
    """Return class weights for a mean over a sample's known classes."""
    if known is None:
        return 1.0
    there = known[:, 1:].to(like.dtype)
    return there * (there.shape[1] / there.sum(1, keepdim=True).clamp_min(1))


def _step(logits: Tensor) -> int:
    """Return the voxels of a slab.

    A compiler fuses the passes by itself, so it gets one slab.
    """
    values = _TOGETHER_CPU if logits.device.type == "cpu" else _TOGETHER_GPU
    voxels = logits[0, 0].numel()
    return voxels if torch.compiler.is_compiling() else max(values // (logits.numel() // voxels), 1)


def _slabs(logits: Tensor, label: Tensor, ignore: int | None) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """Yield the voxels of all samples, slab by slab.

    Yields:
        Logits (batch, class, voxel); label (batch, voxel); one-hot labels (batch, class, voxel); a one for each voxel
        (batch, voxel) that is not ignored, None if none is ignored.
    """
    step = _step(logits)
    classes = torch.arange(logits.shape[1], device=logits.device, dtype=label.dtype)[:, None]
    pieces = zip(torch.split(logits.flatten(2), step, 2), torch.split(label.flatten(1), step, 1), strict=True)
    for values, labels in pieces:
        ignored = None if ignore is None else labels == ignore
        # Ignored voxels become background, which Dice leaves out.
        target = labels if ignored is None else labels.masked_fill(ignored, 0)
        counts = None if ignored is None else (~ignored).to(values.dtype)
        yield values, target, (target[:, None] == classes).to(values.dtype), counts
