"""Losses of overlapping regions where some were not looked for.

Regions have a sigmoid each, so that a label value is as likely as the regions that it has and those that it lacks are,
multiplied. Where a mask does not tell some values apart, what it says is any of them, whose probabilities add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from oncofed.tasks.losses import soft_dice


@dataclass(frozen=True)
class PartialLabel:
    """Masks in which some label values are not told apart.

    Attributes:
        label: (batch, 1, x, y[, z]), whole numbers.
        alike: (batch, value) int64, for each value the least that a sample's mask does not tell it from.
        members: (value, region) bool, which value is of which region.
        ignore: label value of unlabelled voxels.
    """

    label: Tensor
    alike: Tensor
    members: Tensor
    ignore: int | None = None

    @property
    def told(self) -> Tensor:
        """Whether a sample's mask says of each voxel if it is of a region, (batch, region) bool."""
        return (self.members[self.alike] == self.members).all(1)

    @property
    def counts(self) -> Tensor:
        """Voxels that are labelled, (batch, 1, voxel) bool."""
        flat = self.label.flatten(2)
        return torch.ones_like(flat, dtype=torch.bool) if self.ignore is None else flat != self.ignore

    @property
    def values(self) -> Tensor:
        """Label values, (batch, voxel) int64; of unlabelled voxels zero."""
        return (self.label.flatten(2).long() * self.counts)[:, 0]

    @property
    def possible(self) -> Tensor:
        """Which values a voxel may have, (batch, value, voxel) bool.

        Of several that are of the same regions the least stands for all.
        """
        same = (self.members[:, None] == self.members).all(2)
        together = self.alike[:, :, None] == self.alike[:, None]
        repeated = (same & together).tril(-1).any(2)
        least = self.alike.gather(1, self.values)
        return (self.alike[:, :, None] == least[:, None]) & ~repeated[:, :, None]

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Return those of each label value, (batch, value, voxel).

        Args:
            logits: (batch, region, x, y[, z]).
        """
        flat = logits.flatten(2)
        return self.members.to(flat.dtype) @ flat + functional.logsigmoid(-flat).sum(1, keepdim=True)


def marginal_dice_bce(logits: Tensor, partial: PartialLabel) -> Tensor:
    """Return soft Dice plus binary cross-entropy, both of what is known.

    Where all regions were looked for it is ``dice_bce``. Else cross-entropy is that of all values which a voxel may
    have (the marginal loss of Shi et al., Medical Image Analysis 2021), and Dice a mean over the regions that the
    sample's mask tells.

    Args:
        logits: (batch, region, x, y[, z]).
        partial: the sample's masks.
    """
    there = partial.counts.to(logits.dtype)
    likely = partial.log_probabilities(logits).masked_fill(~partial.possible, -torch.inf).logsumexp(1)
    entropy = -(likely * there[:, 0]).sum(1) / there[:, 0].sum(1).clamp_min(1) / logits.shape[1]
    wanted = partial.members[partial.values].movedim(-1, 1).to(logits.dtype)
    told = partial.told.to(logits.dtype)
    dice = (soft_dice(logits.flatten(2).sigmoid() * there, wanted * there) * told).sum(1) / told.sum(1).clamp_min(1)
    return (entropy + dice).mean()


def regional_divergence(logits: Tensor, teacher: Tensor, partial: PartialLabel) -> Tensor:
    """Return a network's divergence from its teacher in what nobody told apart.

    As ``losses.conditional_divergence``, of the label values that a voxel may have; a mean over voxels that may have
    several, then over samples.

    Args:
        logits: (batch, region, x, y[, z]).
        teacher: logits of the teacher, likewise.
        partial: the sample's masks.
    """
    possible = partial.possible
    found, wanted = (
        partial.log_probabilities(values).masked_fill(~possible, -torch.inf).log_softmax(1)
        for values in (logits, teacher)
    )
    gap = (wanted.masked_fill(~possible, 0) - found.masked_fill(~possible, 0)) * wanted.exp()
    counts = ((possible.sum(1) > 1) & partial.counts[:, 0]).to(logits.dtype)
    return ((gap.sum(1) * counts).sum(1) / counts.sum(1).clamp_min(1)).mean()
