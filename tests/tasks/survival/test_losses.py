"""Losses of survival against second implementations."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from follow_ups import drawn
from oncofed.models.encoders.torchvision_operators import declare_where_missing
from oncofed.tasks.survival.losses import cox_loss, discrete_loss

UNKNOWN = [float("nan")] * 2
ENDS = torch.tensor([6.0, 12.0, 24.0])


@pytest.mark.parametrize("whole_months", [False, True])
def test_cox_is_torchsurvs_likelihood(whole_months: bool) -> None:
    risks, known = drawn(60, whole_months=whole_months)
    log_risk = torch.tensor(risks, dtype=torch.float32, requires_grad=True)
    # Theirs has no risk set right where a censoring and an event are alike: the censored ones go a moment later.
    times = torch.tensor(known.times + 0.01 * ~known.events, dtype=torch.float32)
    events = torch.tensor(known.events)
    declare_where_missing()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchsurv.loss.cox import neg_partial_log_likelihood  # noqa: PLC0415 - it imports torchvision

        theirs = neg_partial_log_likelihood(log_risk, events, times, reduction="sum")
    gradient = torch.autograd.grad(theirs, log_risk)[0]
    truth = torch.stack([torch.tensor(known.times, dtype=torch.float32), events.float()], dim=1)
    ours = cox_loss(log_risk, truth)
    assert ours.sum().item() == pytest.approx(theirs.item(), rel=1e-5)
    assert torch.autograd.grad(ours.sum(), log_risk)[0] == pytest.approx(gradient, abs=1e-4)
    assert ours[~events].abs().max() == 0


def test_a_patient_censored_when_another_has_the_event_is_at_risk() -> None:
    truth = torch.tensor([[5.0, 1.0], [5.0, 0.0], [7.0, 1.0]])
    risks = torch.tensor([0.3, 1.0, -0.5])
    found = [cox_loss(risks[order], truth[order]).sum().item() for order in ([0, 1, 2], [1, 0, 2], [2, 1, 0])]
    assert found == pytest.approx([float(risks.logsumexp(0) - 0.3)] * 3)


def test_cox_is_finite_where_hazards_lie_far_apart() -> None:
    log_risk = torch.tensor([100.0, 1.0, -100.0], requires_grad=True)
    cox_loss(log_risk, torch.tensor([[1.0, 1.0], [1.0, 1.0], [2.0, 0.0]])).sum().backward()
    assert log_risk.grad is not None
    assert log_risk.grad.isfinite().all()


@pytest.mark.parametrize("loss", [cox_loss, lambda out, truth: discrete_loss(out[:, None].repeat(1, 3), truth, ENDS)])
def test_what_is_not_known_counts_in_no_loss_and_no_risk_set(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    known, output = torch.tensor([[3.0, 1.0], [8.0, 0.0], [9.0, 1.0]]), torch.tensor([0.4, -1.0, 2.0, 0.7])
    output.requires_grad_()
    found = loss(output, torch.cat([known, torch.tensor([UNKNOWN])]))
    assert found[:3].tolist() == pytest.approx(loss(output[:3], known).tolist(), abs=1e-6)
    assert found[3] == 0
    found.sum().backward()
    assert output.grad is not None
    assert output.grad[3] == 0
    assert output.grad.isfinite().all()


def test_risk_sets_of_nobody_or_of_one_have_no_loss() -> None:
    for truth in ([[3.0, 1.0]], [[3.0, 0.0], [5.0, 0.0]], [UNKNOWN, UNKNOWN]):
        assert cox_loss(torch.randn(len(truth)), torch.tensor(truth)).tolist() == [0.0] * len(truth)


@pytest.mark.parametrize(
    ("time", "event", "survived", "failed"),
    [
        (0.0, 1, [], 0),  # an event at time zero is one of the first interval
        (0.0, 0, [], None),
        (6.0, 1, [], 0),  # an interval holds its end
        (6.1, 1, [0], 1),
        (24.0, 1, [0, 1], 2),
        (30.0, 1, [0, 1, 2], None),  # beyond the horizon
        (2.9, 0, [], None),
        (3.0, 0, [0], None),  # half of the first passed
        (17.9, 0, [0, 1], None),
        (18.0, 0, [0, 1, 2], None),
    ],
)
def test_the_discrete_likelihood_is_that_of_the_intervals_lived_through(
    time: float, event: int, survived: list[int], failed: int | None
) -> None:
    output = torch.tensor([[-1.0, 0.5, 0.2]])
    hazards = 1 / (1 + np.exp(-output[0].numpy()))
    likelihood = np.prod(1 - hazards[survived]) * (1 if failed is None else hazards[failed])
    found = discrete_loss(output, torch.tensor([[time, float(event)]]), ENDS)
    assert found.item() == pytest.approx(-np.log(likelihood), abs=1e-6)
