"""Losses of survival models, one number a sample.

Cox's is written out here, although torchsurv has one (``torchsurv.loss.cox``, against which it is tested): that one
leaves a patient out of a risk set whose censoring falls on the very time of an event, is not finite where hazards of
tied events lie far apart, and makes each step of a GPU wait for the host.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def discrete_loss(output: Tensor, truth: Tensor, ends: Tensor) -> Tensor:
    """Return each sample's negative log likelihood over intervals, (batch,).

    Gensheimer and Narasimhan, PeerJ 7:e6257, 2019. A patient with the event survived the intervals before its own; one
    who was censored survived those of whose length half or more passed before.

    Args:
        output: logits of the hazard of each interval, given survival up to its start, (batch, interval).
        truth: time and event, (batch, 2), NaN where unknown.
        ends: of the intervals, ascending, (interval,); each holds its end, and the first begins at zero.
    """
    failed, survived = failed_and_survived(truth, ends)
    each = functional.softplus(-output) * failed + functional.softplus(output) * survived
    return each.sum(dim=1)


def failed_and_survived(truth: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Return in which intervals the event came, and which were survived, (batch, interval) bool; see above."""
    time, event = truth[:, :1], truth[:, 1:].nan_to_num(0) > 0
    starts = functional.pad(ends[:-1], (1, 0))
    # No comparison with NaN holds: what is unknown neither failed nor survived. Time zero is in the first interval.
    failed = event & (time <= ends) & ((time > starts) | (starts == 0))
    return failed, torch.where(event, time > ends, time >= (starts + ends) / 2)


def cox_loss(log_risk: Tensor, truth: Tensor) -> Tensor:
    """Return samples' parts of Cox's negative log likelihood, (batch,).

    Cox, JRSS B, 1972; tied events by Efron, JASA, 1977. The risk set of an event is made of the batch's samples that
    were followed up to its time. Samples without an event have no part of their own.

    Args:
        log_risk: (batch,).
        truth: time and event, (batch, 2), NaN where unknown.
    """
    time, event = truth[:, 0], truth[:, 1].nan_to_num(0) > 0
    own = torch.eye(len(time), dtype=torch.bool, device=time.device)
    # Row: whose time; column: who was at risk then. Everybody is with themselves, that no row is empty.
    at_risk = (time[None] >= time[:, None]) | own
    tied = ((time[None] == time[:, None]) & event[None]) | own
    nobody = float("-inf")
    of_all = log_risk[None].masked_fill(~at_risk, nobody).logsumexp(dim=1)
    of_tied = log_risk[None].masked_fill(~tied, nobody).logsumexp(dim=1)
    # Of m tied events the first has all of them at risk, the next all but an mth part of their hazard, and so on.
    before = (tied & own.new_ones(own.shape).tril(-1)).sum(dim=1)
    left = torch.log1p(-(before / tied.sum(dim=1)) * (of_tied - of_all).exp())
    return (of_all + left - log_risk) * event
