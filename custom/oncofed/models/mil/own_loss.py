"""A loss that a head adds to the task's.

A head knows its tiles, a task knows the truth, and the network's forward pass sees no truth. So a head states, while it
trains, what its loss would be either way: behind its outputs stand two further columns for each statement that the
task's outputs make, such as "this slide is a tumour": the loss of the bag's tiles if the statement holds, and if it
does not. The task knows which and takes it; of a statement that is unknown, neither.
"""

from __future__ import annotations

import torch
from torch import Tensor


def with_own_loss(outputs: Tensor, holds: Tensor, fails: Tensor) -> Tensor:
    """Return outputs with a head's own losses behind.

    Args:
        outputs: (batch, out).
        holds: losses where each statement holds, (batch, statement).
        fails: losses where it does not, (batch, statement).
    """
    return torch.cat([outputs, holds, fails], dim=1)


def without_own_loss(output: Tensor, out: int) -> tuple[Tensor, Tensor]:
    """Return outputs (batch, out), and the columns behind them: none of most heads."""
    return output[:, :out], output[:, out:]


def own_loss(holds: Tensor, fails: Tensor, truth: Tensor) -> Tensor:
    """Return each sample's own loss, the mean over its known statements, (batch,).

    Args:
        holds: first half of the columns behind a network's outputs, (batch, statement).
        fails: second half, (batch, statement).
        truth: 1 where a statement holds, 0 where not, NaN where unknown, (batch, statement).
    """
    # Of what is unknown neither is taken, gradient and all.
    taken = torch.where(truth == 1, holds, torch.where(truth == 0, fails, 0))
    return taken.sum(dim=1) / (~truth.isnan()).sum(dim=1).clamp(min=1)
